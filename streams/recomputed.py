"""A shard computed once more from its topics, beside the stored one and step by step with it.

The processor is the workers'; its store is a scratch pad that is thrown away. Activations are those of the real store,
and are seen by the shard's time at which its worker took them, as far as that is known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from models.events import ROLES, Role
from models.hashes import hashes_of
from models.instants import FOREVER, NEVER
from streams.activations import Activations
from streams.commit import ShardCommit, ShardHeader
from streams.errors import OffsetGap
from streams.inbox import Batch
from streams.ports import StateStore
from streams.processor import BatchProcessor, Clock, Shard, Step
from streams.shard_log import Folder, Log
from streams.store.memory import MemoryStore

#: A change_id as bytes; compared as text is, which all are equally long for.
ID: Final = np.dtype("S16")


class Scratch(MemoryStore):
    """Rows that have been computed, and as many of the activations as the shard may see."""

    def __init__(self) -> None:
        super().__init__()
        self.visible = 1

    def latest_activation(self) -> int:
        """See StateStore."""
        return min(self.visible, super().latest_activation())

    def commit(self, commit: ShardCommit) -> None:
        """See StateStore; what there is to publish is kept by whoever asked for it."""
        super().commit(replace(commit, entry=None))


class _Upcoming:
    """See Upcoming in shard_log.py. ``since`` says of activations at which time of the shard they were taken."""

    def __init__(self, store: Scratch, activations: Activations) -> None:
        self._store = store
        self._activations = activations
        self.target = 1
        self.since: dict[int, int] = {}

    @property
    def instant(self) -> int:
        following = self._store.visible + 1
        if following > self.target:
            return FOREVER
        known = [at for number, at in self.since.items() if number >= following]
        if following not in self.since:
            activation = self._activations[following]
            known.append(activation.instant if activation.cause == "policy" else NEVER)
        return min(known)

    def reveal(self) -> None:
        self._store.visible += 1
        self._activations.refresh()


@dataclass
class Ledger:
    """Every change that was caused, in order: its id, its customer's XXH3-64, its sequence; and what was refused."""

    _ids: list[NDArray[np.bytes_]] = field(default_factory=list)
    _who: list[NDArray[np.uint64]] = field(default_factory=list)
    size: int = 0
    refused: list[tuple[Role, int]] = field(default_factory=list)
    events: int = 0
    #: Whose labels have moved, and who was forgotten, since ``mark``; None before it.
    _moving: list[NDArray[np.uint64]] | None = None

    def mark(self) -> None:
        """Note from now on who moves."""
        self._moving = []

    @property
    def moving(self) -> NDArray[np.uint64]:
        """Who has moved since ``mark``, also into segments that are not published."""
        return np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *(self._moving or ())]))

    def add(self, step: Step, batch: Batch | None) -> None:
        """Note what a step did."""
        outcome = step.outcome
        refusals = [*(batch.refusals if batch else ()), *outcome.overflowed]
        self.refused += [(each.role, each.record.offset) for each in refusals]
        self.events += 0 if batch is None else len(batch.events)
        who = hashes_of(outcome.published.customers)
        if self._moving is not None:
            self._moving += [who, hashes_of(outcome.forgotten)]
        if not len(outcome.published):
            return
        told = np.ones(len(outcome.published), dtype=np.bool_)
        told[list(outcome.withheld)] = False
        ids = np.frombuffer(bytes.fromhex("".join(outcome.published.ids)), dtype=ID)[told]
        self._ids.append(ids)
        self._who.append(who[told])
        self.size += len(ids)

    @property
    def ids(self) -> NDArray[np.bytes_]:
        """The ids, 16 bytes each."""
        self._ids = [np.concatenate([np.empty(0, dtype=ID), *self._ids])]
        return self._ids[0]

    @property
    def who(self) -> NDArray[np.uint64]:
        """Whose they are."""
        self._who = [np.concatenate([np.empty(0, dtype=np.uint64), *self._who])]
        return self._who[0]


@dataclass(frozen=True, slots=True)
class Watched:
    """A record of a customer who is looked at closely."""

    role: Role
    offset: int
    event: dict[str, Any]


