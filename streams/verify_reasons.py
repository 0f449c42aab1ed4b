"""Why customers differ, as far as the topics can tell: they are computed once more, and each of their steps is kept."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from xxhash import xxh3_64_intdigest

from models.events import ROLES, Kind, Role
from models.instants import format_instant
from models.rows import unpack
from models.table import NO_LABEL
from streams.commit import ShardHeader
from streams.customers import described
from streams.ports import StateStore
from streams.processor import Clock, Shard
from streams.recomputed import Recomputation, Watch, Watched
from streams.shard_log import Log
from streams.verify_published import Change, Compared, Part, changes_of

#: Records named of one customer and kind.
_NAMED: Final = 20


@dataclass
class Suspect:
    """A customer who differs. ``doubtful`` says that the order in which topics were read may be why."""

    what: str
    sentence: str
    doubtful: bool = False
    stored: Mapping[str, Any] = field(default_factory=dict)
    snapshot: str | None = None


@dataclass(frozen=True, slots=True)
class Explained:
    """What differs of a customer, and why."""

    what: str
    sentence: str
    why: Sequence[str]


@dataclass
class Explanation:
    """Customers who differ, by customer_id, and what is no difference after all."""

    found: list[tuple[str, Explained]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def explain(
    source: StateStore,
    log: Log,
    shard: Shard,
    clock: Clock,
    starts: dict[Role, int],
    *,
    targets: Sequence[ShardHeader],
    who: frozenset[int],
    parts: Sequence[Part],
    suspects: Mapping[str, Suspect],
    compared: Compared | None,
    ahead: Collection[tuple[Role, int]],
    policies: int = 1,
) -> Explanation:
    """Look closely at the customers with these XXH3-64. ``policies`` is how many have been in force."""
    watch = Watch(who)
    again = Recomputation(source, log, shard, clock, starts, watch, ahead)
    try:
        for header in targets:
            again.go_to(header)
    finally:
        again.close()
    told = changes_of(log, parts, shard, who)
    close = _Close(again, watch, told, shard, targets[-1], policies)
    result, reordered = Explanation(), 0
    known = {customer for customer in suspects if xxh3_64_intdigest(customer.encode()) in who}
    for customer in sorted({*known, *watch.records, *watch.changes, *told}):
        found = close.look(customer, suspects.get(customer), compared)
        if found is None:
            reordered += 1
        else:
            result.found += [(customer, each) for each in found]
    if reordered:
        result.notes.append(
            f"shard {shard.number}: the changes of {reordered} customers were decided in another order of the topics, "
            "or under an earlier policy, than can be computed now; they are complete, in order, and end in the same "
            "segments"
        )
    return result


class _Close:
    """A few customers of a shard, closely."""

    def __init__(
        self,
        again: Recomputation,
        watch: Watch,
        told: Mapping[str, list[Change]],
        shard: Shard,
        header: ShardHeader,
        policies: int,
    ) -> None:
        self._table = again.processor.table
        self._again, self._watch, self._told, self._shard = again, watch, told, shard
        self._header = header
        self._policies = policies

    def look(self, customer: str, suspect: Suspect | None, compared: Compared | None) -> list[Explained] | None:
        """What differs of a customer; None if it is only the order in which topics were read."""
        lost, never = set[bytes](), set[bytes]()
        disordered = False
        if compared is not None:
            lost, never = set(compared.lost.tolist()), set(compared.never.tolist())
            disordered = xxh3_64_intdigest(customer.encode()) in set(compared.disordered.tolist())
        missing = [each for each in self._watch.changes.get(customer, ()) if _ident(each) in lost]
        extra = [each for each in self._told.get(customer, ()) if _ident(each.change) in never]
        doubtful = suspect is None or suspect.doubtful
        history = bool(missing or extra) or (suspect is not None and suspect.what == "state")
        if doubtful and history and not disordered and self._consistent(customer, suspect):
            return None
        found: list[Explained] = []
        if suspect is not None and suspect.what != "snapshot":
            why = [*self._why(customer, suspect), *self._said(customer), *self._records(customer)]
            found.append(Explained(suspect.what, suspect.sentence, why))
        if missing:
            lines = [f"{_move(each)} {self._cause(customer, each)}, and is not on the topic" for each in missing]
            sentence = f"{len(missing)} changes are not published"
            found.append(Explained("lost", sentence, lines))
        if extra:
            lines = [f"{each.where}: {_move(each.change)} {self._denied(customer, each.change)}" for each in extra]
            sentence = f"{len(extra)} changes are published that nothing has caused"
            found.append(Explained("never_caused", sentence, [*lines, *self._records(customer)]))
        if disordered:
            order = ", ".join(str(each.change["sequence"]) for each in self._told.get(customer, ())[:_NAMED])
            found.append(Explained("order", "changes are not in the order of their sequence", [f"sequences: {order}"]))
        if suspect is not None and suspect.snapshot is not None:
            found.append(Explained("snapshot", suspect.snapshot, []))
        return found

    def _consistent(self, customer: str, suspect: Suspect | None) -> bool:
        """Whether what was published is another history of the same events: complete, and with the same end."""
        told, row = self._told.get(customer, []), self._table.index.get(customer)
        free = self._policies > 1 or sum(end > 0 for end in self._header.offsets.values()) > 1
        if not told or row is None or not free:
            return False
        labels: dict[str, str | None] = {}
        reached = told[0].change["sequence"] - 1
        for _, change in told:
            if change["sequence"] != reached + 1 or labels.get(change["dimension"], change["from"]) != change["from"]:
                return False
            reached, labels[change["dimension"]] = change["sequence"], change["to"]
            if change["event_id"] is not None and (customer, change["event_id"]) not in self._watch.places:
                return False
        stored = (suspect.stored if suspect else {}).get("sequence", reached)
        return bool(stored == reached) and all(self._label(row, name) == label for name, label in labels.items())

    def _label(self, row: int, name: str) -> str | None:
        table = self._table
        if name not in table.dimensions:
            return None
        d = table.dimensions.index(name)
        code = int(table.label[row, d])
        return None if code == NO_LABEL else table.labels[d][code]

    def _why(self, customer: str, suspect: Suspect) -> Iterator[str]:
        """What the stored row itself gives away."""
        mine = self._again.store
        row = mine.row(self._shard.number, customer)
        if not suspect.stored or row is None:
            return
        expected = facts(customer, row, mine.header(self._shard.number))
        records = self._watch.records.get(customer, [])
        forgotten = expected["hashes"] - suspect.stored["hashes"]
        for each in records:
            if each.event["hash"] in forgotten:
                yield f"{self._place(each)} is not among the events that the stored row remembers: it was not counted"
        foreign = len(suspect.stored["hashes"] - {each.event["hash"] for each in records})
        if foreign:
            yield f"the stored row remembers {foreign} events that are not on the topics"
        if not forgotten and not foreign and suspect.stored.get("orders") != expected["orders"]:
            yield "the stored row remembers the same last events: it was changed by something other than events"

    def _said(self, customer: str) -> Iterator[str]:
        """Where the last published label is not the stored one, or is not the one that follows from the topics."""
        told, row = self._told.get(customer, []), self._table.index.get(customer)
        if not told:
            return
        for name, label in told[-1].change["segments"].items():
            now = None if row is None else self._label(row, name)
            if now != label:
                last = f"{name} {label or 'none'} was published last, at {told[-1].where}"
                yield f"{last}; the topics say {now or 'none'}"

    def _records(self, customer: str) -> Iterator[str]:
        """The customer's records, by topic."""
        records = self._watch.records.get(customer, [])
        for role in ROLES:
            mine = [each for each in records if each.role == role]
            if mine:
                more = f" and {len(mine) - _NAMED} more" if len(mine) > _NAMED else ""
                covered = self._header.offsets.get(role, 0)
                places = ", ".join(self._place(each) for each in mine[:_NAMED])
                yield f"{role} are {places}{more}; the stored offset {covered} covers them"
        if not records:
            yield "there is no event of this customer on the topics"

    def _place(self, record: Watched) -> str:
        kind = Kind(record.event["kind"]).name.lower()
        topic = self._shard.topics[record.role]
        return f"{topic}/{self._shard.number}@{record.offset} ({kind} {record.event['event_id']})"

    def _cause(self, customer: str, change: Mapping[str, Any]) -> str:
        if change["event_id"] is None:
            return f"was caused by {change['cause']} at {change['effective_at']}"
        record = self._watch.places.get((customer, change["event_id"]))
        where = f"event {change['event_id']}" if record is None else self._place(record)
        return f"was caused by {where}"

    def _denied(self, customer: str, change: Mapping[str, Any]) -> str:
        """Why a published change cannot have been caused."""
        if change["event_id"] is None:
            return f"by {change['cause']} at {change['effective_at']} does not follow from this customer's events"
        record = self._watch.places.get((customer, change["event_id"]))
        if record is None:
            return f"names event {change['event_id']}, which is not on the topics or cannot be used"
        when = format_instant(record.event["occurred_at"])
        return f"names {self._place(record)} of {when}, which moves this customer otherwise or not at all"


