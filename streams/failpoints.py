"""Fail points: the steps around a commit at which a test can have a worker killed, as a crash would kill it.

Off, a point costs a call that does nothing, once a batch. ``SEGMENTER_FAIL_POINT=after-commit:17`` arms one: the
process sends itself SIGKILL when it reaches ``after-commit`` for the 17th time.
"""

from __future__ import annotations

import os
import signal
from typing import Final

#: In the order in which a batch passes them; the first when a shard is taken.
POINTS: Final = (
    "before-load",  # the shard is ours, its table not loaded
    "after-fold",  # the table has the batch, the store has not
    "after-commit",  # the store has it, nothing is published
    "after-publish",  # its messages are on their way, none need have arrived
    "before-acknowledge",  # the broker has all of them, the outbox still holds the entry
    "before-offsets",  # the outbox is empty, Kafka's commit is behind
)

_armed: tuple[str, int] | None = None


def arm(spec: str) -> None:
    """Arm ``<point>:<n>``; the last call counts."""
    global _armed
    point, _, times = spec.partition(":")
    _armed = point, int(times)


def reached(point: str) -> None:
    """The process is at ``point``."""
    global _armed
    if _armed is not None and _armed[0] == point:
        _armed = point, _armed[1] - 1
        if not _armed[1]:
            os.kill(os.getpid(), signal.SIGKILL)
