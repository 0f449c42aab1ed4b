"""Records to an EventBatch, or to refusals that say why.

Whole columns are validated and converted. Purchases that cannot be used are left out one by one; any other batch in
which something is wrong is taken apart, record by record, to find what must be refused and why.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from models.batch import EventBatch, Record, Refusal, Texts
from models.engines import EVENT_TEXTS
from models.errors import InstantError, Refused
from models.events import ATTRIBUTES, DEFAULT_KIND, KINDS_OF_ROLE, ROLES, SURVEY, TICK, VALUES, Attributes, Kind, Role
from models.hashes import hashes_of
from models.instants import Instants, format_instant, parse_column
from models.partitioner import partitions_of
from models.policy import Policy
from models.purchases import purchases

_KINDS: Final = {kind.name.lower(): kind.value for kind in Kind}
#: A number beyond it is no income and no year, and sums of its kind would not be exact.
_LARGEST_NUMBER: Final = 10**15
#: Kafka's LogAppendTime.
_BY_BROKER: Final = 1
_DECIMAL: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")


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


def _text(value: str | float | bool | None) -> str | None:
    """A free attribute's value as text; empty text is none."""
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None else str(value) or None


#: Where in a batch events carry free attributes, and these.
_Carried = Sequence[tuple[int, Attributes]]


def _column(events: Sequence[Mapping[str, Any]], name: str, default: Any = None) -> list[Any]:
    """Each event's value of a field, the default where it is absent."""
    return [event.get(name, default) for event in events]


def _texts(size: int, known: Texts | None, carried: _Carried, name: str) -> Texts:
    """Each event's text of an attribute; a field of the event, if known, wins over the free attributes."""
    known = known or Texts([None], np.zeros(size, dtype=np.int64))
    if not carried:
        return known
    column = known.column()
    for i, attributes in carried:
        if column[i] is None:
            column[i] = _text(attributes.get(name))
    return Texts.of(column)


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


class _Columns(NamedTuple):
    """What differs between events, by field. ``texts`` may lack what no event says."""

    kind: NDArray[np.int8]
    occurred_at: Instants
    amount: NDArray[np.int64]
    score: NDArray[np.int64]
    event_id: list[str]
    customer: list[str]
    texts: Mapping[str, Texts]
    carried: _Carried


def _kept(policy: Policy) -> dict[str, None]:
    """The texts that are kept or tallied."""
    return dict.fromkeys((*policy.attributes.keep, *(tally.of for tally in policy.tallies)))


def _batch(role: Role, records: list[Record], policy: Policy, columns: _Columns) -> EventBatch:
    """Raises Refused if an attribute that must be a number is none."""
    size, carried = len(records), columns.carried
    return EventBatch(
        rank=np.full(size, ROLES.index(role), dtype=np.int8),
        offset=np.array([record.offset for record in records], dtype=np.int64),
        # Clipped so that a timestamp beyond all reason stays beyond it, instead of wrapping around.
        recorded_at=np.array([record.timestamp for record in records], dtype=np.int64).clip(-(2**52), 2**52) * 1000,
        occurred_at=columns.occurred_at,
        kind=columns.kind,
        amount=columns.amount,
        score=columns.score,
        # 0 marks an empty place among the remembered ids.
        event_hash=np.maximum(hashes_of(columns.event_id), 1),
        customer=columns.customer,
        event_id=columns.event_id,
        record=records,
        attributes={name: _texts(size, columns.texts.get(name), carried, name) for name in _kept(policy)},
        numbers={name: _numbers(size, carried, name) for name in policy.attributes.numbers},
    )


def _columns(role: Role, events: Sequence[Mapping[str, Any]], records: list[Record], policy: Policy) -> EventBatch:
    """Events as pydantic gives them. Raises Refused or InstantError if any of them cannot be converted."""
    kinds = np.array(list(map(_KINDS.__getitem__, _column(events, "kind", DEFAULT_KIND[role]))), dtype=np.int8)
    amount = np.zeros(len(events), dtype=np.int64)
    if role == "purchases":
        paid = [event for event in events if event["kind"] != "tick"]
        amount[kinds != TICK] = policy.converter.column(_column(paid, "amount"), _column(paid, "currency"))
    score = np.zeros(len(events), dtype=np.int64)
    if role == "signups":
        asked = (kinds == SURVEY).nonzero()[0]
        score[asked] = np.rint([float(events[i]["score"]) * 100 for i in asked.tolist()])
    columns = _Columns(
        kind=kinds,
        occurred_at=parse_column(_column(events, "occurred_at")),
        amount=amount,
        score=score,
        event_id=_column(events, "event_id", ""),
        customer=_column(events, "customer_id", ""),
        texts={name: Texts.of(_column(events, name)) for name in _kept(policy) if name in EVENT_TEXTS},
        carried=[(i, each) for i, event in enumerate(events) if (each := event.get("attributes"))],
    )
    return _batch(role, records, policy, columns)


