"""Events per second of one contender: alone, on its own fresh broker and Redis.

It is warmed up by the events that make the known customers known. Once those are done it is halted (SIGSTOP), every
event to be measured is produced, and it is let go (SIGCONT): the clock runs from there, with everything to do lying on
the broker, until all of it is done. Start-up, group join and producing are outside.

Done means that every change is on its topic; of the segmenter also that Redis holds the state and the offset of every
event, and that its outbox is empty.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from streams.embedded.server import OwnedProcess
from tests.bench.contenders import Contender
from tests.bench.servers import BenchError, Servers
from tests.bench.workload import PURCHASES, Move, Workload, produce
from tests.support.processes import cpu_seconds, memory

_DONE_WITHIN: Final = 900.0
#: Idle time after the warm-up, so that its last commit and acknowledgement are over.
_SETTLE: Final = 1.5
_POLL: Final = 0.02


@dataclass(frozen=True, slots=True)
class Run:
    """One contender's run. ``cpu`` are seconds of its processes, ``peak`` bytes of their memory at most.

    ``batch`` are records a commit, 0 where nobody says.
    """

    name: str
    workload: str
    workers: int
    events: int
    seconds: float
    cpu: float
    peak: int
    batch: float

    @property
    def rate(self) -> float:
        """Events per second."""
        return self.events / self.seconds

    @property
    def cpu_per_million(self) -> float:
        """Seconds of processor time per million events."""
        return self.cpu / self.events * 1e6


@dataclass(frozen=True, slots=True)
class Running:
    """A contender's process, and where it says what goes wrong."""

    name: str
    log: Path
    process: OwnedProcess

    def wait_for(self, done: Callable[[], bool], what: str) -> None:
        """Wait until something is so. Raises BenchError if it takes too long, or the process ends."""
        deadline = time.perf_counter() + _DONE_WITHIN
        while not done():
            if time.perf_counter() > deadline or not self.process.running:
                tail = self.log.read_text(errors="replace")[-2000:]
                raise BenchError(f"{self.name}: {what} did not happen\n{tail}")
            time.sleep(_POLL)


@contextmanager
def running(contender: Contender) -> Iterator[Running]:
    """Run a contender."""
    with tempfile.TemporaryDirectory(prefix="segmenter-bench-") as folder:
        log = Path(folder) / "process.log"
        with OwnedProcess(contender.command(), log) as process:
            yield Running(contender.name, log, process)


def measure(
    kind: type[Contender], workload: Workload, servers: Servers, *, turns: int = 1, workers: int = 1
) -> list[Run]:
    """Run a contender over a workload, in so many equal parts. Raises BenchError if what comes out is wrong.

    With several ``workers`` their processor time and their memory are added up.
    """
    with ExitStack() as stack:
        contenders = [kind(servers) for _ in range(workers)]
        contenders[0].prepare(workload)
        processes = [stack.enter_context(running(each)) for each in contenders]
        pids = [each.process.pid for each in processes]
        contender, wait_for = contenders[0], processes[0].wait_for
        if workers > 1:
            wait_for(lambda: all(each.shares(workers) for each in contenders), "sharing the shards")
        produce(servers.broker, PURCHASES, workload.known())
        known = 2 * workload.customers
        wait_for(lambda: contender.finished(workload.known_events, known), "the warm-up")
        start = servers.ends()
        runs = []
        for turn in range(turns):
            first, end = workload.events * turn // turns, workload.events * (turn + 1) // turns
            events, changes = workload.known_events + end, known + len(workload.moves(end))
            time.sleep(_SETTLE)
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            produce(servers.broker, PURCHASES, workload.measured(first, end))
            cpu, began = sum(map(cpu_seconds, pids)), time.perf_counter()
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            wait_for(partial(contender.finished, events, changes), "the last event")
            seconds, cpu = time.perf_counter() - began, sum(map(cpu_seconds, pids)) - cpu
            peak = sum(memory(pid, "VmHWM") for pid in pids)
            runs.append(Run(kind.name, workload.name, workers, end - first, seconds, cpu, peak, contender.mean_batch()))
        if contender.exact:
            _check(contender, servers, start, Counter(workload.moves()))
        return runs


def _check(contender: Contender, servers: Servers, start: list[int], moves: Counter[Move]) -> None:
    """Raise BenchError if a change is missing, or should not be there, or came twice though nothing failed."""
    found = Counter(
        (change["customer_id"], change["from"], change["to"], change["event_id"]) for change in servers.changes(start)
    )
    if found != moves:
        missing, extra = (moves - found).total(), (found - moves).total()
        raise BenchError(f"{contender.name}: {missing} changes are missing and {extra} should not be there")
