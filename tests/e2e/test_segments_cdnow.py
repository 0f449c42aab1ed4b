"""RFM groups, ABC classes and bands of every CDNOW customer at every month's end equal a batch computation with pandas.

So does the default policy's lifecycle the oracle, and cut-offs are where the exact quantiles are.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pytest

from models.activation import Activation
from models.policy import default_policy, parse_policy
from tests.e2e.batch import assert_near_quantiles, frame, labels, month_ends
from tests.e2e.month_by_month import assert_labels, in_force, run
from tests.e2e.test_replay_cdnow import cdnow, moves_of
from tests.support.commands import output_of

COLUMNS = ["rfm", "value", "spend", "pace"]
#: The default policy's dimensions of those names, with cut-offs every day, so also at month ends.
DAILY = """
version = 1
[population]
every = "1d"
[dimensions.value]
engine = "pareto"
classes = { A = 80, B = 15, C = 5 }
[dimensions.rfm]
engine = "rfm"
[dimensions.spend]
engine = "bands"
of = "average_order"
bands = { small = 0, medium = 30, large = 100 }
[dimensions.pace]
engine = "bands"
of = "orders_per_month"
bands = { rare = 0, monthly = 1, weekly = 4 }
"""


@pytest.fixture(scope="module")
def ends() -> list[int]:
    """The ends of CDNOW's 18 months."""
    return month_ends("1997-02-01", "1998-07-01")


@pytest.mark.slow
def test_the_default_policy_at_month_ends(data_folder: Path, ends: list[int]) -> None:
    """Under the default policy all labels are pandas', the lifecycle's moves are the oracle's, row by row."""
    recording = cdnow(data_folder)
    events = frame([event.value for event in recording.events])
    for instant, result, activations in run(default_policy(), recording.events, ends, 1):
        assert_labels(result, events, instant, activations, COLUMNS)
    assert len(activations) > 70
    lifecycle = moves_of(change for change in result.changes if change["dimension"] == "lifecycle")
    assert lifecycle == recording.moves


@pytest.mark.slow
def test_four_shards_with_daily_cutoffs(data_folder: Path, ends: list[int]) -> None:
    """On four shards, whose summaries are merged as workers do, labels are pandas' and cut-offs near the quantiles."""
    recording = cdnow(data_folder)
    events = frame([event.value for event in recording.events])
    for instant, result, activations in run(parse_policy(DAILY), recording.events, ends, 4):
        assert_labels(result, events, instant, activations, COLUMNS)
        assert_cutoffs(events, instant, activations)


def assert_cutoffs(events: pd.DataFrame, instant: int, activations: Sequence[Activation]) -> None:
    """Cut-offs were taken at the instant, and they are near the exact quantiles."""
    taken = activations[-1].cutoffs
    assert taken.as_of == instant
    assert_near_quantiles(events, instant, taken.scores["rfm"], taken.scores["value"])


def test_cutoffs_are_within_a_percentile_point(data_folder: Path, ends: list[int]) -> None:
    """With the default margin, each of a year and a half's cut-offs is near the exact quantile at every month's end."""
    recording = cdnow(data_folder)
    events = frame([event.value for event in recording.events])
    # A dwell keeps labels from moving with time, which costs most and has no part in cut-offs.
    still = DAILY.replace('= "rfm"', '= "rfm"\ndwell = "1000d"').replace('= "pareto"', '= "pareto"\ndwell = "1000d"')
    policy = parse_policy(still)
    for instant, _, activations in run(policy, recording.events, ends, 1):
        assert_cutoffs(events, instant, activations)
    kept = [
        one.cutoffs.scores["rfm"]["recency"] == other.cutoffs.scores["rfm"]["recency"]
        for one, other in pairwise(activations[100:])
    ]
    assert any(kept)
    assert not all(kept)


def test_replay_writes_these_customers(data_folder: Path, tmp_path: Path) -> None:
    """`segmenter replay --customers` writes the labels that pandas computes, on one shard and on four."""
    recording = cdnow(data_folder, "cdnow_sample_purchases")
    events = frame([event.value for event in recording.events])
    weekly = tmp_path / "weekly.toml"
    weekly.write_text(DAILY.replace('every = "1d"', 'every = "7d"'))
    until = month_ends("1998-07-01", "1998-07-01")
    ((instant, _, activations),) = run(parse_policy(weekly.read_text()), recording.events, until, 1)
    scores = in_force(activations, instant).cutoffs.scores
    wanted = labels(events, instant, scores["rfm"], scores["value"])[COLUMNS]
    for shards in ("1", "4"):
        out = tmp_path / f"{shards}.ndjson"
        file = str(data_folder / "cdnow_sample_purchases.ndjson.gz")
        output_of(
            *("replay", file, "--policy", str(weekly), "--until", "1998-07-01T00:00:00Z"),
            *("--customers", str(out), "--shards", shards),
            settings={},
        )
        customers: list[dict[str, Any]] = [orjson.loads(line) for line in out.read_bytes().splitlines()]
        found = {customer["customer_id"]: [customer["segments"][name] for name in COLUMNS] for customer in customers}
        assert found == dict(zip(wanted.index, wanted.to_numpy().tolist(), strict=True))
