"""Watchdog: a thread that ends the process when the worker stopped making progress, or stopping takes too long.

Kafka clients can hang for good after a fault of the broker or a rebalance. A worker that is ended loses nothing: its
supervisor starts another, which reads from what Redis holds. So the way out of every hang is the same.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

#: Exit code of a worker that ended itself because it stalled (EX_SOFTWARE of sysexits.h).
STALLED: Final = 70


def end_process(code: int, sentence: str) -> None:
    """Say why, and end at once, whatever any thread is doing."""
    sys.stderr.write(f"segmenter: {sentence}\n")
    sys.stderr.flush()
    logging.shutdown()
    os._exit(code)


class Watchdog:
    """``last_progress`` gives the monotonic time of the last progress; the event loop must call ``beat``."""

    def __init__(self, last_progress: Callable[[], float], stall_after: float) -> None:
        self._last_progress = last_progress
        self._stall_after = stall_after
        self._last_beat = time.monotonic()
        self._stop = threading.Event()
        self._end: Callable[[int, str], None] = end_process

    def start(self) -> None:
        """Begin to watch."""
        self._last_beat = time.monotonic()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        """The event loop is alive."""
        self._last_beat = time.monotonic()

    def idle_seconds(self) -> float:
        """How long ago the worker last made progress, or its event loop last answered."""
        return time.monotonic() - min(self._last_beat, self._last_progress())

    def stop(self) -> None:
        """Watch no longer."""
        self._stop.set()

    def stop_within(self, seconds: float) -> None:
        """End the process after ``seconds``, if it has not ended by itself by then."""
        self.stop()

        def force() -> None:
            log.warning("stopping took longer than %.1f s; ending at once, nothing is lost", seconds)
            self._end(0, f"ended {seconds:g} s after it was told to stop; what was under way will be done again")

        timer = threading.Timer(seconds, force)
        timer.daemon = True
        timer.start()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._stall_after / 4)):
            idle = self.idle_seconds()
            if idle > self._stall_after:
                self._end(
                    STALLED,
                    f"no progress for {idle:.0f} s (SEGMENTER_STALL_AFTER is {self._stall_after:g}); "
                    "ending, so that a fresh worker takes over",
                )
                return
