"""What a worker says on /metrics, /healthz and /readyz after it has processed the scene."""

import json
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from prometheus_client import Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from streams import metrics
from tests.integration.conftest import BAD, Scene
from tests.support.commands import eventually, output_of
from tests.support.topics import distinct

LAG = "segmenter_consumer_lag_records"
DECLARED = {
    family.name: family.type
    for metric in vars(metrics).values()
    if isinstance(metric, MetricWrapperBase)
    for family in metric.describe()
}


def _read(scene: Scene) -> dict[str, Metric]:
    status, text = scene.worker.get("/metrics")
    assert status == 200
    return {family.name: family for family in text_string_to_metric_families(text)}


@pytest.fixture(scope="module")
def families(scene: Scene) -> dict[str, Metric]:
    """Everything on /metrics by name, once the lag has been looked at again after the last record."""
    eventually(lambda: _sum(_read(scene), LAG) == 0, 10, "the worker says that it has read everything")
    return _read(scene)


def _samples(family: Metric) -> Iterator[tuple[dict[str, str], float]]:
    for sample in family.samples:
        if not sample.name.endswith("_created"):
            yield sample.labels, sample.value


def _sum(families: dict[str, Metric], name: str, **labels: str) -> float:
    return sum(value for have, value in _samples(families[name]) if labels.items() <= have.items())


def _histogram(families: dict[str, Metric], name: str) -> tuple[float, float]:
    """Count and sum."""
    found = {sample.name.removeprefix(f"{name}_"): sample.value for sample in families[name].samples}
    return found["count"], found["sum"]


def test_ready_only_once_it_owns_its_shards(scene: Scene) -> None:
    """/readyz is 503 before the first assignment, 200 after it; /healthz is 200 while progress is made."""
    assert scene.before_ready == 503
    assert scene.worker.get("/readyz") == (200, "ready\n")
    assert scene.worker.get("/healthz") == (200, "ok\n")
    assert scene.worker.get("/nothing")[0] == 404


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_every_declared_metric_is_exposed(name: str, families: dict[str, Metric]) -> None:
    """Each family declared in streams/metrics.py is there under its name, with its type and a help text."""
    assert name in families
    assert families[name].type == DECLARED[name]
    assert len(families[name].documentation) > 10


def test_events_by_outcome(scene: Scene, families: dict[str, Metric]) -> None:
    """Every record is counted once, used or refused; a tick counts on every partition."""
    kinds = Counter(event["kind"] for event in scene.events)
    refused = Counter(bad.topic for bad in BAD)
    events = "segmenter_events"
    assert _sum(families, events, topic="purchases", outcome="used") == kinds["purchase"] + kinds["refund"] + 4
    about_themselves = kinds["signup"] + kinds["profile"] + kinds["survey"]
    assert _sum(families, events, topic="signups", outcome="used") == about_themselves
    assert _sum(families, events, topic="erasures", outcome="used") == 1
    for topic, count in refused.items():
        assert _sum(families, events, topic=topic, outcome="refused") == count


def test_dead_letters_by_code(families: dict[str, Metric]) -> None:
    """Each code as often as it was refused."""
    found = {labels["code"]: value for labels, value in _samples(families["segmenter_dead_letters"])}
    assert found == Counter(bad.code for bad in BAD)


def test_changes_by_move(scene: Scene, families: dict[str, Metric]) -> None:
    """The counter agrees with the topic."""
    topic = Counter(
        (change["dimension"], change["from"] or "", change["to"] or "", change["cause"])
        for change in distinct(scene.topics.changes())
    )
    names = ("dimension", "from_segment", "to_segment", "cause")
    counted = {
        tuple(labels[name] for name in names): value for labels, value in _samples(families["segmenter_changes"])
    }
    assert counted == topic


def test_customers_by_segment(scene: Scene, families: dict[str, Metric]) -> None:
    """The gauge, summed over shards, agrees with ``segmenter segments``."""
    lines = output_of("segments", "--json", settings=scene.settings).splitlines()
    for row in map(json.loads, lines):
        gauge = _sum(families, "segmenter_segment_customers", dimension=row["dimension"], segment=row["segment"])
        assert gauge == row["customers"]
    assert _sum(families, "segmenter_segment_customers") > 100


def test_nothing_waits(families: dict[str, Metric]) -> None:
    """At rest: no lag on any partition, no late lapse, nothing unpublished, and no failure was counted."""
    assert len(families[LAG].samples) == 3 * 4 + 1  # the samples have one partition
    for name in (
        LAG,
        "segmenter_lapse_lag_seconds",
        "segmenter_outbox_pending",
        "segmenter_rewinds",
        "segmenter_refused_commits",
        "segmenter_shard_reloads",
    ):
        assert _sum(families, name) == 0, name


def test_state_of_the_worker(families: dict[str, Metric]) -> None:
    """It owns every shard, runs the default policy, and has just made progress."""
    assert _sum(families, "segmenter_shards") == 4
    assert _sum(families, "segmenter_policy_version") == 1
    assert abs(_sum(families, "segmenter_last_progress_timestamp_seconds") - time.time()) < 5 * 60


def test_sizes_and_times(scene: Scene, families: dict[str, Metric]) -> None:
    """Batches hold every used record; commits and publishing take some time, but not much."""
    batches, records = _histogram(families, "segmenter_batch_records")
    used = len(scene.events) - 1 + 4
    assert records == used
    assert 4 <= batches <= used
    folds, fold_seconds = _histogram(families, "segmenter_batch_seconds")
    commits, commit_seconds = _histogram(families, "segmenter_commit_seconds")
    assert folds == batches
    assert commits >= folds
    assert 0 < fold_seconds < 60
    assert 0 < commit_seconds < 60
    published, publish_seconds = _histogram(families, "segmenter_event_to_published_seconds")
    assert 0 < published <= batches
    assert 0 < publish_seconds / published < 30
