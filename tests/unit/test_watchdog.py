"""Watchdog: what hangs is ended, what works is left alone, and stopping is bounded."""

import subprocess
import sys
import threading
import time

import pytest

from streams.watchdog import STALLED, Watchdog, end_process

#: Far more than anything here takes.
PATIENCE = 10.0


class Ending:
    """Stands for the end of the process, and remembers it."""

    def __init__(self) -> None:
        self.happened = threading.Event()
        self.calls: list[tuple[int, str]] = []

    def __call__(self, code: int, sentence: str) -> None:
        self.calls.append((code, sentence))
        self.happened.set()


def watchdog(last_progress: float | None, stall_after: float) -> tuple[Watchdog, Ending]:
    """A watchdog whose worker last made progress then, or always does (None)."""
    dog = Watchdog(time.monotonic if last_progress is None else lambda: last_progress, stall_after)
    ending = Ending()
    dog._end = ending
    return dog, ending


def test_a_worker_without_progress_is_ended() -> None:
    """The sentence tells for how long nothing happened, and the setting that bounds it; the code is EX_SOFTWARE."""
    dog, ending = watchdog(time.monotonic() - 100, 0.01)
    dog.start()
    assert ending.happened.wait(PATIENCE)
    dog.stop()
    assert ending.calls == [
        (70, "no progress for 100 s (SEGMENTER_STALL_AFTER is 0.01); ending, so that a fresh worker takes over")
    ]
    assert STALLED == 70


def test_an_event_loop_that_hangs_is_ended() -> None:
    """Shards may report progress as they like: if nobody beats, the loop is stuck."""
    dog, ending = watchdog(None, 0.01)
    dog.start()
    assert ending.happened.wait(PATIENCE)
    dog.stop()
    assert ending.calls[0][0] == STALLED


def test_a_worker_that_makes_progress_is_left_alone() -> None:
    """However often it is looked at, nothing happens; after stop() nobody looks."""
    dog, ending = watchdog(None, 0.004)
    looked = threading.Semaphore(0)

    def idle_seconds() -> float:
        looked.release()
        return 0.004

    dog.idle_seconds = idle_seconds  # type: ignore[method-assign]
    dog.start()
    for _ in range(5):
        assert looked.acquire(timeout=PATIENCE)
    dog.stop()
    assert not ending.calls


def test_idle_is_counted_from_the_older_of_beat_and_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both the event loop and the slowest shard must be alive."""
    now = 1000.0
    monkeypatch.setattr("streams.watchdog.time.monotonic", lambda: now)
    progress = 990.0
    dog = Watchdog(lambda: progress, 60)
    assert dog.idle_seconds() == 10
    now = 1030.0
    progress = 1030.0
    assert dog.idle_seconds() == 30
    dog.beat()
    assert dog.idle_seconds() == 0


def test_starting_counts_as_a_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that passed before the watch began does not count."""
    now = 1000.0
    monkeypatch.setattr("streams.watchdog.time.monotonic", lambda: now)
    dog, ending = watchdog(None, 60)
    now = 5000.0
    dog.start()
    dog.stop()
    assert dog.idle_seconds() == 0
    assert not ending.calls


def test_stopping_is_bounded() -> None:
    """A worker that does not end in time is ended, without an error: it was told to stop."""
    dog, ending = watchdog(None, 600)
    dog.start()
    dog.stop_within(0.02)
    assert ending.happened.wait(PATIENCE)
    assert ending.calls == [(0, "ended 0.02 s after it was told to stop; what was under way will be done again")]


def test_a_worker_that_stops_is_not_taken_for_stalled() -> None:
    """While it stops nobody watches its progress."""
    dog, ending = watchdog(time.monotonic() - 100, 0.01)
    dog.stop_within(600)
    dog._watch()
    assert not ending.calls


@pytest.mark.parametrize("code", [1, STALLED])
def test_the_end_of_the_process_is_at_once(code: int) -> None:
    """The sentence goes to standard error, the code is the process's, and no thread can hold it up."""
    program = (
        "import threading, time\n"
        "from streams.watchdog import end_process\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "try:\n"
        f"    end_process({code}, 'no progress, and ä')\n"
        "finally:\n"
        "    print('never')\n"
    )
    done = subprocess.run([sys.executable, "-X", "utf8", "-c", program], capture_output=True, timeout=60, check=False)
    assert done.returncode == code
    assert done.stderr.decode() == "segmenter: no progress, and ä\n"
    assert done.stdout == b""


def test_the_end_is_what_the_watchdog_does() -> None:
    """Nobody else is asked: what a watchdog ends with is end_process."""
    assert Watchdog(time.monotonic, 1)._end is end_process
