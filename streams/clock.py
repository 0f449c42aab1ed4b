"""The wall clock without its steps: what lets time pass on shards that have nothing to read.

A clock that is set an hour forward would make customers lapse an hour early, and nothing takes that back. So a step is
not followed before it has lasted for minutes; until then time goes on at the pace of the monotonic clock, which nobody
sets. Slewing, as time services do it all the time, is no step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from models.instants import SECOND
from streams import metrics

log = logging.getLogger(__name__)

#: Seconds by which the clocks may drift apart between two looks without that being a step.
_SLEWED: Final = 1.0
#: Seconds after which a step that is still there is followed.
_LASTING: Final = 300.0


def _since_boot() -> float:
    """Seconds that also pass while the machine sleeps, where the system can tell."""
    source = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(source)


class SteadyClock:
    """``wall`` gives Unix seconds, ``steady`` seconds since any moment. Must be looked at every few seconds."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = _since_boot) -> None:
        self._wall = wall
        self._steady = steady
        self._offset = wall() - steady()
        self._stepped_at: float | None = None
        self._step = 0.0

    def now(self) -> float:
        """The present as Unix seconds."""
        return self._look(self._wall())

    def _look(self, wall: float) -> float:
        steady = self._steady()
        step = wall - steady - self._offset
        if abs(step) < _SLEWED:
            self._offset += step
            self._stepped_at = None
        elif self._stepped_at is None or abs(step - self._step) >= _SLEWED:
            self._stepped_at, self._step = steady, step
            log.warning(
                "the machine's clock was set by %+.1f s; going on without that step, which is followed if it is still "
                "there in %d s",
                *(step, _LASTING),
                extra={"action": "clock_stepped", "seconds": step},
            )
        elif steady - self._stepped_at >= _LASTING:
            log.warning("following the clock's step of %+.1f s", step, extra={"action": "clock_followed"})
            self._offset += step
            self._stepped_at, step = None, 0.0
        metrics.CLOCK_STEP.set(0.0 if self._stepped_at is None else step)
        return steady + self._offset

    def instant(self) -> int:
        """The present in microseconds."""
        return int(self.now() * SECOND)

    def latest(self) -> int:
        """The present in microseconds by this clock or by the machine's, whichever is later."""
        wall = self._wall()
        return int(max(wall, self._look(wall)) * SECOND)

    def noted(self, wall: float) -> float:
        """A moment of the recent past that was noted by the wall clock (Unix seconds), by this clock."""
        present = self._wall()
        return self._look(present) - max(0.0, present - wall)


#: The process's clock.
CLOCK: Final = SteadyClock()
