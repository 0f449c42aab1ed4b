"""``python -m tests.bench.clusters``: clusters learned once through, from the stream, beside batch k-means.

CDNOW and Online Retail II are replayed from their first purchase to the last under a policy that has the cluster
dimension alone. Then all customers, as they are at the end, are parted by scikit-learn's KMeans, which sees all of them
at once and as often as it likes. Compared is the mean silhouette (Euclidean, of all customers) on what both are made
from: the logarithm of one more than whole days since the last purchase, orders and money, standardised.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score

from models.clustering import learn
from models.clusters import ClusterModel, Floats, logged
from models.dimensions.cluster import Cluster
from models.engines import ClusterPolicy
from models.instants import DAY, parse
from models.learner import LearnerState
from models.policy import Policy, parse_policy
from models.table import CustomerTable
from streams.recorded import RecordedEvent, read_recorded
from streams.replay import Replay, Replayed
from tests.support.populations import draw, population

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
#: Files, and the currency of their amounts.
RECORDINGS = {"cdnow_purchases": "USD", "or2_orders": "GBP"}
CLUSTERS = 5
#: Customers in the table of which a thousand are labelled at a time.
TABLE = 100_000
BATCH = 1000


def cluster_policy(currency: str, seed: int = 1) -> Policy:
    """The cluster dimension of the default policy, without its dwell, and no other."""
    return parse_policy(
        f'version = 1\n[money]\nbase = "{currency}"\n'
        f'[dimensions.cluster]\nengine = "cluster"\nclusters = {CLUSTERS}\nseed = {seed}\n'
    )


def recording(data: Path, name: str) -> list[RecordedEvent]:
    """The recorded events, in time order, refunds among them."""
    return list(read_recorded([str(data / f"{name}.ndjson.gz")]))


def reordered(events: Sequence[RecordedEvent], seed: int) -> Iterator[RecordedEvent]:
    """The same days, each with its events in another order."""
    order = random.Random(seed)
    for _, day in groupby(events, key=lambda event: event.occurred_at // DAY):
        its = list(day)
        order.shuffle(its)
        yield from its


@dataclass(frozen=True)
class Learned:
    """What a replay ended with: all customers, their label codes as published, and the last model."""

    values: Floats
    labels: np.ndarray
    model: ClusterModel
    seconds: float

    @property
    def nearest(self) -> np.ndarray:
        """The cluster whose centre each customer is nearest to, whatever they were called before."""
        return self.model.nearest(self.model.standardised(logged(self.values)))


def learned(events: Iterator[RecordedEvent] | Sequence[RecordedEvent], policy: Policy) -> Learned:
    """Replay the events. Customers without a label count as the first cluster's."""
    began = time.perf_counter()
    replay = Replay(policy)
    for _ in replay.feed(iter(events)):
        pass
    replayed = replay.finish()
    model = replay.activations[-1].cutoffs.clusters["cluster"]
    labels = policy.dimensions["cluster"].labels
    codes = [labels.index(customer["segments"]["cluster"] or labels[0]) for customer in _buyers(replayed)]
    return Learned(_values(replayed), np.array(codes), model, time.perf_counter() - began)


