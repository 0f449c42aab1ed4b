"""``python -m tests.bench.check``: has any step of the worker become slower? Ratios within one process, never seconds.

Each step's processor time is divided by that of a fixed piece of work in the same language and libraries, measured in
turns with it; the least of many turns is what the machine can do when nobody disturbs it. The ratios in ``ratios.json``
are what it was; ``--update`` writes them anew, which a commit that makes a step dearer on purpose says.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import orjson

from models.events import ROLES
from models.instants import FOREVER
from models.rows import layout_of, pack
from streams.commit import Range
from streams.processor import BatchProcessor, Clock, Shard
from streams.settings import Settings
from streams.store.memory import MemoryStore
from tests.bench.events import BenchRecord
from tests.bench.policies import Compared, compared_for
from tests.bench.workload import Workload, records_of

RATIOS: Final = Path(__file__).with_name("ratios.json")
#: A step may cost so many times its committed ratio: versions of Python and processors differ by less.
ALLOWED: Final = 1.35
_BATCH: Final = 5_000
_TURNS: Final = 9
#: How often what is too dear is measured again: a neighbour on the machine makes a step dearer, never cheaper.
_MORE: Final = 4
_WORKLOAD: Final = Workload(20_000, _TURNS * _BATCH)


def _calibration(records: list[BenchRecord]) -> None:
    """JSON, dictionaries, texts and columns: what the worker's steps are made of."""
    events = [orjson.loads(record.value or b"") for record in records]
    index: dict[str, int] = {}
    rows = np.array([index.setdefault(event["customer_id"], len(index)) for event in events])
    amounts = np.array([float(event["amount"]) for event in events])
    for _ in range(20):
        np.add.at(np.zeros(len(index)), rows, amounts)
        np.unique(rows, return_inverse=True)
    b",".join([f'{{"id":"{event["event_id"]}","n":{i}}}'.encode() for i, event in enumerate(events)])


class Steps:
    """A shard with the workload's known customers under one policy, and its steps, each on the next measured batch."""

    def __init__(self, compared: Compared, known: list[BenchRecord], measured: list[BenchRecord]) -> None:
        self.store = MemoryStore()
        activations = compared.activate(self.store)
        topics = Settings().topics
        self.processor = BatchProcessor(Shard(0, 1, topics), activations, self.store, Clock.INGESTION)
        self.processor.load(dict.fromkeys(ROLES, 0), {})
        while (step := self.processor.follow()) is not None:
            self.processor.commit(step)
        self.measured = measured
        for start in range(0, len(known), _BATCH):
            self._commit(known[start : start + _BATCH])

    def _commit(self, records: list[BenchRecord]) -> None:
        batch, refusals = self.processor.read("purchases", records, FOREVER)
        assert not refusals, refusals[0].reason
        covered = Range(records[0].offset, records[-1].offset + 1)
        self.processor.commit(self.processor.fold(batch, refusals, {"purchases": covered}))

    def turn(self, number: int) -> dict[str, float]:
        """Seconds of processor time of each step on one batch."""
        records = self.measured[number * _BATCH :][:_BATCH]
        spent: dict[str, float] = {}

        def timed(name: str, call: Callable[[], Any]) -> Any:
            began = time.thread_time()
            result = call()
            spent[name] = time.thread_time() - began
            return result

        batch, refusals = timed("read", lambda: self.processor.read("purchases", records, FOREVER))
        covered = {"purchases": Range(records[0].offset, records[-1].offset + 1)}
        step = timed("fold", lambda: self.processor.fold(batch, refusals, covered))
        table = self.processor.table

        def written() -> None:
            pack(table, layout_of(table), table.rows[:_BATCH])
            if step.commit.entry is not None:
                step.commit.entry.encode()

        timed("pack", written)
        self.processor.commit(step)
        return spent


def measured_ratios() -> dict[str, float]:
    """Each step's cost in calibrations."""
    records = records_of(chain(_WORKLOAD.known(), _WORKLOAD.measured()))
    known, measured = records[: _WORKLOAD.known_events], records[_WORKLOAD.known_events :]
    steps = {each.name: Steps(each, known, measured) for each in compared_for(_WORKLOAD)}
    best: dict[str, float] = {}
    unit = float("inf")
    for number in range(_TURNS):
        began = time.thread_time()
        _calibration(measured[:_BATCH])
        unit = min(unit, time.thread_time() - began)
        for name, each in steps.items():
            for step, seconds in each.turn(number).items():
                key = f"{step}, {name}"
                best[key] = min(best.get(key, seconds), seconds)
    return {key: round(seconds / unit, 3) for key, seconds in best.items()}


@click.command()
@click.option("--update", is_flag=True, help="write the ratios that are compared with")
def check(update: bool) -> None:
    """Compare each step's cost with the committed one."""
    found = measured_ratios()
    if update:
        RATIOS.write_text(json.dumps(found, indent=2) + "\n")
        return
    expected = json.loads(RATIOS.read_text())
    for _ in range(_MORE):
        if found.keys() != expected.keys() or not _dearer(found, expected):
            break
        again = measured_ratios()
        found = {step: min(ratio, again[step]) for step, ratio in found.items()}
    for step, ratio in found.items():
        click.echo(f"{step:28} {ratio:7.3f}, committed {expected.get(step, 0):7.3f}")
    if found.keys() != expected.keys():
        raise click.ClickException("the steps are not those of ratios.json; run: python -m tests.bench.check --update")
    if dearer := _dearer(found, expected):
        raise click.ClickException(
            f"dearer than {ALLOWED} times what is committed: {', '.join(dearer)}. "
            "Make it cheaper; or, if it is worth its price, run: python -m tests.bench.check --update"
        )


def _dearer(found: Mapping[str, float], expected: Mapping[str, float]) -> list[str]:
    # What costs next to nothing is not measured well enough to say.
    return [step for step, ratio in found.items() if ratio > max(ALLOWED * expected[step], expected[step] + 0.02)]


if __name__ == "__main__":
    check(prog_name="python -m tests.bench.check")
