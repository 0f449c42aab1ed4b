"""EventBatch: raw records to validated columns, and columns to rounds.

The fast path validates and converts whole columns. Only a batch in which something is wrong is taken apart, record
by record, to find what must be refused and why; both paths give the same rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import ValidationError

from models.engines import EVENT_TEXTS
from models.errors import InstantError, Refused
from models.events import DEFAULT_KIND, KINDS_OF_ROLE, ROLES, SURVEY, TICK, VALUES, Attributes, Kind, Role
from models.instants import Instants, format_instant, parse_column
from models.partitioner import partitions_of
from models.plain import plain_purchases
from models.policy import Policy

_KINDS: Final = {kind.name.lower(): kind.value for kind in Kind}
#: A number beyond it is no income and no year, and sums of its kind would not be exact.
_LARGEST_NUMBER: Final = 10**15
#: Kafka's LogAppendTime.
_BY_BROKER: Final = 1
_DECIMAL: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")


class Record(Protocol):
    """One record as a Kafka client gives it.

    ``timestamp`` is in milliseconds since 1970; ``timestamp_type`` says who stamped it, 1 for the broker.
    """

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def timestamp_type(self) -> int | None: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...


class Refusal(NamedTuple):
    """A record that cannot be used, and why."""

    role: Role
    record: Record
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reader:
    """What is needed to judge a record: the policy and where the record was found.

    ``partitions`` is the number of partitions of the input topics, ``latest`` the last instant (microseconds) that a
    record's own timestamp may bear: a broker's clock gone wild must not move the shard's time.
    """

    policy: Policy
    partition: int
    partitions: int
    latest: int


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Validated records of one shard as columns, in the order in which they are folded.

    ``amount`` is in minor units of the base currency, ``score`` a survey's in hundredths (0 of other events), instants
    are int64 microseconds. ``attributes`` has the texts that are kept or tallied, ``numbers`` the numeric attributes
    that are kept, NaN where absent. A tick has an empty customer.
    """

    rank: NDArray[np.int8]
    offset: NDArray[np.int64]
    recorded_at: Instants
    occurred_at: Instants
    kind: NDArray[np.int8]
    amount: NDArray[np.int64]
    score: NDArray[np.int64]
    event_hash: NDArray[np.uint64]
    customer: list[str]
    event_id: list[str]
    record: list[Record]
    attributes: Mapping[str, list[str | None]]
    numbers: Mapping[str, NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.customer)

    def take(self, positions: NDArray[np.int64]) -> EventBatch:
        """The rows at ``positions``, in that order."""
        at = positions.tolist()
        return EventBatch(**{field.name: _taken(getattr(self, field.name), positions, at) for field in fields(self)})

    @staticmethod
    def concat(batches: Sequence[EventBatch]) -> EventBatch:
        """The rows of all, one batch after the other. All must have been read under one policy."""
        if len(batches) == 1:
            return batches[0]
        names = [field.name for field in fields(EventBatch)]
        return EventBatch(**{name: _joined([getattr(batch, name) for batch in batches]) for name in names})


def _taken(column: Any, positions: NDArray[np.int64], at: list[int]) -> Any:
    """A column, or each of several by name, at ``positions``; ``at`` are the same as a list."""
    if isinstance(column, np.ndarray):
        return column[positions]
    if isinstance(column, list):
        return [column[i] for i in at]
    return {name: _taken(each, positions, at) for name, each in column.items()}


def _joined(parts: list[Any]) -> Any:
    """Columns, or several by name, one behind the other."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    if isinstance(parts[0], list):
        return [value for part in parts for value in part]
    return {name: _joined([part[name] for part in parts]) for name in parts[0]}


def _text(value: str | float | bool | None) -> str | None:
    """A free attribute's value as text; empty text is none."""
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None else str(value) or None


#: Where in a batch events carry free attributes, and these.
_Carried = Sequence[tuple[int, Attributes]]


class _Fields(Protocol):
    """Validated events by field."""

    def __len__(self) -> int: ...
    def column(self, name: str, default: Any = None) -> list[Any]: ...