def _values(replayed: Replayed) -> Floats:
    """Whole days since the last purchase, orders and money of each customer; the end is the last purchase of all."""
    every = _buyers(replayed)
    last = np.array([parse(customer["last_purchase_at"]) for customer in every])
    orders = np.array([customer["orders"] for customer in every])
    return np.column_stack([(last.max() - last) // DAY, orders, [float(customer["gross"]) for customer in every]])


def _buyers(replayed: Replayed) -> list[dict[str, Any]]:
    """The customers who have bought, by customer_id."""
    return [customer for customer in replayed.customers() if customer["orders"]]


@dataclass(frozen=True)
class Batch:
    """What k-means makes of all customers at once; ``points`` are standardised."""

    points: Floats
    labels: np.ndarray
    sample: int | None
    silhouette: float

    @classmethod
    def of(cls, values: Floats, sample: int | None = None) -> Batch:
        """Of customers; ``sample`` is of how many of them silhouettes are computed, None for all."""
        logs = np.log1p(values)
        points = (logs - logs.mean(axis=0)) / logs.std(axis=0)
        labels = KMeans(CLUSTERS, n_init=10, random_state=0).fit(points).labels_
        return cls(points, labels, sample, _silhouette(points, labels, sample))

    def silhouette_of(self, labels: np.ndarray) -> float:
        """The mean silhouette of other labels, of the same customers."""
        return _silhouette(self.points, labels, self.sample)

    def likeness(self, labels: np.ndarray) -> float:
        """The adjusted Rand index: 1 for the same clusters, 0 for what chance would agree on."""
        return float(adjusted_rand_score(self.labels, labels))


def _silhouette(points: Floats, labels: np.ndarray, sample: int | None) -> float:
    return float(silhouette_score(points, labels, sample_size=sample, random_state=0))


def _quality(data: Path, name: str, sample: int | None) -> None:
    events, batch = recording(data, name), None
    click.echo(f"\n{name}: {len(events):,} events")
    click.echo("seed order  silhouette  batch   ratio   nearest   ARI    version drifts replay")
    for seed in (1, 2, 3):
        for order in (0, 1, 2):
            policy = cluster_policy(RECORDINGS[name], seed)
            found = learned(events if order == 0 else reordered(events, order), policy)
            batch = batch or Batch.of(found.values, sample)
            ours, nearest = batch.silhouette_of(found.labels), batch.silhouette_of(found.nearest)
            click.echo(
                f"{seed:4} {order:5}  {ours:10.4f}  {batch.silhouette:.4f}  {ours / batch.silhouette:.3f}   "
                f"{nearest / batch.silhouette:.3f}    {batch.likeness(found.labels):.3f}  {found.model.version:7} "
                f"{found.model.drifts:6} {found.seconds:5.1f}s"
            )


def _speed() -> None:
    values, states, times = population(1, TABLE), dict[str, LearnerState](), []
    for day in range(1, 31):
        drawn = draw(values, day, 1)
        began = time.perf_counter()
        states = learn(states, [drawn]).states
        times.append(1e6 * (time.perf_counter() - began) / len(drawn.rows))
    model = states["cluster"].model
    click.echo(f"\nlearning, µs a sample, draws of 1,000: {min(times):.1f} / {median(times):.1f} / {max(times):.1f}")
    assert model is not None
    label, deadline = assignment(values, model)
    click.echo(f"assigning, µs a customer, batches of 1,000 (median): label {label:.2f}, deadline {deadline:.2f}")


def assignment(values: Floats, model: ClusterModel) -> tuple[float, float]:
    """Microseconds a customer for a label and for a deadline, medians over batches of a thousand of a large table."""
    policy, now = cluster_policy("USD"), 20_000 * DAY
    table = CustomerTable(policy)
    rows = table.place([f"customer-{number}" for number in range(len(values))])
    table.last_purchase_at[rows] = now - values[:, 0].astype(np.int64) * DAY
    table.first_purchase_at[rows] = table.last_purchase_at[rows]
    table.orders[rows] = values[:, 1].astype(np.int64)
    table.gross[rows] = (100 * values[:, 2]).astype(np.int64)
    settings = policy.dimensions["cluster"]
    assert isinstance(settings, ClusterPolicy)
    engine, at = Cluster("cluster", settings, policy, model), np.full(BATCH, now)
    order, labelling, timing = np.random.default_rng(1).permutation(rows), [], []
    for turn in range(2):  # at first nobody has a label
        for start in range(0, len(rows), BATCH):
            some = order[start : start + BATCH]
            began = time.perf_counter()
            table.label[some, 0] = engine.label(table, some, at)
            labelled = time.perf_counter()
            engine.deadline(table, some, at)
            if turn:
                labelling.append(labelled - began)
                timing.append(time.perf_counter() - labelled)
    return 1e6 * median(labelling) / BATCH, 1e6 * median(timing) / BATCH


@click.command()
@click.option("--sample", type=click.IntRange(min=1000), help="compute silhouettes of so many customers, not of all")
def clusters(sample: int | None) -> None:
    """Quality of clusters learned from the stream beside batch k-means, for three seeds and three orders; and speed."""
    _speed()
    for name in RECORDINGS:
        if (DATA / f"{name}.ndjson.gz").exists():
            _quality(DATA, name, sample)
        else:
            click.echo(f"\n{name}: skipped, {name}.ndjson.gz is not in shared/data beside the repository")


if __name__ == "__main__":
    clusters(prog_name="python -m tests.bench.clusters")
