"""The benchmark runs and reports; how fast anything is, is not tested here."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from streams.embedded.redis import find_redis_server
from streams.errors import ServiceUnavailable
from tests.bench.check import RATIOS, check, measured_ratios
from tests.bench.reach import GOALS, Results
from tests.bench.workload import Spread, Workload

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("spread", ["uniform", "zipf"])
def test_a_workload_moves_whom_it_says(spread: Spread) -> None:
    """Counting every customer's purchases gives the moves that contenders are compared with."""
    workload = Workload(300, 5_000, spread)
    orders: Counter[str] = Counter(json.loads(each.value)["customer_id"] for each in workload.known())
    moves = []
    for each in workload.measured():
        event = json.loads(each.value)
        orders[event["customer_id"]] += 1
        if orders[event["customer_id"]] == 1:
            moves.append((event["customer_id"], None, "new", event["event_id"]))
        elif orders[event["customer_id"]] == 3:
            moves.append((event["customer_id"], "new", "regular", event["event_id"]))
    assert moves == workload.moves()
    assert len(moves) == pytest.approx(0.2 * workload.events, abs=200)


def test_parts_of_a_workload_are_the_whole() -> None:
    workload = Workload(100, 1_000)
    parts = [*workload.measured(0, 400), *workload.measured(400, 1_000)]
    assert [each.key for each in parts] == [each.key for each in workload.measured()]


def test_a_goal_is_judged_by_the_median() -> None:
    lines = [{"kind": "live", "p50": each, "p99": 1.0} for each in (7.0, 9.0, 90.0)]
    (goal,) = [each for each in GOALS if each.what.endswith("p50")]
    assert goal.verdict(goal.values(Results(lines))) == "reached"


def test_every_step_has_a_committed_ratio() -> None:
    """What `make bench-check` compares with."""
    assert set(json.loads(RATIOS.read_text())) == set(measured_ratios())


@pytest.mark.parametrize(("dear", "code", "measured"), [(0, 0, 1), (2, 0, 3), (5, 1, 5)])
def test_a_step_is_too_dear_if_it_is_so_every_time(
    monkeypatch: pytest.MonkeyPatch, dear: int, code: int, measured: int
) -> None:
    """A busy machine fails nothing: what is dearer than allowed is measured again."""
    committed = json.loads(RATIOS.read_text())
    times = 0

    def ratios() -> dict[str, float]:
        nonlocal times
        times += 1
        return {step: ratio * (2 if times <= dear else 1) for step, ratio in committed.items()}

    monkeypatch.setattr("tests.bench.check.measured_ratios", ratios)
    done = CliRunner().invoke(check)
    assert (done.exit_code, times) == (code, measured)
    assert ("dearer than" in done.output) == bool(code)


@pytest.mark.slow
def test_quick_run_reports_ratio_stages_and_machine() -> None:
    """A quick run ends well, which means that changes were as expected, and writes every section."""
    try:
        find_redis_server()
    except ServiceUnavailable as unavailable:
        pytest.skip(str(unavailable))
    groups = [part for group in ("peers", "stages") for part in ("--only", group)]
    command = [sys.executable, "-m", "tests.bench", "--quick", "--embedded", *groups]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for expected in ("## What was to be reached", "## Beside other systems", "all of it", "| Command |"):
        assert expected in done.stdout
    assert str(ROOT) not in done.stdout