class _Validated:
    """Events as pydantic gives them."""

    def __init__(self, events: Sequence[Mapping[str, Any]]) -> None:
        self._events = events

    def __len__(self) -> int:
        return len(self._events)

    def column(self, name: str, default: Any = None) -> list[Any]:
        """Each event's value of a field, the default where it is absent."""
        return [event.get(name, default) for event in self._events]


def _texts(events: _Fields, carried: _Carried, name: str) -> list[str | None]:
    """Each event's text of an attribute; a field of the event wins over the free attributes."""
    column: list[str | None] = events.column(name) if name in EVENT_TEXTS else [None] * len(events)
    for i, attributes in carried:
        if column[i] is None:
            column[i] = _text(attributes.get(name))
    return column


def _numbers(size: int, carried: _Carried, name: str) -> NDArray[np.float64]:
    """Each event's value of a numeric attribute, NaN where absent. Raises Refused if any is no number."""
    column = np.full(size, np.nan)
    present = [(i, value) for i, attributes in carried if (value := attributes.get(name)) not in (None, "")]
    if present:
        # Adding 0.0 makes a negative zero a plain one: equal numbers must be the same bits.
        column[[i for i, _ in present]] = np.array([_number(name, value) for _, value in present]) + 0.0
    return column


def _number(name: str, value: object) -> float:
    """A JSON number or the text of one. Raises Refused."""
    # bool is an int to isinstance; NaN fails every comparison.
    if type(value) in (int, float) and -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER:  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    if isinstance(value, str) and _DECIMAL.fullmatch(value) and abs(float(value)) <= _LARGEST_NUMBER:
        return float(value)
    raise Refused(
        "invalid_field",
        f"attributes.{name}: must be a number from -1e15 to 1e15, for the policy names it in attributes.numbers",
    )


def _columns(role: Role, events: _Fields, records: list[Record], policy: Policy) -> EventBatch:
    """Validated events as columns. Raises Refused or InstantError if any of them cannot be converted."""
    kinds = np.array(list(map(_KINDS.__getitem__, events.column("kind", DEFAULT_KIND[role]))), dtype=np.int8)
    amount = np.zeros(len(events), dtype=np.int64)
    if role == "purchases":
        paid = (kinds != TICK).nonzero()[0]
        priced = [events.column(name) for name in ("amount", "currency")]
        if len(paid) < len(events):
            priced = [_taken(column, paid, paid.tolist()) for column in priced]
        amount[paid] = policy.converter.column(*priced)
    score = np.zeros(len(events), dtype=np.int64)
    if role == "signups":
        asked = (kinds == SURVEY).nonzero()[0]
        scores = events.column("score")
        score[asked] = np.rint([float(scores[i]) * 100 for i in asked.tolist()])
    event_id = events.column("event_id", "")
    hashes = map(xxhash.xxh3_64_intdigest, map(str.encode, event_id))
    free = events.column("attributes")
    carried = [(i, each) for i, each in enumerate(free) if each] if any(free) else []
    texts = dict.fromkeys((*policy.attributes.keep, *(tally.of for tally in policy.tallies)))
    return EventBatch(
        rank=np.full(len(events), ROLES.index(role), dtype=np.int8),
        offset=np.array([record.offset for record in records], dtype=np.int64),
        # Clipped so that a timestamp beyond all reason stays beyond it, instead of wrapping around.
        recorded_at=np.array([record.timestamp for record in records], dtype=np.int64).clip(-(2**52), 2**52) * 1000,
        occurred_at=parse_column(events.column("occurred_at")),
        kind=kinds,
        amount=amount,
        score=score,
        # 0 marks an empty place among the remembered ids.
        event_hash=np.maximum(np.fromiter(hashes, dtype=np.uint64, count=len(event_id)), 1),
        customer=events.column("customer_id", ""),
        event_id=event_id,
        record=records,
        attributes={name: _texts(events, carried, name) for name in texts},
        numbers={name: _numbers(len(events), carried, name) for name in policy.attributes.numbers},
    )