def facts(customer: str, row: bytes, header: ShardHeader) -> dict[str, Any]:
    """What is known about a customer, by names for people. Raises StateError, or IndexError if a text is missing."""
    (group,) = unpack([(customer, row)], header.layouts)
    (known,) = described(group, header.values)
    names = group.layout.head.names or ()
    head = dict(zip(names, group.head[0].tolist(), strict=True))
    plain = {
        name.replace("_", " "): known[name]
        for name in ("signed_up_at", "first_purchase_at", "last_purchase_at", "orders", "refunds", "gross", "refunded")
    }
    if group.layout.format > 1:
        plain |= {"surveys": known["surveys"], "survey scores": head["score"] / 100}
    found = {**plain, "sequence": head["sequence"]}
    found |= {f"segment {name}": label for name, label in known["segments"].items()}
    kept = (*group.layout.attributes, *group.layout.numbers)
    found |= {f"attribute {name}": known["attributes"].get(name) for name in kept}
    weights, at = head.get("tally", ()), 0
    for name, width in group.layout.tallies.items():
        part, texts = weights[at : at + width], header.values.get(name, ())
        found[f"tally {name}"] = {texts[code]: weight for code, weight in enumerate(part) if weight}
        at += width
    found["hashes"] = frozenset(group.ids[0].tolist()) - {0}
    return found


def _ident(change: Mapping[str, Any]) -> bytes:
    # As NumPy gives back texts of fixed length: without zeros at the end.
    return bytes.fromhex(change["change_id"]).rstrip(b"\0")


def _move(change: Mapping[str, Any]) -> str:
    return f"{change['dimension']} {change['from'] or 'none'} → {change['to'] or 'none'} (number {change['sequence']})"
