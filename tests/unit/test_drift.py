"""Drift: a change of behaviour is noticed and learned soon, and where there is none, none is noticed."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from models.clustering import HASTE, learn
from models.clusters import ClusterModel, logged
from models.learner import LearnerState
from tests.support.populations import CHANGED, Values, days, draw, population, shapeless

#: Samples within which a change must be noticed.
SOON = 2000


def others(seed: int, before: Values) -> Values:
    """Every kind of customer does something else."""
    return population(seed + 100, kinds=CHANGED)


def spending(seed: int, before: Values) -> Values:
    """Everybody spends three times as much."""
    return before * (1, 1, 3)


def some_spending(seed: int, before: Values) -> Values:
    """Three in ten spend eight times as much."""
    chosen = np.random.default_rng(seed).random(len(before)) < 0.3
    return np.where(chosen[:, None], before * (1, 1, 8), before)


def leaving(seed: int, before: Values) -> Values:
    """Everybody orders less and stays away for longer."""
    return np.column_stack([before[:, 0] * 4, np.maximum(np.round(before[:, 1] / 3), 1), before[:, 2]])


def kindless(seed: int, before: Values) -> Values:
    """There are no kinds of customers any more."""
    return shapeless(seed)


def against_batch(model: ClusterModel, values: Values) -> tuple[float, float]:
    """The model's error and silhouette on all customers, each as a share of what batch k-means reaches."""
    logs = logged(values)
    points = (logs - logs.mean(axis=0)) / logs.std(axis=0)
    batch = KMeans(len(model.centres), n_init=5, random_state=0).fit(points)
    codes = model.nearest(model.standardised(logs))
    means = np.array([points[codes == code].mean(axis=0) for code in np.unique(codes)])
    error = ((points[:, None] - means) ** 2).sum(axis=2).min(axis=1).sum() / batch.inertia_
    some = slice(3000)
    ours, theirs = silhouette_score(points[some], codes[some]), silhouette_score(points[some], batch.labels_[some])
    return float(np.sqrt(error)), float(ours / theirs)


def drifts(states: dict[str, LearnerState]) -> int:
    return states["cluster"].drifts


@pytest.mark.parametrize("sample", [200, 1000])
@pytest.mark.parametrize("change", [others, spending, some_spending, leaving, kindless])
def test_a_change_is_noticed_and_learned(change: Callable[[int, Values], Values], sample: int) -> None:
    """Within two thousand samples; ten thousand later the clusters are as good as those of a fresh batch k-means."""
    seed, before = 7, population(7)
    states = learn({}, days(before, 6000 // sample, sample=sample)).states
    assert drifts(states) == 0
    after = change(seed, before)
    first = 6000 // sample + 1
    states = learn(states, days(after, first + SOON // sample - 1, first, sample=sample)).states
    assert drifts(states) >= 1
    states = learn(states, days(after, first + 12_000 // sample, first + SOON // sample, sample=sample)).states
    model = states["cluster"].model
    assert model is not None
    assert model.drifts == drifts(states) <= 4
    error, silhouette = against_batch(model, after)
    assert error < 1.03
    assert silhouette > 0.9


def test_haste_lasts_for_some_samples() -> None:
    """After an alarm steps are large, which the state says until that many samples were learned."""
    states = learn({}, days(population(7), 4)).states
    left = []
    for each in days(others(7, population(7)), 4 + HASTE // 1000 + 1, 5):
        states = learn(states, [each]).states
        assert states["cluster"].learned is not None
        left.append(states["cluster"].learned.hasty)
    assert left == [HASTE - 1000 * draws for draws in range(1, HASTE // 1000 + 1)] + [0]
    assert drifts(states) == 1


def test_nothing_drifts_at_the_beginning() -> None:
    """What was learned from one draw describes the next ones worse than its own, and that is no drift."""
    for make in (population, shapeless):
        for seed in range(6):
            for sample in (100, 1000):
                states = learn({}, days(make(seed), 4, sample=sample)).states
                assert drifts(states) == 0


def test_a_few_far_away_are_no_drift() -> None:
    """Somebody orders a million times as much as anybody."""
    values = population(7)
    values[:10] *= 1e6
    assert drifts(learn({}, [*days(population(7), 4), *days(values, 10, 5)]).states) == 0


@pytest.mark.slow
@pytest.mark.parametrize("make", [population, shapeless])
def test_half_a_million_samples_of_the_same(make: Callable[..., Values]) -> None:
    """At most one false alarm in 250 draws of fixed customers and then 250 of ever new ones."""
    fixed, states = make(11), {}
    for day in range(1, 501):
        values = fixed if day <= 250 else make(1000 + day, 1000)
        states = learn(states, [draw(values, day, 3)]).states
    assert states["cluster"].samples == 500_000
    assert drifts(states) <= 1