@dataclass
class Watch:
    """What happened to a few customers, by their XXH3-64: their records, and the changes these and time caused."""

    who: frozenset[int]
    records: dict[str, list[Watched]] = field(default_factory=dict)
    changes: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    #: ``event_id`` → record, by customer.
    places: dict[tuple[str, str], Watched] = field(default_factory=dict)

    def add(self, step: Step, batch: Batch | None) -> None:
        """Note what a step did to them."""
        if batch is not None:
            events = batch.events
            for i, customer in enumerate(events.customer):
                if customer and xxh3_64_intdigest(customer.encode()) in self.who:
                    seen = Watched(
                        ROLES[events.rank[i]],
                        int(events.offset[i]),
                        {
                            "event_id": events.event_id[i],
                            "kind": int(events.kind[i]),
                            "occurred_at": int(events.occurred_at[i]),
                            "amount": int(events.amount[i]),
                            "hash": int(events.event_hash[i]),
                        },
                    )
                    self.records.setdefault(customer, []).append(seen)
                    self.places.setdefault((customer, events.event_id[i]), seen)
        outcome = step.outcome
        withheld = set(outcome.withheld)
        for i in np.isin(hashes_of(outcome.published.customers), list(self.who)).nonzero()[0].tolist():
            change: Any = outcome.published[i]
            if i not in withheld:
                self.changes.setdefault(change["customer_id"], []).append(change)


class Recomputation:
    """One shard, computed again. ``go_to`` brings it to where the stored one was at some moment, in ascending order."""

    def __init__(
        self,
        source: StateStore,
        log: Log,
        shard: Shard,
        clock: Clock,
        starts: dict[Role, int],
        watch: Watch | None = None,
        ahead: Collection[tuple[Role, int]] = (),
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._progress = progress
        self._source = source
        self.store = Scratch()
        self.store.copy_activations(source)
        self._activations = activations = Activations(self.store, _first_policy(source))
        silence = source.header(shard.number).silence
        if silence.rebuild:
            # A shard that is rebuilt begins with the policy that it had.
            self.store.visible = source.latest_activation()
            activations.refresh()
            self.store.visible = activations.before_policy(silence.activation)
            activations.refresh()
        self.ledger = Ledger()
        self._watch = watch
        self.processor = BatchProcessor(shard, activations, self.store, clock)
        header = self.processor.load(starts, {})
        self._upcoming = _Upcoming(self.store, activations)
        #: Rows of which the stored counterpart has been seen.
        self.seen = np.zeros(0, dtype=np.bool_)
        self._table = self.processor.table
        self.targets: list[ShardHeader] = []
        self._folder = Folder(
            self.processor, header, log, taken=self._taken, upcoming=self._upcoming, ahead=ahead
        )  # fmt: skip

    def close(self) -> None:
        """Stop reading."""
        self._folder.close()

    def _taken(self, step: Step, batch: Batch | None) -> None:
        table = self.processor.table
        (self._watch or self.ledger).add(step, batch)
        if self._progress is not None:
            self._progress(self.ledger.events)
        if table is not self._table:
            # Loaded again under another policy: its rows lie elsewhere.
            self._table, self.seen = table, np.zeros(0, dtype=np.bool_)
        missing = table.capacity - len(self.seen)
        if missing > 0:
            self.seen = np.concatenate([self.seen, np.zeros(missing, dtype=np.bool_)])
        outcome = step.outcome
        if outcome.erased:
            self.seen[np.setdiff1d(outcome.before.rows, outcome.dirty)] = False

    def policies(self, upto: int) -> int:
        """How many policies have been activated up to an activation's number."""
        return sum(self._activations[number].cause == "policy" for number in range(1, upto + 1))

    def go_to(self, header: ShardHeader) -> None:
        """Fold what the stored shard had folded at a moment, and let its time pass to what it was."""
        if header.time is None:
            return
        before = self.targets[-1].offsets if self.targets else {}
        if any(header.offsets.get(role, 0) < offset for role, offset in before.items()):
            raise OffsetGap("the shard was set back while it was compared; try again")
        if not self.targets or self.targets[-1].commits != header.commits:
            self.targets.append(replace(header, entries=(), layouts={}, values={}))
        upcoming = self._upcoming
        if header.activation > upcoming.target:
            self.store.copy_activations(self._source)
            upcoming.target = header.activation
        upcoming.since[header.activation] = header.since
        self._folder.fold_to(header.offsets)
        self._folder.pass_to(header.time)
        while self.store.visible < upcoming.target:
            upcoming.reveal()
        self._folder.follow()


def _first_policy(source: StateStore) -> Any:
    from models.policy import parse_policy

    text = source.policy_text(source.activation(1).policy_version)
    return parse_policy(text or "")
