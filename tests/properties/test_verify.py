"""Whatever a worker was given, and wherever it crashed: what follows from its topics is what the audit finds."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from models.instants import parse
from models.policy import default_policy
from streams.generator import Population, generate
from streams.processor import Clock
from tests.support.audited import Fleet
from tests.unit.build import make_policy


def late(events: Sequence[Mapping[str, Any]]) -> list[int]:
    """Timestamps a second after what happened."""
    return [parse(str(event["occurred_at"])) + 1_000_000 for event in events]


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_found_after_any_crashes(seed: int) -> None:
    """Batches of any size, crashes anywhere, outputs on any number of partitions: everything is exact."""
    fleet = Fleet(make_policy(), Clock.EVENT if seed % 2 else Clock.INGESTION, changes=1 + seed % 3, seed=seed)
    events = list(generate(Population(customers=60, days=200, seed=seed)))
    fleet.put(events, late(events) if fleet.clock is Clock.INGESTION else None)
    fleet.run(crashes=seed % 5)
    report = fleet.verify()
    assert (report.findings, report.notes, report.unverified) == ([], [], None)
    assert report.events == len(events)


def test_nothing_is_found_under_the_default_policy() -> None:
    """Cut-offs and clusters are those of the fleet, taken when the fleet took them."""
    fleet = Fleet(default_policy(), seed=4)
    fleet.put(generate(Population(customers=70, days=60, seed=4)))
    fleet.run(crashes=3)
    report = fleet.verify()
    assert (report.findings, report.notes, report.unverified) == ([], [], None)


@pytest.mark.parametrize("seed", range(4))
def test_topics_that_lag_for_long_are_no_difference(seed: int) -> None:
    """A worker that did not wait for a topic has decided otherwise, but completely."""
    fleet = Fleet(make_policy(), seed=seed)
    fleet.put(generate(Population(customers=60, days=200, seed=seed)))
    fleet.run(crashes=4, in_order=False)
    report = fleet.verify()
    assert (report.findings, report.unverified) == ([], None)
