"""Learning from draws: the same wherever and however it is done, and sane whatever is drawn."""

import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from river import cluster, drift, preprocessing
from scipy.spatial.distance import cdist
from sklearn.metrics import silhouette_score

from models.clustering import ENOUGH, FARTHEST, IDLE, STEP, THRESHOLD, TOLERATED, learn
from models.clusters import ClusterModel, logged
from models.kmeans import inertia, matched, missing, seeded, silhouette, squares
from models.learner import LearnerState
from models.sampling import Draw
from tests.support.populations import (
    DAY,
    FEATURES,
    USUAL,
    Values,
    begins,
    days,
    draw,
    population,
    shapeless,
    split,
    story,
)

ROOT = Path(__file__).resolve().parents[2]


def learned(draws: list[Draw]) -> LearnerState:
    return learn({}, draws).states["cluster"]


def model_of(state: LearnerState) -> ClusterModel:
    assert state.model is not None
    return state.model


def codes(model: ClusterModel, values: Values) -> np.ndarray:
    return model.nearest(model.standardised(logged(values)))


# What is published


@pytest.mark.parametrize("make", [population, shapeless])
def test_a_customer_is_in_the_cluster_that_river_predicts(make: Any) -> None:
    """For every one of many customers: what is published is what River's k-means holds."""
    values = make(4)
    for state in (learned(days(values, 1)), learned(days(values, 6))):
        model = model_of(state)
        river = cluster.KMeans(5, seed=9)
        for code, centre in enumerate(model.centres):
            river.centers[code].update(enumerate(centre))
        points = model.standardised(logged(values))
        predicted = [river.predict_one(dict(enumerate(point))) for point in points.tolist()]
        assert codes(model, values).tolist() == predicted


def test_it_is_river_that_learns() -> None:
    """Scaler, k-means and detector that live on through all draws end where those do that are built anew each time."""
    draws = days(population(4), 4)
    first, last = learned(draws[:1]), learned(draws)
    assert first.learned is not None
    assert last.learned is not None
    scaler, kmeans = preprocessing.StandardScaler(), cluster.KMeans(5, halflife=STEP)
    detector = drift.PageHinkley(delta=TOLERATED, threshold=THRESHOLD, alpha=1.0, mode="up")
    for code, centre in enumerate(first.learned.centres):
        kmeans.centers[code].update(enumerate(centre))
    for number, each in enumerate(draws):
        logs = logged(np.array(each.rows))
        for row in logs.tolist():
            scaler.learn_one(dict(enumerate(row)))
        if number:
            model = model_of(learned(draws[:number]))
            for square in model.distances(model.standardised(logs)).min(axis=1).tolist():
                detector.update(min(square**0.5 / first.learned.alarm.unit, FARTHEST))
            for row in logs.tolist():
                kmeans.learn_one(scaler.transform_one(dict(enumerate(row))))
    assert last.learned.means == tuple(scaler.means.values())
    assert last.learned.variances == tuple(scaler.vars.values())
    assert last.learned.centres == pytest.approx(np.array([list(each.values()) for each in kmeans.centers.values()]))
    assert last.learned.alarm.seen == detector._x_mean.n == 3000
    assert last.learned.alarm.mean == pytest.approx(detector._x_mean.get())
    assert last.learned.alarm.total == pytest.approx(detector._sum_increase)
    assert last.learned.alarm.least == pytest.approx(detector._min_increase)


def test_a_model_tells_about_its_draw() -> None:
    """Shares, error and silhouette are those of the customers drawn, as scikit-learn and SciPy compute them."""
    draws = days(population(4), 3)
    model = model_of(learned(draws))
    points = model.standardised(logged(np.array(draws[-1].rows)))
    found = codes(model, np.array(draws[-1].rows))
    assert model.shares == tuple(np.bincount(found, minlength=5) / 1000)
    assert model.error == pytest.approx(np.sqrt((cdist(points, model.centres).min(axis=1) ** 2).mean()), abs=1e-6)
    assert model.silhouette == pytest.approx(silhouette_score(points, found), abs=1e-6)
    assert (model.version, model.as_of, model.samples, model.drifts) == (3, 3 * DAY, 3000, 0)
    assert model.features == FEATURES