def _purchases(records: list[Record], policy: Policy) -> tuple[EventBatch, dict[int, Refused]]:
    """Records of the purchases topic that can be used, and why others, by position, cannot.

    Raises ValidationError, Refused, or InstantError if that is not so easily found.
    """
    values = [record.value for record in records]
    found = purchases(values, policy.converter.base)
    wrong: dict[int, Refused] = {}
    for i, amount, currency in found.priced:
        try:
            found.amount[i] = policy.converter.one(amount, currency)
        except Refused as refused:
            wrong[i] = refused
    odd: dict[int, dict[str, Any]] = {}
    for i in found.odd:
        try:
            odd[i] = _validated("purchases", records[i])
        except Refused as refused:
            wrong[i] = refused
    columns = _Columns(
        kind=found.kind,
        occurred_at=found.occurred_at,
        amount=found.amount,
        score=np.zeros(len(values), dtype=np.int64),
        event_id=found.event_id,
        customer=found.customer_id,
        texts={name: Texts(*each) for name, each in found.texts.items()},
        carried=[(i, each) for i, text in found.attributes if (each := ATTRIBUTES.validate_json(text))],
    )
    batch = _batch("purchases", records, policy, columns)
    if not odd and not wrong:
        return batch, wrong
    places = np.setdiff1d(np.arange(len(records)), [*odd, *wrong])
    batch = batch.take(places)
    if odd:
        judged = _columns("purchases", list(odd.values()), [records[i] for i in odd], policy)
        batch = EventBatch.concat([batch, judged]).take(np.argsort(np.concatenate([places, list(odd)])))
    return batch, wrong


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
        batch = _columns(role, [_validated(role, record)], [record], reader.policy)
    except InstantError:
        raise Refused("invalid_field", "occurred_at: is no real date and time") from None
    for refused in _misplaced(batch, reader).values():
        raise refused
    return batch


def read(role: Role, records: Sequence[Record], reader: Reader) -> tuple[EventBatch, list[Refusal]]:
    """Records of one topic as a batch of those that can be used, and the refusals of the others."""
    records, wrong = list(records), dict[int, Refused]()
    try:
        if role == "purchases":
            batch, wrong = _purchases(records, reader.policy)
        else:
            batch = _columns(role, [_validated(role, record) for record in records], records, reader.policy)
    except (ValidationError, Refused, InstantError):
        return _read_one_by_one(role, records, reader)
    misplaced = _misplaced(batch, reader)
    if misplaced:
        place = [i for i in range(len(records)) if i not in wrong]
        wrong |= {place[i]: each for i, each in misplaced.items()}
        batch = batch.take(np.array([i for i in range(len(batch)) if i not in misplaced], dtype=np.int64))
    return batch, [Refusal(role, records[i], each.code, each.reason) for i, each in sorted(wrong.items())]


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
        batch = _columns(role, events, good, reader.policy)
    except (Refused, InstantError):
        return _convert_one_by_one(role, records, reader)
    wrong = _misplaced(batch, reader)
    place = {id(record): i for i, record in enumerate(records)}
    refused += [(place[id(good[i])], Refusal(role, good[i], each.code, each.reason)) for i, each in wrong.items()]
    kept = np.array([i for i in range(len(batch)) if i not in wrong], dtype=np.int64)
    return batch.take(kept), [refusal for _, refusal in sorted(refused, key=lambda pair: pair[0])]


def _convert_one_by_one(role: Role, records: list[Record], reader: Reader) -> tuple[EventBatch, list[Refusal]]:
    batches = [_columns(role, [], [], reader.policy)]
    refusals = []
    for record in records:
        try:
            batches.append(_one(role, record, reader))
        except Refused as refused:
            refusals.append(Refusal(role, record, refused.code, refused.reason))
    return EventBatch.concat(batches), refusals
