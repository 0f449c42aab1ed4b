"""What a shard that is rebuilt has told before and keeps to itself: see Silence in streams/commit.py.

Until a shard has read again what lay below its offsets, it takes no other policy: what that changes is to be told, and
is told of where customers are now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.batch import EventBatch, Refusal
from models.events import ERASURE, ROLES, Role
from models.outcome import Outcome
from models.wire import LATE, NO_EVENT, Changes
from streams.commit import Silence


def is_silent(silence: Silence, offsets: Mapping[Role, int], time: int) -> bool:
    """Whether a shard that has read up to ``offsets`` and is at ``time`` has not come yet to where it was."""
    unread = any(offsets.get(role, 0) < told for role, told in silence.offsets.items())
    return unread or time < silence.until


def heard(outcome: Outcome, silence: Silence, batch: EventBatch | None, activation: int) -> Outcome:
    """What of an outcome has not been told: it stays as it is for the state, less for the outbox.

    ``activation`` is the number of the one in force.
    """
    new = None if batch is None else batch.offset >= _told(silence)[batch.rank]
    chosen = _is_new(outcome.changes, silence, new, activation)
    if chosen.all() and not outcome.forgotten:
        return outcome
    columns: list[Any] = [column[chosen] for column in outcome.changes]
    place = np.cumsum(chosen) - 1
    forgotten: Sequence[str] = ()
    if batch is not None and new is not None and outcome.forgotten:
        erased = {batch.customer[i] for i in np.flatnonzero(new & (batch.kind == ERASURE)).tolist()}
        forgotten = [customer for customer in outcome.forgotten if customer in erased]
    return replace(
        outcome,
        changes=Changes(*columns),
        published=outcome.published.where(chosen),
        withheld=[int(place[i]) for i in outcome.withheld if chosen[i]],
        forgotten=list(forgotten),
    )


def heard_refusals(refusals: Sequence[Refusal], silence: Silence) -> list[Refusal]:
    """Refusals of records that were not refused before."""
    return [each for each in refusals if each.record.offset >= silence.offsets.get(each.role, 0)]


def _told(silence: Silence) -> NDArray[np.int64]:
    """The offset below which records have been told, by the rank of their topic."""
    return np.array([silence.offsets.get(role, 0) for role in ROLES], dtype=np.int64)


def _is_new(changes: Changes, silence: Silence, new: NDArray[np.bool_] | None, activation: int) -> NDArray[np.bool_]:
    """Whether each change has a cause that was not there before: a record, a deadline, an activation."""
    by_activation = changes.cause > LATE
    # What an activation moves is due just before the instant at which it is in force.
    due = changes.effective_at - by_activation
    chosen: NDArray[np.bool_] = (due >= silence.until) | (by_activation & (activation > silence.activation))
    if new is not None:
        by_event = changes.event != NO_EVENT
        chosen[by_event] = new[changes.event[by_event]]
    return chosen