def _misplaced(batch: EventBatch, reader: Reader) -> dict[int, Refused]:
    """Rows whose key, partition or clock is wrong, by position."""
    wrong: dict[int, Refused] = {}
    ahead = batch.occurred_at > batch.recorded_at + reader.policy.events.allowed_skew
    for i in ahead.nonzero()[0].tolist():
        recorded = format_instant(int(batch.recorded_at[i]))
        wrong[i] = Refused(
            "occurred_ahead",
            f"occurred_at is further ahead of the record's timestamp {recorded} than the policy's allowed_skew; "
            "correct the producer's clock",
        )
    for i in (batch.recorded_at > reader.latest).nonzero()[0].tolist():
        # The brokers' clock is what the ingestion clock means: if a broker is ahead of us, it is we who are behind.
        if batch.record[i].timestamp_type != _BY_BROKER:
            wrong[i] = Refused(
                "recorded_ahead", "the record's timestamp is in the future; correct the producer's clock"
            )
    keyed = (batch.kind != TICK).nonzero()[0].tolist()
    customers, records = batch.customer, batch.record
    if len(keyed) < len(customers):
        customers, records = [customers[i] for i in keyed], [records[i] for i in keyed]
    keys = list(map(str.encode, customers))
    chosen = partitions_of(keys, reader.partitions)
    if (chosen == reader.partition).all() and keys == [record.key for record in records]:
        return wrong
    for i, key, partition in zip(keyed, keys, chosen.tolist(), strict=True):
        if batch.record[i].key != key:
            wrong[i] = Refused("wrong_key", "the record's key must be the customer_id, as UTF-8")
        elif partition != reader.partition:
            wrong[i] = Refused(
                "wrong_partition",
                f"Kafka's own partitioner (murmur2) puts this customer on partition {partition} of "
                f"{reader.partitions}; set the producer's partitioner to murmur2_random",
            )
    return wrong


def _refused(role: Role, error: ValidationError) -> Refused:
    """The first thing pydantic found wrong, as a code and a sentence."""
    first = error.errors(include_url=False)[0]
    # The location in a union starts with its tag, which no field is called; then comes the path inside the event.
    parts = first["loc"][1:] if first["loc"] and first["loc"][0] in _KINDS else first["loc"]
    path = ".".join(str(part) for part in parts)[:200]
    if first["type"] in ("json_invalid", "dict_type", "model_attributes_type") and not path:
        return Refused("invalid_json", f"the value is not a JSON object: {first['msg']}")
    if first["type"] in ("union_tag_not_found", "union_tag_invalid"):
        missing = role == "purchases" and first["input"].get("kind") is None
        code, found = ("missing_field", "is missing, and required") if missing else ("invalid_field", "is unknown here")
        return Refused(code, f"kind: {found}; it must be {KINDS_OF_ROLE[role]}")
    if first["type"] == "missing":
        return Refused("missing_field", f"{path}: is missing, and required")
    if first.get("input", "") is None:
        return Refused("missing_field", f"{path}: is null, and required")
    message = first["msg"].replace("Input should be", "must be").replace("String should", "must")
    return Refused("invalid_field", f"{path or 'kind'}: {message}")


def _validated(role: Role, record: Record) -> dict[str, Any]:
    """One record's value as a validated event. Raises Refused."""
    if record.value is None:
        raise Refused("empty_value", "the value is empty (a tombstone); send an erasure to forget a customer")
    try:
        event: dict[str, Any] = VALUES[role].validate_json(record.value)
    except ValidationError as error:
        raise _refused(role, error) from None
    return event


def _one(role: Role, record: Record, reader: Reader) -> EventBatch:
    """One record as a batch of one. Raises Refused."""
    try:
        batch = _columns(role, _Validated([_validated(role, record)]), [record], reader.policy)
    except InstantError:
        raise Refused("invalid_field", "occurred_at: is no real date and time") from None
    for refused in _misplaced(batch, reader).values():
        raise refused
    return batch


