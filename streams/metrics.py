"""Every Prometheus metric, declared once. Times are in seconds."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

EVENTS = Counter(
    "segmenter_events_total",
    "Records of the topics that workers read, by what became of them: used or refused.",
    ["topic", "outcome"],
)
CHANGES = Counter(
    "segmenter_changes_total",
    "Segment changes committed.",
    ["dimension", "from_segment", "to_segment", "cause"],
)
CUSTOMERS = Gauge(
    "segmenter_segment_customers",
    "Customers in each segment on this worker's shards; sum over workers.",
    ["dimension", "segment", "shard"],
)
MOVES = Gauge(
    "segmenter_moves_per_customer",
    "Segment changes since this worker took the shard, divided by the customers in the dimension's segments.",
    ["dimension", "shard"],
)
CUTOFFS_AS_OF = Gauge(
    "segmenter_cutoffs_as_of_timestamp_seconds",
    "As of when the population's cut-offs in force were taken, in the shard's own time, as a Unix time; 0 before any.",
    ["shard"],
)
CUTOFFS_MISSED = Counter(
    "segmenter_cutoffs_missed_total",
    "Times a shard went on with the cut-offs of before, because another had not summarised its customers.",
)
BATCH_SIZE = Histogram(
    "segmenter_batch_records",
    "Records folded into one commit.",
    buckets=(1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000),
)
BATCH_SECONDS = Histogram(
    "segmenter_batch_seconds",
    "From taking a batch to its commit.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
COMMIT_SECONDS = Histogram(
    "segmenter_commit_seconds",
    "One atomic commit to Redis.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
PUBLISH_LATENCY = Histogram(
    "segmenter_event_to_published_seconds",
    "From the Kafka timestamp of the oldest record of a batch until the broker had acknowledged all its changes.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
LAPSE_LAG = Gauge(
    "segmenter_lapse_lag_seconds",
    "How late the oldest deadline is that is due and not yet applied; 0 if none is.",
    ["shard"],
)
OUTBOX_PENDING = Gauge(
    "segmenter_outbox_pending",
    "Commits whose changes the broker has not acknowledged yet.",
    ["shard"],
)
DEAD_LETTERS = Counter("segmenter_dead_letters_total", "Records refused, by code.", ["code"])
CONSUMER_LAG = Gauge(
    "segmenter_consumer_lag_records",
    "Records behind the end of the log, not yet committed, of the topics that workers read.",
    ["topic", "partition"],
)
REWINDS = Counter(
    "segmenter_rewinds_total",
    "Assignments at which the store was behind Kafka's commit, so that records were read again; no rebuilds.",
)
REFUSED_COMMITS = Counter(
    "segmenter_refused_commits_total",
    "Commits the store refused, by reason: stale owner or lost batch.",
    ["reason"],
)
RELOADS = Counter("segmenter_shard_reloads_total", "Shards dropped and loaded again after a failure.")
SHARDS = Gauge("segmenter_shards", "Shards this worker owns.")
PARTITIONS = Gauge("segmenter_partitions", "Partitions of each input topic: the shards that all workers own together.")
POLICY_VERSION = Gauge("segmenter_policy_version", "Version of the policy in force.")
MODEL_VERSION = Gauge(
    "segmenter_cluster_model_version",
    "Version of the model that was learned last; set by the worker that learns.",
    ["dimension"],
)
MODEL_AS_OF = Gauge(
    "segmenter_cluster_model_as_of_timestamp_seconds",
    "As of when the customers were drawn that were learned last, in the shards' own time, as a Unix time.",
    ["dimension"],
)
SAMPLES = Gauge("segmenter_cluster_samples", "Customers drawn that the model has learned so far.", ["dimension"])
QUANTISATION_ERROR = Gauge(
    "segmenter_cluster_quantisation_error",
    "Root of the mean squared distance from a customer drawn to the nearest centre, in standard deviations.",
    ["dimension"],
)
SILHOUETTE = Gauge(
    "segmenter_cluster_silhouette",
    "Mean silhouette of the customers drawn last: 1 where clusters are far apart, 0 where they touch.",
    ["dimension"],
)
SHARE = Gauge(
    "segmenter_cluster_share",
    "Share of the customers drawn last that are in each cluster.",
    ["dimension", "cluster"],
)
DRIFTS = Counter(
    "segmenter_cluster_drifts_total",
    "Times that customers were seen to have changed, so that the model learns faster.",
    ["dimension"],
)
TRAINER_FAILED = Gauge("segmenter_trainer_failed", "1 while this worker should learn clusters and cannot, else 0.")
LABELS_MOVED = Gauge(
    "segmenter_cluster_labels_moved",
    "Customers whom the model in force has moved to another cluster since the shard took it.",
    ["dimension", "shard"],
)
CLOCK_STEP = Gauge(
    "segmenter_clock_step_seconds",
    "By how much the machine's clock was set while this worker ran, as long as that is not followed; else 0.",
)
LAST_PROGRESS = Gauge(
    "segmenter_last_progress_timestamp_seconds",
    "When this worker last made progress or had nothing to do, as a Unix time.",
)


def forget_shard(shard: str) -> None:
    """Drop the gauges of a shard that this worker no longer owns, so that sums over workers stay true."""
    for gauge in (CUSTOMERS, MOVES, CUTOFFS_AS_OF, LAPSE_LAG, OUTBOX_PENDING, LABELS_MOVED, CONSUMER_LAG):
        label = "partition" if gauge is CONSUMER_LAG else "shard"
        gauge.remove_by_labels({label: shard})


def forget_model(dimension: str) -> None:
    """Drop the gauges of a model that this worker no longer learns."""
    for gauge in (MODEL_VERSION, MODEL_AS_OF, SAMPLES, QUANTISATION_ERROR, SILHOUETTE, SHARE):
        gauge.remove_by_labels({"dimension": dimension})
