"""What may happen to the clock of a worker's machine."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from models.instants import SECOND, format_instant, parse
from streams.errors import ServiceUnavailable
from tests.faults.input_faults import nothing, purchase
from tests.faults.run import Lane, Outcome, Run, Servers, fault, servers
from tests.support.commands import ROOT, eventually
from tests.support.topics import CHANGES, Topics

#: Where distributions put the library that gives a process another clock.
_LIBRARIES = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib*/faketime/libfaketimeMT.so.1")
HOUR = 3600
#: Python sleeps until an instant of the monotonic clock, of which libfaketime 0.9.10 makes an invalid one.
_SLEEP = """\
import select, time
time.sleep = lambda seconds: select.select([], [], [], seconds) and None
"""
LAPSE_AFTER = 6
#: Seconds for which the clock stays as it is.
EACH = 4.0
#: How late a change may be published, on a busy machine.
SOON = 5.0


def _library() -> str:
    found = [path for pattern in _LIBRARIES for path in Path("/").glob(pattern.removeprefix("/"))]
    if not found:
        raise ServiceUnavailable("there is no libfaketime; install the package faketime")
    return str(found[0])


@servers("fake clock")
def _faketime(lane: Lane) -> Iterator[Servers]:
    """Those that all share, on a machine that can give a process another clock."""
    _library()
    yield lane.shared.servers


class FakeClock:
    """A wall clock for workers that can be set while they run; what they measure durations with goes on."""

    def __init__(self, run: Run) -> None:
        self._file = run.folder / "clock"
        self.set(0)
        (run.folder / "sitecustomize.py").write_text(_SLEEP)
        self.settings: dict[str, Any] = {
            "LD_PRELOAD": _library(),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "PYTHONPATH": f"{run.folder}:{ROOT}",
        }

    def set(self, seconds: int) -> None:
        """Be so far ahead of the true clock."""
        self._file.write_text(f"{seconds:+d}\n")


def _start(run: Run) -> FakeClock:
    clock = FakeClock(run)
    for _ in range(2):
        run.start_worker(ready=False, **clock.settings)
    for worker in run.workers:
        worker.ready()
    return clock


@fault("wall clock set an hour back and forward, event clock", group="clock", servers="fake clock", workers=0)
def stepped(run: Run) -> None:
    """Time comes from the events: nobody notices."""
    run.hold()
    clock = _start(run)
    run.release()
    steps = run.rng.sample((-HOUR, HOUR), 2)
    run.until_produced(run.rng.uniform(0.1, 0.4))
    run.mark()
    clock.set(steps[0])
    run.until_produced(run.rng.uniform(0.5, 0.8))
    clock.set(steps[1])


@fault(
    "wall clock set an hour back and forward, ingestion clock",
    group="clock",
    servers="fake clock",
    workers=0,
    load=nothing,
    settings={"SEGMENTER_CLOCK": "ingestion"},
)
def stepped_under_the_ingestion_clock(run: Run) -> Outcome:
    """No record is refused because a worker's clock is behind, and nobody lapses early because it is ahead."""
    policy = run.folder / "policy.toml"
    policy.write_text(
        'version = 1\n[dimensions.lifecycle]\nengine = "lifecycle"\npotential_after = "2s"\n'
        f'lapse_after = "{LAPSE_AFTER}s"\n'
    )
    run.settings["SEGMENTER_POLICY"] = str(policy)
    clock = _start(run)
    steps = [0, *run.rng.sample((-HOUR, HOUR), 2), 0]
    with Arrivals(run) as arrivals:
        customers = 0
        for step in steps:
            clock.set(step)
            until = time.monotonic() + EACH
            while time.monotonic() < until:
                customer = f"c-{customers}"
                at = format_instant(int(time.time() * SECOND))
                run.topics.send("purchases", json.dumps(purchase(customer, at, 1)).encode(), customer.encode())
                customers += 1
                time.sleep(0.05)
        run.topics.flush()
        wanted = 2 * customers
        eventually(lambda: run.topics.size(CHANGES) >= wanted, LAPSE_AFTER + 20, f"all {customers} have lapsed")
        eventually(lambda: len(arrivals.late) >= wanted, 10, "every change was read")
    letters = run.topics.dead_letters()
    assert not letters, f"{len(letters)} records were refused, such as {letters[0]}"
    told = Counter((change["from"], change["to"], change["cause"]) for change in run.topics.changes())
    assert told == {(None, "new", "purchase"): customers, ("new", "lapsed", "time"): customers}, told
    early, late = min(arrivals.late), max(arrivals.late)
    assert early >= 0, f"a change was published {-early:.2f} s before its time"
    assert late < SOON, f"a change was published {late:.2f} s late"
    for worker in run.workers:
        run.terminate(worker)
    return Outcome(f"{customers} customers bought and lapsed, at most {late:.2f} s late, none early")


class Arrivals:
    """Reads the changes as they come: by how many seconds, by the true clock, each is later than its effective_at."""

    def __init__(self, run: Run) -> None:
        self.late: list[float] = []
        self._topics = Topics(run.kafka.address, prefix=f"{run.settings['SEGMENTER_GROUP']}.")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, name="arrivals", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _read(self) -> None:
        reached: dict[int, int] = {}
        with self._topics as topics:
            while not self._over.wait(0.05):
                for record in topics.read(CHANGES, reached):
                    reached[record.partition] = record.offset + 1
                    change = json.loads(record.value or b"null")
                    self.late.append(time.time() - parse(change["effective_at"]) / SECOND)