def _events(role: Role, values: Sequence[bytes | None]) -> _Fields:
    """The values as validated events. Raises ValidationError, or TypeError for an empty value."""
    if role == "purchases" and (plain := plain_purchases(values)) is not None:
        return plain
    validate = VALUES[role].validate_json
    return _Validated([validate(value) for value in values])  # type: ignore[arg-type]


def read(role: Role, records: Sequence[Record], reader: Reader) -> tuple[EventBatch, list[Refusal]]:
    """Records of one topic as a batch of those that can be used, and the refusals of the others."""
    records = list(records)
    try:
        batch = _columns(role, _events(role, [record.value for record in records]), records, reader.policy)
        wrong = _misplaced(batch, reader)
    except (ValidationError, Refused, InstantError, TypeError):
        return _read_one_by_one(role, records, reader)
    if not wrong:
        return batch, []
    good = np.array([i for i in range(len(batch)) if i not in wrong], dtype=np.int64)
    refusals = [Refusal(role, records[i], each.code, each.reason) for i, each in sorted(wrong.items())]
    return batch.take(good), refusals


def _read_one_by_one(role: Role, records: list[Record], reader: Reader) -> tuple[EventBatch, list[Refusal]]:
    """What is wrong is found record by record; what passes validation is still converted as a whole if it can be."""
    good: list[Record] = []
    events: list[dict[str, Any]] = []
    refused: list[tuple[int, Refusal]] = []
    for i, record in enumerate(records):
        try:
            events.append(_validated(role, record))
            good.append(record)
        except Refused as error:
            refused.append((i, Refusal(role, record, error.code, error.reason)))
    try:
        batch = _columns(role, _Validated(events), good, reader.policy)
    except (Refused, InstantError):
        return _convert_one_by_one(role, records, reader)
    wrong = _misplaced(batch, reader)
    place = {id(record): i for i, record in enumerate(records)}
    refused += [(place[id(good[i])], Refusal(role, good[i], each.code, each.reason)) for i, each in wrong.items()]
    kept = np.array([i for i in range(len(batch)) if i not in wrong], dtype=np.int64)
    return batch.take(kept), [refusal for _, refusal in sorted(refused, key=lambda pair: pair[0])]


def _convert_one_by_one(role: Role, records: list[Record], reader: Reader) -> tuple[EventBatch, list[Refusal]]:
    batches = [_columns(role, _Validated([]), [], reader.policy)]
    refusals = []
    for record in records:
        try:
            batches.append(_one(role, record, reader))
        except Refused as refused:
            refusals.append(Refusal(role, record, refused.code, refused.reason))
    return EventBatch.concat(batches), refusals


def merge_order(batches: Sequence[EventBatch], instants: Sequence[Instants]) -> NDArray[np.int64]:
    """Positions in ``concat(batches)``, a batch a topic, in the order (instant, topic rank, offset).

    The heads of the topics are compared, so that each topic keeps its offset order: a record that is earlier than
    the one before it on its topic follows that one directly.
    """
    heads = np.concatenate([np.maximum.accumulate(each) for each in instants])
    rank = np.concatenate([batch.rank for batch in batches])
    offset = np.concatenate([batch.offset for batch in batches])
    return np.lexsort((offset, rank, heads))


def rounds(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Positions of ``rows`` in parts, in each of which a row occurs at most once; a row keeps its order."""
    if not len(rows):
        return
    order = np.argsort(rows, kind="stable")
    sorted_rows = rows[order]
    differs = sorted_rows[1:] != sorted_rows[:-1]
    if differs.all():
        yield np.arange(len(rows))
        return
    starts = np.concatenate(([True], differs)).nonzero()[0]
    occurrence = np.empty(len(rows), dtype=np.int64)
    occurrence[order] = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
    by_occurrence = np.argsort(occurrence, kind="stable")
    yield from np.split(by_occurrence, np.cumsum(np.bincount(occurrence))[:-1])
