"""Metrics: each says what it is, and what a worker no longer owns is not counted any more."""

import re

import pytest
from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from streams import metrics

ALL: dict[str, MetricWrapperBase] = {
    name: metric for name, metric in vars(metrics).items() if isinstance(metric, MetricWrapperBase)
}


def test_there_are_metrics() -> None:
    """All are found that the module declares."""
    assert len(ALL) >= 15


@pytest.mark.parametrize("metric", ALL.values(), ids=ALL)
def test_every_metric_says_what_it_is(metric: MetricWrapperBase) -> None:
    """A sentence of help, and a name with this project's prefix and, for times, the unit."""
    (family,) = metric.describe()
    assert len(family.documentation) > 15
    assert family.documentation.endswith(".")
    assert re.fullmatch(r"segmenter_[a-z_]+", family.name)
    if isinstance(metric, Histogram) and "second" in family.name:
        assert family.name.endswith("_seconds")
    assert not re.search(r"_(ms|milliseconds|micros|minutes)\b", family.name)


@pytest.mark.parametrize("metric", ALL.values(), ids=ALL)
def test_labels_are_bounded(metric: MetricWrapperBase) -> None:
    """No metric has a series for each customer, event or message."""
    allowed = {
        "topic", "outcome", "dimension", "from_segment", "to_segment", "cause", "segment", "shard", "partition", "code",
        "reason", "cluster",
    }  # fmt: skip
    assert set(metric._labelnames) <= allowed


def test_buckets_rise() -> None:
    """Histograms have buckets for what is usual and for what is bad."""
    for metric in ALL.values():
        if isinstance(metric, Histogram):
            assert list(metric._upper_bounds) == sorted(set(metric._upper_bounds))
            assert metric._upper_bounds[-1] == float("inf")


def test_everything_is_exported() -> None:
    """What is declared is on /metrics, with its help."""
    exported = generate_latest().decode()
    for metric in ALL.values():
        (family,) = metric.describe()
        name = f"{family.name}_total" if isinstance(metric, Counter) else family.name
        assert f"# HELP {name} " in exported


def test_a_shard_is_forgotten() -> None:
    """The series of a shard that left are gone, those of others stay, whatever their numbers look like."""
    gauges: list[Gauge] = []
    for metric in ALL.values():
        if isinstance(metric, Gauge) and {"shard", "partition"} & set(metric._labelnames):
            gauges.append(metric)
            for number in ("71", "7", "1"):
                labels = dict.fromkeys(metric._labelnames, "x")
                metric.labels(**labels | dict.fromkeys({"shard", "partition"} & set(labels), number)).set(5)
    assert len(gauges) >= 4
    metrics.forget_shard("7")
    for gauge in gauges:
        numbers = [
            sample.labels.get("shard", sample.labels.get("partition"))
            for family in gauge.collect()
            for sample in family.samples
            if "x" in sample.labels.values() or len(sample.labels) == 1
        ]
        assert "7" not in numbers
        assert {"71", "1"} <= set(numbers)
    metrics.forget_shard("71")
    metrics.forget_shard("1")


def test_a_model_is_forgotten() -> None:
    """The series of a dimension that is no longer learned here are gone, another's stay; what was counted stays."""
    gauges = [each for each in ALL.values() if isinstance(each, Gauge) and "segmenter_cluster" in each._name]
    learned = [each for each in gauges if "shard" not in each._labelnames]
    assert len(learned) >= 6
    for gauge in learned:
        for name in ("gone", "gone2"):
            gauge.labels(**dict.fromkeys(gauge._labelnames, "c1") | {"dimension": name}).set(5)
    metrics.DRIFTS.labels("gone").inc()
    metrics.forget_model("gone")
    for gauge in learned:
        (family,) = gauge.collect()
        assert {sample.labels["dimension"] for sample in family.samples} & {"gone", "gone2"} == {"gone2"}
    assert REGISTRY.get_sample_value("segmenter_cluster_drifts_total", {"dimension": "gone"}) == 1
    metrics.forget_model("gone2")


def test_forgetting_what_was_never_known_is_harmless() -> None:
    """A shard that has no series yet may leave, and a model that was never learned."""
    before = REGISTRY.get_sample_value("segmenter_shards")
    metrics.forget_shard("987654")
    metrics.forget_model("never")
    assert REGISTRY.get_sample_value("segmenter_shards") == before
