"""Inbox: what was fetched of one shard's topics, merged by time into batches to fold.

Topics are merged by (instant under the shard's clock, topic rank, offset). While a topic may still deliver something
earlier, nothing later than its last record is handed out: a purchase that waits to be read must not be overtaken.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from models.batch import EventBatch, Refusal, merge_order
from models.events import ROLES, Role
from models.instants import FOREVER, NEVER
from streams.commit import Range
from streams.processor import Clock


@dataclass(slots=True)
class _Pending:
    """Validated and not yet folded records of one topic; ``range`` is what they cover."""

    range: Range
    batch: EventBatch
    refusals: list[Refusal] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Batch:
    """Records to fold together, what could not be used among them, and the offsets they cover."""

    events: EventBatch
    refusals: list[Refusal]
    ranges: Mapping[Role, Range]


class Beyond(NamedTuple):
    """Records could be taken, but the first of them, at ``instant``, lies at or beyond where time must stop."""

    instant: int


class Inbox:
    """Fetched records of one shard, by topic."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pending: dict[Role, list[_Pending]] = {}

    def put(self, role: Role, covered: Range, events: EventBatch, refusals: list[Refusal]) -> None:
        """Add a fetch, which must begin where the topic's last one ended."""
        self._pending.setdefault(role, []).append(_Pending(covered, events, refusals))

    def clear(self) -> None:
        """Forget everything."""
        self._pending.clear()

    def size(self, role: Role) -> int:
        """Records of a topic that wait."""
        return sum(len(each.batch) for each in self._pending.get(role, ()))

    @property
    def roles(self) -> Set[Role]:
        """Topics with anything waiting."""
        return self._pending.keys()

    def take(
        self, most: int, undrained: Set[Role], horizon: int = FOREVER, until: int = FOREVER
    ) -> Batch | Beyond | None:
        """Up to about ``most`` records that nothing still to come can precede; None if there are none.

        What is still to come: anything from a topic of ``undrained``, and from the others whatever was produced
        after ``horizon`` (microseconds), when they were last seen to be read to their end. Time stops before
        ``until``.
        """
        if not self._pending or (undrained - self._pending.keys()):
            return None
        if len(self._pending) == 1 and horizon == FOREVER:
            taken = self._take_one(most, until)
            if taken is not None:
                return taken
        return self._take_merged(most, undrained, horizon, until)

    def _take_one(self, most: int, until: int) -> Batch | None:
        """Whole fetches of the only topic with anything waiting, if time does not stop within them."""
        ((role, parts),) = self._pending.items()
        taken, size = 0, 0
        while taken < len(parts) and (not taken or size + len(parts[taken].batch) <= most):
            size += len(parts[taken].batch)
            taken += 1
        chosen, rest = parts[:taken], parts[taken:]
        if until < FOREVER and any(self._latest(part) >= until for part in chosen):
            return None
        if rest:
            self._pending[role] = rest
        else:
            del self._pending[role]
        refusals = [refusal for part in chosen for refusal in part.refusals]
        covered = Range(chosen[0].range.start, chosen[-1].range.end)
        return Batch(EventBatch.concat([part.batch for part in chosen]), refusals, {role: covered})

    def _latest(self, part: _Pending) -> int:
        return int(self._clock.instants(part.batch).max(initial=NEVER))

    def _take_merged(self, most: int, undrained: Set[Role], horizon: int, until: int) -> Batch | Beyond | None:
        roles = [role for role in ROLES if role in self._pending]
        whole = {role: self._joined(role) for role in roles}
        batches = [whole[role].batch for role in roles]
        order = merge_order(batches, [self._clock.instants(batch) for batch in batches])
        every = EventBatch.concat(batches)
        rank = every.rank[order]
        instants = self._clock.instants(every)[order]
        beyond = np.flatnonzero(instants >= until)
        unsure = np.flatnonzero(every.recorded_at[order] > horizon)
        cut = min(most, int(unsure[0]) if len(unsure) else len(order))
        for role in undrained:
            last = np.flatnonzero(rank == ROLES.index(role))
            cut = min(cut, int(last[-1]) + 1 if len(last) else 0)
        if cut and len(beyond) and beyond[0] < cut:
            cut = int(beyond[0])
            if not cut:
                return Beyond(int(instants[0]))
        ranges: dict[Role, Range] = {}
        refusals: list[Refusal] = []
        for role in roles:
            part = whole[role]
            used = int((rank[:cut] == ROLES.index(role)).sum())
            end = part.range.end if used == len(part.batch) else int(part.batch.offset[used])
            refusals += [each for each in part.refusals if each.record.offset < end]
            if end > part.range.start:
                ranges[role] = Range(part.range.start, end)
            if used == len(part.batch):
                del self._pending[role]
            else:
                kept = [each for each in part.refusals if each.record.offset >= end]
                rest = part.batch.take(np.arange(used, len(part.batch)))
                self._pending[role] = [_Pending(Range(end, part.range.end), rest, kept)]
        if not ranges:
            return None
        return Batch(every.take(order[:cut]), refusals, ranges)

    def _joined(self, role: Role) -> _Pending:
        parts = self._pending[role]
        if len(parts) > 1:
            covered = Range(parts[0].range.start, parts[-1].range.end)
            batch = EventBatch.concat([part.batch for part in parts])
            parts = [_Pending(covered, batch, [refusal for part in parts for refusal in part.refusals])]
        return parts[0]
