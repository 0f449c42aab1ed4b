"""A selection of the faults for ``make test``; all of them run with ``make faults`` (see docs/RELIABILITY.md).

The runs happen at the same time, a few at once. Each chosen fault and each state happens once.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from streams.errors import ServiceUnavailable
from tests.faults.catalogue import FAULTS
from tests.faults.run import Fault, Lane, Result, Shared, perform
from tests.support.real_kafka import KafkaUnavailable

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

LANES = 3


class Task(NamedTuple):
    """A run to be done; ``name`` is its fault's."""

    name: str
    seed: int

    @property
    def fault(self) -> Fault:
        """The fault as it is in the selection."""
        fault = FAULTS[self.name]
        return replace(fault, **fault.short)


TASKS = [Task(fault.name, 1) for fault in FAULTS.values() if fault.selected]


class Runs:
    """Does the runs in lanes; the first lane has a Kafka that may be harmed."""

    def __init__(self, tasks: list[Task], folder: Path) -> None:
        self.results: dict[Task, Future[Result]] = {task: Future() for task in tasks}
        self._waiting = list(tasks)
        self._taking = threading.Lock()
        self._folder = folder

    def work(self, lane: Lane) -> None:
        """Do runs until there are no more for this lane."""
        with lane:
            while (task := self._next(lane)) is not None:
                result = self.results[task]
                try:
                    result.set_result(perform(task.fault, task.seed, lane, self._folder))
                except BaseException as error:
                    result.set_exception(error)

    def cancel(self) -> None:
        """Begin no more."""
        with self._taking:
            for task in self._waiting:
                self.results[task].cancel()
            self._waiting.clear()

    def _next(self, lane: Lane) -> Task | None:
        with self._taking:
            harmless = [task for task in self._waiting if task.fault.servers in ("shared", "redis")]
            harmful = [task for task in self._waiting if task not in harmless]
            fit = [*harmful, *harmless] if lane.number == 0 else harmless
            if not fit:
                return None
            self._waiting.remove(fit[0])
            return fit[0]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The runs under way: those whose tests were selected."""
    wanted = {
        item.callspec.params["task"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.module is request.module and hasattr(item, "callspec")
    }
    under_way = Runs([task for task in TASKS if task in wanted], tmp_path_factory.mktemp("faults"))
    with Shared() as shared:
        try:
            shared.servers.kafka.address  # noqa: B018
        except (KafkaUnavailable, ServiceUnavailable) as unavailable:
            pytest.skip(str(unavailable))
        with ThreadPoolExecutor(LANES) as pool:
            for number in range(LANES):
                pool.submit(under_way.work, Lane(shared, number))
            try:
                yield under_way
            finally:
                under_way.cancel()


@pytest.mark.parametrize("task", TASKS, ids=[f"{task.name}, seed {task.seed}" for task in TASKS])
def test_a_fault(task: Task, runs: Runs) -> None:
    """Nothing is lost, nothing is doubled, order holds, and everything stored is what a replay stores."""
    result = runs.results[task].result()
    if result.skipped:
        pytest.skip(result.skipped)
    again = f"python -m tests.faults --only {task.name!r} --seed {task.seed} --runs 1"
    assert result.good, f"{result.said}\nagain: {again}"
