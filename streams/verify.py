"""The audit: a shard is computed again from its topics and compared with what is stored and what was published.

Stored rows are read in parts, each with the position of the shard at that moment; what is computed again is brought to
exactly this position before the part is compared. So workers may go on meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from xxhash import xxh3_64_intdigest

from models.counts import Count
from models.engines import ClusterPolicy
from models.errors import StateError
from models.events import ROLES, Role
from models.hashes import hashes_of
from models.instants import NEVER
from streams.commit import ShardHeader
from streams.errors import ConfigurationError, OffsetGap
from streams.ports import AuditedStore, Moment
from streams.processor import Clock, Shard
from streams.recomputed import Recomputation
from streams.shard_log import Log
from streams.silence import is_silent
from streams.verify_published import (
    Compared,
    compare_changes,
    letters_of,
    missing_letters,
    parts_of,
    published,
    since_text,
    stale_snapshots,
)
from streams.verify_reasons import Explained, Suspect, explain, facts
from streams.verify_report import Finding, ShardReport

#: Looks at a shard of which deadlines are still to be applied, and seconds between them.
_LOOKS, _PAUSE = 100, 0.1
#: Customers looked up at once.
_AT_ONCE: Final = 5_000
#: Customers of a shard who are looked at closely, at most.
_SUSPECTS: Final = 2_000
#: What follows from the order in which topics were read, and not from the events alone.
_HISTORY: Final = frozenset({"sequence"})


@dataclass(frozen=True, slots=True)
class OutputNames:
    """The topics that are compared."""

    changes: str
    snapshots: str
    dead_letters: str


@dataclass(frozen=True)
class Audit:
    """What all shards have in common. ``progress`` gets the events computed so far, of one shard after the other."""

    store: AuditedStore
    log: Log
    topics: Mapping[Role, str]
    partitions: int
    clock: Clock
    outputs: OutputNames
    customer: str | None = None
    pause: Callable[[float], None] = time.sleep
    progress: Callable[[int], None] = lambda events: None

    def verify(self, number: int) -> ShardReport:
        """Compare one shard. Raises ServiceUnavailable, StoreUnavailable or StateError."""
        shard = Shard(number, self.partitions, self.topics)
        report = ShardReport(number)
        header = self.store.header(number)
        if header.lineage:
            report.unverified = (
                "it holds customers from before the fleet was repartitioned, whose records are on other partitions"
            )
        elif is_silent(header.silence, header.offsets, NEVER if header.time is None else header.time):
            report.unverified = "it is being rebuilt; verify it when that is done"
        elif header.time is None and any(self.log.bounds(topic, number)[1] for topic in shard.topics.values()):
            report.unverified = "nothing of it is stored, and its topics have had records; start a worker"
        if header.time is None or report.unverified:
            return report
        try:
            starts, lost = self._starts(shard)
        except (OffsetGap, ConfigurationError) as error:
            report.unverified = str(error)
            return report
        again = _Shard(self, shard, starts, report)
        try:
            again.compare()
        except OffsetGap as error:
            report.unverified = str(error)
            report.findings.clear()
        finally:
            again.close()
        if lost and report.findings:
            report.unverified = f"{lost}; what differs cannot be told from what was in these records"
            report.findings.clear()
        elif lost:
            report.notes.append(f"{lost}; what is left gives the state as it is stored")
        return report

    def _starts(self, shard: Shard) -> tuple[dict[Role, int], str]:
        header = self.store.header(shard.number)
        starts: dict[Role, int] = {}
        lost = []
        for role in ROLES:
            first, end = self.log.bounds(shard.topics[role], shard.number)
            stored = header.offsets.get(role, 0)
            where = f"{shard.topics[role]}, partition {shard.number}"
            if stored > end:
                raise OffsetGap(
                    f"{where}: Redis stands at offset {stored}, and the log ends at {end}: the topic was recreated or "
                    "truncated, and there is nothing to compare with"
                )
            starts[role] = min(first, stored)
            if first:
                lost.append(f"{where}: Kafka has deleted everything below {first}")
        return starts, "; ".join(lost)


class _Shard:
    """One shard under comparison."""

    def __init__(self, audit: Audit, shard: Shard, starts: Mapping[Role, int], report: ShardReport) -> None:
        self._audit, self._shard, self._report = audit, shard, report
        self._starts = starts
        letters = letters_of(audit.log, audit.outputs.dead_letters, shard)
        roles = {topic: role for role, topic in shard.topics.items()}
        # The wall clock refused them, which nobody can compute again.
        self._ahead = {(roles[t], offset) for (t, offset), code in letters.codes.items() if code == "recorded_ahead"}
        self._again = Recomputation(
            audit.store, audit.log, shard, audit.clock, dict(starts), ahead=self._ahead, progress=audit.progress
        )
        self._suspects: dict[str, Suspect] = {}
        self._unsettled = False
        self._uncompared: set[str] = set()
        self._seen_upto = self._policies = 0

    def close(self) -> None:
        """Stop reading."""
        self._again.close()

    def compare(self) -> None:
        """Rows first, then what is counted, then what was published, then why it differs."""
        audit = self._audit
        cursor = 0
        while True:
            moment = self._moment(cursor)
            if moment.header.time is None:
                raise OffsetGap("the shard was emptied while it was compared; try again")
            self._compare_rows(moment)
            cursor = moment.cursor
            if not cursor:
                break
        for customers in self._unseen():
            moment = self._moment(None, customers)
            self._compare_rows(moment, customers)
        moment = self._moment(None)
        self._report.customers = len(self._again.processor.table)
        self._compare_segments(moment)
        self._report.events = self._again.ledger.events
        compared = self._compare_published(moment)
        self._note_policies()
        found = self._explain(compared)
        if audit.customer is not None:
            found = [each for each in found if each.customer == audit.customer]
            self._report.findings = [each for each in self._report.findings if each.customer == audit.customer]
        self._report.findings += found

    def _moment(self, cursor: int | None, customers: Sequence[str] = ()) -> Moment:
        """A look at the shard while nothing waits to be applied, and what is computed again brought there."""
        store, number = self._audit.store, self._shard.number
        moment = store.moment(number, cursor, customers)
        for _ in range(0 if self._unsettled else _LOOKS):
            header = moment.header
            if header.settled is None or header.time is None or header.settled >= header.time:
                break
            self._audit.pause(_PAUSE)
            moment = store.moment(number, cursor, customers)
        else:
            if not self._unsettled:
                self._unsettled = True
                self._report.unverified = (
                    f"deadlines that are due have not been applied for {_LOOKS * _PAUSE:g} s, so labels and changes "
                    "are not compared; start a worker, or wait until it has caught up"
                )
        self._again.go_to(moment.header)
        self._see_policies(moment.header)
        return moment

    def _unseen(self) -> Iterator[list[str]]:
        """Customers who were computed and whose stored rows have not been seen."""
        table = self._again.processor.table
        rows = table.rows
        missing = table.index.names(rows[~self._again.seen[rows]])
        for at in range(0, len(missing), _AT_ONCE):
            yield missing[at : at + _AT_ONCE]

    def _compare_rows(self, moment: Moment, asked: Sequence[str] = ()) -> None:
        again, header = self._again, moment.header
        table, scratch = again.processor.table, again.store
        mine = scratch.header(self._shard.number)
        there = set()
        for customer, row in moment.rows:
            there.add(customer)
            at = table.index.get(customer)
            if at is not None:
                again.seen[at] = True
            expected = scratch.row(self._shard.number, customer)
            if expected == row:
                continue
            if expected is None:
                self._suspect(customer, "unknown", "is stored, and no event on the topics says so")
                continue
            try:
                stored = facts(customer, row, header)
            except (StateError, IndexError) as error:
                self._suspect(customer, "damaged", f"the stored row cannot be read: {error}")
                continue
            differs = self._differences(stored, facts(customer, expected, mine))
            if differs:
                doubtful = differs.keys() <= _HISTORY
                self._suspect(customer, "state", "; ".join(differs.values()), doubtful=doubtful, stored=stored)
        for customer in asked:
            if customer not in there and customer in table.index:
                self._suspect(customer, "missing", "is not stored, and the topics have events")

    def _differences(self, stored: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, str]:
        """What differs of a customer, as sentences."""
        left_out = {f"segment {name}" for name in self._uncompared} | {"hashes"}
        if self._unsettled:
            left_out |= {name for name in expected if name.startswith("segment ")} | {"sequence"}
        # What only one of two layouts has room for is not compared: a row keeps its layout until it is written again.
        return {
            name: f"{name}: {_said(stored[name])} stored, {_said(value)} from the topics"
            for name, value in expected.items()
            if name not in left_out and name in stored and stored[name] != value
        }

    def _suspect(
        self,
        customer: str,
        what: str,
        sentence: str,
        *,
        doubtful: bool = False,
        stored: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        if self._audit.customer in (None, customer):
            self._suspects[customer] = Suspect(what, sentence, doubtful, stored)

    def _compare_segments(self, moment: Moment) -> None:
        if self._unsettled:
            return
        expected, stored = self._again.processor.segments(), moment.segments
        for name in sorted(expected.keys() | stored.keys()):
            one, other = stored.get(name, Count(0, 0)), expected.get(name, Count(0, 0))
            if one != other and name.partition(":")[0] not in self._uncompared:
                sentence = f"segment {name}: {_count(one)} stored, {_count(other)} from the topics"
                self._report.findings.append(Finding(self._shard.number, "segment", None, sentence))

    def _compare_published(self, moment: Moment) -> Compared | None:
        """See verify_published.py: the ends are seen after a moment, and all there is was committed by a later one."""
        audit, shard, again, report = self._audit, self._shard, self._again, self._report
        pending = moment.header.entries
        report.pending = len(pending)
        upto, refused = again.ledger.size, list(again.ledger.refused)
        again.ledger.mark()
        self._parts = parts_of(audit.log, audit.outputs.changes, shard)
        snapshots = parts_of(audit.log, audit.outputs.snapshots, shard)
        self._last = letters_of(audit.log, audit.outputs.dead_letters, shard)
        self._moment(None)
        self._compare_letters(refused, moment)
        if self._unsettled:
            return None
        if moment.header.silence.rebuild and self._policies > 1:
            report.notes.append(
                f"shard {shard.number} was rebuilt under a later policy than some of its changes were published under: "
                "they are not compared"
            )
            return None
        found = published(audit.log, self._parts, shard)
        compared = compare_changes(found, again.ledger, upto, pending)
        report.changes, report.repeated = compared.distinct, compared.repeated
        if found.kept_since is not None:
            report.notes.append(
                f"{audit.outputs.changes} is kept since {since_text(found.kept_since)}: shard {shard.number}'s earlier "
                "changes are not compared"
            )
        for where in found.foreign:
            sentence = f"{where} is no change that this version can read"
            report.findings.append(Finding(shard.number, "foreign", None, sentence))
        waiting = {c["customer_id"] for entry in pending for c in entry.changes} | {
            customer for entry in pending for customer in entry.forgotten
        }
        moving = np.concatenate([again.ledger.moving, hashes_of(list(waiting))])
        stale, report.snapshots = stale_snapshots(audit.log, snapshots, again.processor, moving)
        for each in stale:
            if audit.customer in (None, each.customer):
                suspect = self._suspects.setdefault(each.customer, Suspect("snapshot", each.sentence, doubtful=True))
                suspect.snapshot = each.sentence
        return compared

    def _compare_letters(self, refused: Sequence[tuple[Role, int]], moment: Moment) -> None:
        shard, report, letters = self._shard, self._report, self._last
        report.letters = len(letters.codes)
        if letters.kept_since is not None:
            topic, since = self._audit.outputs.dead_letters, since_text(letters.kept_since)
            report.notes.append(f"{topic} is kept since {since}: earlier letters are not compared")
        refused_ahead = {place for place, code in letters.codes.items() if code == "recorded_ahead"}
        if len(refused_ahead) > len(self._ahead):
            raise OffsetGap("a worker's clock has refused records while they were compared; try again")
        for topic, offset in missing_letters(letters, refused, moment.header.entries, shard):
            sentence = f"{topic}/{shard.number}@{offset} cannot be used, and there is no dead letter of it"
            report.findings.append(Finding(shard.number, "dead_letter", None, sentence))
        known = {(shard.topics[role], offset) for role, offset in self._again.ledger.refused}
        first = {shard.topics[role]: start for role, start in self._starts.items()}
        for topic, offset in sorted(place for place in letters.codes.keys() - known if place[1] >= first[place[0]]):
            sentence = (
                f"{topic}/{shard.number}@{offset} was refused ({letters.codes[topic, offset]}), and it can be used"
            )
            report.findings.append(Finding(shard.number, "dead_letter", None, sentence))

    def _see_policies(self, header: ShardHeader) -> None:
        """What cannot be known of the past: when a policy that is in force no longer was taken."""
        if header.activation == self._seen_upto:
            return
        self._seen_upto = header.activation
        self._policies = self._again.policies(header.activation)
        self._uncompared = set(self._by_history()) if self._policies > 1 else set()

    def _note_policies(self) -> None:
        if self._policies > 1:
            names = ", ".join(sorted(self._uncompared))
            labels = f"; labels of {names} are not compared, as they depend on those before" if names else ""
            self._report.notes.append(
                f"shard {self._shard.number}: other policies were in force before, from when on is not stored{labels}"
            )

    def _by_history(self) -> list[str]:
        """Dimensions of which a label depends on those before."""
        policy = self._again.processor.policy
        return [
            name
            for name, engine in policy.dimensions.items()
            if isinstance(engine, ClusterPolicy) or getattr(engine, "dwell", None) is not None
        ]

    def _explain(self, compared: Compared | None) -> list[Finding]:
        """Why what differs does, from another computation that looks at these customers alone."""
        suspects = sorted(self._suspects, key=lambda customer: self._suspects[customer].doubtful)
        who = {xxh3_64_intdigest(customer.encode()): customer for customer in suspects}
        if compared is not None:
            for each in (compared.lost_who, compared.never_who, compared.disordered):
                who |= {int(one): who.get(int(one), "") for one in each.tolist()}
        if not who:
            return []
        if len(who) > _SUSPECTS:
            self._report.notes.append(
                f"shard {self._shard.number}: {len(who)} customers differ; {_SUSPECTS} of them are looked at closely"
            )
        explained = explain(
            self._audit.store, self._audit.log, self._shard, self._audit.clock, dict(self._starts),
            targets=self._again.targets, who=frozenset(list(who)[:_SUSPECTS]), parts=self._parts,
            suspects=self._suspects, compared=compared, ahead=self._ahead, policies=self._policies,
        )  # fmt: skip
        self._report.notes += explained.notes
        if len(who) > _SUSPECTS and not explained.found:
            self._report.unverified = f"{len(who)} customers differ, too many to say of each whether it is right"
        return [self._finding(customer, each) for customer, each in explained.found]

    def _finding(self, customer: str, each: Explained) -> Finding:
        return Finding(self._shard.number, each.what, customer, each.sentence, each.why)


def _said(value: object) -> str:
    return "none" if value in (None, NEVER) else str(value)


def _count(count: Count) -> str:
    return f"{count.customers} customers, {count.orders} orders, revenue {count.revenue}"