def test_it_finds_the_kinds_of_customers() -> None:
    """Who belong together are together, and the centres are the typical ones, largest cluster first."""
    values = population(4)
    model = model_of(learned(days(values, 3)))
    found = np.array(sorted(model.units.tolist()))
    for kind, centre in zip(sorted(each[:3] for each in USUAL), found, strict=True):
        assert np.abs(np.log1p(centre) - np.log1p(kind)).max() < 0.35
    assert list(model_of(learned(days(values, 1))).shares) == sorted(model_of(learned(days(values, 1))).shares)[::-1]


def test_a_model_for_each_instant() -> None:
    """A new version with each draw; none before enough customers were drawn; the last one when nobody is drawn."""
    values = population(4)
    few, enough = ENOUGH * 5 - 1, ENOUGH * 5
    draws = [draw(values[:few], 1, 3), draw(values[:enough], 2, 3), *days(values, 3, 3), draw(values[:0], 4, 3)]
    found = learn({}, draws)
    versions = [model and (model.version, model.as_of // DAY) for model in found.models.values()]
    assert list(found.models) == [("cluster", day * DAY) for day in (1, 2, 3, 4)]
    assert versions == [None, (1, 2), (2, 3), (2, 3)]
    state = found.states["cluster"]
    assert (state.samples, state.drawn_as_of, state.drawn) == (1100, 4 * DAY, ())


def test_dimensions_do_not_know_of_each_other() -> None:
    """Each learns from its own draws; what no draw was for comes back as it is."""
    one = days(population(4), 2)
    other = [each.model_copy(update={"dimension": "other"}) for each in days(shapeless(4), 2)]
    both = learn({}, [one[0], other[0], other[1], one[1]])
    assert both.states == {"cluster": learned(one), "other": learn({}, other).states["other"]}
    assert learn(both.states, []).states == both.states


# The same however it is done


def test_a_restart_changes_nothing() -> None:
    """One draw at a time, the state stored and read in between, ends in the same bytes as all in one go."""
    whole = learn({}, story())
    assert whole.states["cluster"].drifts > 0
    state: dict[str, LearnerState] = {}
    models = {}
    for each in story():
        found = learn(state, [each])
        models.update(found.models)
        state = {"cluster": LearnerState.parse(found.states["cluster"].encode())}
    assert state["cluster"].encode() == whole.states["cluster"].encode()
    assert models == whole.models


def test_no_hash_seed_changes_anything() -> None:
    """Other processes find the same bytes."""
    program = (
        "import sys; from models.clustering import learn; from tests.support.populations import story; "
        "sys.stdout.buffer.write(learn({}, story()[:5]).states['cluster'].encode())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            timeout=120,
        ).stdout
        for seed in ("1", "77")
    }
    assert found == {learned(story()[:5]).encode()}


def test_neither_shards_nor_order_matter() -> None:
    """One shard or three, in any order within an instant, and heard twice: the same models."""
    one = learn({}, days(population(4), 3)).models
    for order in permutations(range(3)):
        sent = [split(each, 3)[shard] for each in days(population(4), 3) for shard in (*order, order[0])]
        assert learn({}, sent).models == one


def test_the_seed_decides() -> None:
    """Another seed of the settings is another beginning."""
    one, other = (learned(days(shapeless(4), 1, settings_seed=seed)) for seed in (1, 2))
    assert model_of(one).centres != model_of(other).centres


def test_a_shard_that_begins_completes_several_instants() -> None:
    """They are learned one after the other, as if the shard had sent empty draws."""
    draws = [each.model_copy(update={"shards": 2}) for each in days(population(4), 3)]
    empty = [each.model_copy(update={"shard": 1, "keys": (), "rows": ()}) for each in draws]
    late = learn({}, [*draws, begins(draws[0], 1, 3)])
    assert late.models == learn({}, [each for pair in zip(draws, empty, strict=True) for each in pair]).models
    assert [as_of // DAY for _, as_of in late.models] == [1, 2, 3]


# Whatever is drawn


@pytest.mark.parametrize(
    "rows",
    [
        [(3.0, 1.0, 5.0)] * 200,
        [(3.0, 1.0, 5.0)] * 199 + [(4.0, 1.0, 5.0)],
        [(float(i % 3), 1.0, 5.0) for i in range(200)],
        [(0.1 + 0.2, 0.3, float(i)) for i in range(200)],
        [(-1e12 if i % 2 else 1e12, 1e-6 * i, 0.0) for i in range(200)],
        [(0.0, 0.0, 0.0)] * 200,
    ],
    ids=["all equal", "but one", "three kinds", "two measures equal", "huge and tiny", "nothing"],
)
def test_any_rows(rows: list[tuple[float, ...]]) -> None:
    """Fewer different customers than clusters, or measures in which nobody differs, still make a model."""
    values = np.array(rows)
    state = learned([*days(values, 6), *days(population(4), 9, 7), *days(values, 15, 10)])
    model = ClusterModel.parse(model_of(state).encode())
    assert np.isfinite(model.units).all()
    assert min(model.scale) > 0
    assert model.version == 15
    assert len(set(model.titles)) == 5
    assert LearnerState.parse(state.encode()) == state
    # A customer like all of the last draw is well described.
    if len(set(rows)) == 1:
        assert model.error < 0.2


def test_one_feature_and_many_clusters() -> None:
    """Nothing depends on there being three and five."""
    values = population(4)[:, 2:]
    state = learned(days(values, 4, clusters=20, features=("monetary",)))
    model = model_of(state)
    assert len(model.centres) == 20
    assert sum(model.shares) == pytest.approx(1, abs=1e-5)
    assert len(set(model.titles)) == 20


def with_centres(state: LearnerState, centres: Sequence[Sequence[float]]) -> LearnerState:
    """The state, had it learned and published these."""
    assert state.learned is not None
    found = tuple(tuple(centre) for centre in centres)
    learned, model = (each.model_copy(update={"centres": found}) for each in (state.learned, model_of(state)))
    return state.model_copy(update={"learned": learned, "model": model})


@pytest.mark.parametrize("sample", [250, 1000])
def test_a_centre_that_nobody_is_near_is_moved(sample: int) -> None:
    """Not at once, but after some thousand samples; to where it is of use, and the others keep their names."""
    values = shapeless(4)  # with twelve clusters, one more or less makes no great difference
    before = learned(days(values, 2, sample=sample, clusters=12))
    centres = list(model_of(before).centres)
    state, sizes = with_centres(before, [*centres[:2], (50.0, 50.0, 50.0), *centres[3:]]), []
    for each in days(values, 2 + 4000 // sample, 3, sample=sample, clusters=12):
        state = learn({"cluster": state}, [each]).states["cluster"]
        sizes.append(model_of(state).shares[2])
    gone = IDLE // sample - 1
    assert set(sizes[:gone]) == {0.0}
    assert min(sizes[gone:]) > 0
    kept = [0, 1, 3, 4]
    assert cdist(np.array(model_of(state).centres)[kept], np.array(centres)[kept]).argmin(axis=1).tolist() == [
        0,
        1,
        2,
        3,
    ]


def test_a_bad_beginning_is_left() -> None:
    """Two kinds that share a centre while two centres share a kind: k-means alone would stay there."""
    values = population(4)
    before = learned(days(values, 2))
    centres = np.array(model_of(before).centres)
    bad = with_centres(before, [(centres[0] + centres[1]) / 2, *centres[2:], centres[4] + 0.1])
    after = learn({"cluster": bad}, days(values, 3, 3)).states["cluster"]
    assert cdist(logged(model_of(after).units), logged(model_of(before).units)).min(axis=1).max() < 0.2
    assert model_of(after).error == pytest.approx(model_of(before).error, rel=0.05)


def test_names_stay_with_the_customers() -> None:
    """Whatever happens to the centres, a label goes on to mean the same people."""
    values = population(4)
    state = learned(days(values, 3))
    before = codes(model_of(state), values)
    assert state.learned is not None
    order = [3, 0, 4, 1, 2]
    mixed = state.learned.model_copy(update={"centres": tuple(state.learned.centres[code] for code in order)})
    after = learn({"cluster": state.model_copy(update={"learned": mixed})}, days(values, 4, 4)).states["cluster"]
    assert (codes(model_of(after), values) == before).mean() > 0.99


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_new_version_moves_few_customers(seed: int) -> None:
    """When nobody's behaviour has changed: less than one in a hundred, by the rule of the cluster engine."""
    for values in (population(seed), shapeless(seed)):
        logs, state, labels = logged(values), {}, None
        for each in days(values, 12):
            state = learn(state, [each]).states
            model = model_of(state["cluster"])
            apart, centres = model.distances(model.standardised(logs)), np.array(model.centres)
            if labels is None:
                labels = apart.argmin(axis=1)
                continue
            own = apart[np.arange(len(apart)), labels]
            beyond = own[:, None] - apart - 0.1 * squares(centres, centres)[labels]
            beyond[np.arange(len(apart)), labels] = -1
            moved = (beyond > 0).any(axis=1)
            assert moved.mean() < 0.01
            labels = np.where(moved, apart.argmin(axis=1), labels)


# The numbers behind it


def test_the_silhouette_is_scikit_learns() -> None:
    """Also with clusters of one, and with clusters that nobody is in."""
    rng = np.random.default_rng(3)
    for size, clusters in ((10, 3), (150, 4), (400, 7), (30, 28)):
        points, found = rng.normal(size=(size, 3)), rng.integers(0, clusters, size)
        assert silhouette(points, found, clusters + 2) == pytest.approx(silhouette_score(points, found))
    assert silhouette(points, np.zeros(len(points), dtype=np.int64), 3) == 0
    assert silhouette(np.zeros((10, 3)), np.arange(10) % 2, 2) == 0


def test_seeding_finds_separate_groups() -> None:
    """Each gets a centre; more clusters than different points get equal ones."""
    rng = np.random.default_rng(3)
    groups = rng.normal(size=(6, 2)) * 20
    points = np.repeat(groups, 50, axis=0) + rng.normal(size=(300, 2)) * 0.1
    for seed in range(5):
        assert cdist(groups, seeded(points, 6, (seed, 0))).min(axis=1).max() < 0.1
    few = seeded(np.array([[0.0], [1.0], [1.0]]), 3, (1, 0))
    assert set(few.ravel().tolist()) == {0.0, 1.0}


def test_the_missing_centre_is_the_best_one() -> None:
    """No other point lowers the error more; there is none when all points are centres."""
    rng = np.random.default_rng(3)
    points, centres = rng.normal(size=(80, 3)), rng.normal(size=(3, 3))
    place = missing(points, centres)
    assert place is not None
    errors = [inertia(points, np.vstack([centres, point])) for point in points]
    assert inertia(points, np.vstack([centres, place])) == pytest.approx(min(errors))
    assert missing(points, points) is None


def test_names_are_matched_all_together() -> None:
    """Most points in all, not the best for the first; equals by distance."""
    old = np.array([0] * 10 + [1] * 10)
    new = np.array([0] * 6 + [1] * 4 + [0] * 10)
    assert matched(old, new, np.zeros((2, 2))) == [1, 0]
    nobody = np.array([0, 0]), np.array([2, 2])
    assert matched(*nobody, np.array([[5.0, 5.0, 5.0], [2.0, 1.0, 9.0], [1.0, 2.0, 9.0]])) == [2, 1, 0]
