"""The processor and what is learned: draws at fixed instants, models taken with the cut-offs, and what they move."""

from typing import Any

import pytest

from models.changes import SegmentChanged
from models.clusters import ClusterModel
from models.instants import parse
from models.policy import Policy
from models.sampling import Draw
from models.wire import Changes
from tests.unit.build import DAY, Feeder, at, make_policy, purchase, signup
from tests.unit.fakes import switch
from tests.unit.test_engines import model_of
from tests.unit.test_processor_population import ABC, FIRST, SETTLE, WEEK, drive

KIND = """
[dimensions.kind]
engine = "cluster"
clusters = 2
features = ["recency_days", "orders"]
[dimensions.near]
engine = "rules"
[[dimensions.near.rules]]
segment = "near"
when = [{ dimension = "kind", is = ["c1"] }]
"""


def learned(feeder: Feeder, *models: ClusterModel | None) -> None:
    """Publish what was learned by the instants from FIRST - WEEK on: nothing by the first."""
    for week, model in enumerate((None, *models)):
        said = b"null" if model is None else model.encode()
        known = {("kind", FIRST + (week - 1) * WEEK): said}
        feeder.store.commit_learners(feeder.store.learners()[0], 0, {}, known)


def model(version: int, border: float) -> ClusterModel:
    """Two clusters by the logarithm of recency: the first nearer than ``border``."""
    found = model_of(("recency_days", "orders"), (0.0, 0.0), (1.0, 1.0), (border - 1, 0.0), (border + 1, 0.0))
    return found.model_copy(update={"version": version, "titles": ("recent", "long ago")})


def begun(policy: Policy, *models: ClusterModel | None) -> Feeder:
    """A shard in which two customers bought on day 0 and day 3, with what will be learned."""
    feeder = Feeder(policy)
    learned(feeder, *models)
    drive(feeder, at(0))
    feeder.feed(purchase("a", "e1", at(0)), signup("nobody", "e2", at(1)), purchase("b", "e3", at(3)))
    return feeder


def clustered(changes: list[SegmentChanged]) -> list[tuple[Any, ...]]:
    """What matters of the changes in what is learned."""
    return [
        (c["customer_id"], c["dimension"], c["from"], c["to"], c["cause"], c["model_version"], c["backfill"])
        for c in changes
        if c["dimension"] in ("kind", "near")
    ]


def test_draws_are_committed_with_the_summary() -> None:
    """One for each dimension that is learned, of all who have its features; the first is of nobody."""
    feeder = Feeder(make_policy(more=KIND))
    step = feeder.processor.stop(at(0))
    assert step is not None
    assert step.commit.entry is not None
    (empty,) = map(Draw.parse, step.commit.entry.draws)
    assert (empty.begins, empty.rows, empty.as_of) == (True, (), FIRST - WEEK)
    feeder = begun(make_policy(more=KIND))
    step = feeder.processor.stop(at(20))
    assert step is not None
    assert step.commit.entry is not None
    (draw,) = map(Draw.parse, step.commit.entry.draws)
    assert (draw.dimension, draw.shard, draw.shards, draw.as_of, draw.begins) == ("kind", 0, 1, FIRST, False)
    assert (draw.settings.features, draw.settings.clusters, draw.policy_version) == (("recency_days", "orders"), 2, 1)
    days = [(FIRST - at(day)) // DAY for day in (0, 3)]
    assert sorted(draw.rows) == sorted((float(each), 1.0) for each in days)


def test_what_nobody_learns_from_is_not_drawn() -> None:
    """A policy without clusters has no draws."""
    feeder = Feeder(make_policy(more=ABC))
    step = feeder.processor.stop(at(0))
    assert step is not None
    assert step.commit.entry is None


def test_the_first_model_is_history_where_it_matters() -> None:
    """It labels everybody, and what is made of it, which nobody did; what the same cut-offs move elsewhere is news."""
    policy = make_policy(more=ABC + KIND)
    feeder = begun(policy, None, model(1, 3.0))
    drive(feeder, FIRST + WEEK - 1)
    feeder.feed(purchase("rich", "e4", FIRST + WEEK - 1, "1000.00"))
    changes = drive(feeder, FIRST + WEEK + DAY)
    assert clustered(changes) == [
        ("a", "kind", None, "c1", "model", 1, True),
        ("a", "near", None, "near", "population", None, True),
        ("b", "kind", None, "c1", "model", 1, True),
        ("b", "near", None, "near", "population", None, True),
        ("rich", "kind", None, "c1", "model", 1, True),
        ("rich", "near", None, "near", "population", None, True),
    ]
    others = {(c["dimension"], c["cause"], c["backfill"]) for c in changes} - {
        (c["dimension"], c["cause"], c["backfill"]) for c in changes if c["dimension"] in ("kind", "near")
    }
    assert others == {("value", "population", False)}


def test_a_new_version_moves_those_whom_it_sees_elsewhere() -> None:
    """At the instant at which it is in force, and the change says which version, its title and the instant."""
    feeder = begun(make_policy(more=KIND), model(1, 4.0), model(2, 1.5))
    drive(feeder, FIRST + SETTLE + 1)
    assert {customer["segments"].get("kind") for customer in feeder.customers().values()} == {"c1", None}
    changes = drive(feeder, FIRST + WEEK + SETTLE + 1)
    assert clustered(changes) == [
        ("a", "kind", "c1", "c2", "model", 2, False),
        ("a", "near", "near", None, "population", None, False),
        ("b", "kind", "c1", "c2", "model", 2, False),
        ("b", "near", "near", None, "population", None, False),
    ]
    assert {parse(change["effective_at"]) for change in changes} == {FIRST + WEEK + SETTLE}
    assert changes[0]["title"] == "long ago"
    again = begun(make_policy(more=KIND), model(1, 4.0), model(2, 1.5))
    assert [c["change_id"] for c in drive(again, FIRST + WEEK + SETTLE + 1)][-4:] == [c["change_id"] for c in changes]


@pytest.mark.parametrize("reload", [False, True])
@pytest.mark.parametrize("most", [None, 1])
def test_slices_and_crashes_change_nothing(most: int | None, reload: bool) -> None:
    """Every customer is labelled by one version at a time, whatever happens between two commits."""
    models = (model(1, 4.0), model(2, 2.0), model(3, 4.5))
    wanted = drive(begun(make_policy(more=KIND), *models), FIRST + 3 * WEEK)
    feeder = begun(make_policy(more=KIND), *models)
    learned(feeder, *models)
    found = drive(feeder, FIRST + 3 * WEEK, most, reload=reload)
    assert [change["change_id"] for change in found] == [change["change_id"] for change in wanted]
    assert [change["model_version"] for change in found] == [change["model_version"] for change in wanted]


def test_a_purchase_moves_at_once_and_time_waits_for_the_dwell() -> None:
    """A dwell holds a label against other versions and time, not against what the customer does."""
    policy = make_policy(more=KIND.replace("clusters = 2", 'clusters = 2\ndwell = "30d"'))
    feeder = begun(policy, model(1, 2.5), model(2, 2.5))
    drive(feeder, at(5))
    (back,) = [c for c in drive(feeder, at(25)) if c["customer_id"] == "a" and c["dimension"] == "kind"] or [None]
    assert back is None
    moved = [c for c in drive(feeder, at(60)) if c["customer_id"] == "a" and c["dimension"] == "kind"]
    assert [(c["to"], c["cause"], parse(c["effective_at"])) for c in moved] == [
        ("c2", "time", FIRST + SETTLE + 30 * DAY)
    ]
    bought = [c for c in feeder.feed(purchase("a", "e9", at(61))) if c["dimension"] == "kind"]
    assert [(c["to"], c["cause"], c["model_version"]) for c in bought] == [("c1", "purchase", 2)]


def test_a_dwell_holds_nobody_without_a_label() -> None:
    """After a policy with other clusters nobody has one, until its first model puts everybody into one: as history."""
    dwell = 'clusters = 2\ndwell = "14d"'
    feeder = begun(make_policy(more=KIND.replace("clusters = 2", dwell)), model(1, 4.0))
    drive(feeder, FIRST + DAY)
    switch(feeder, make_policy(version=2, more=KIND.replace("clusters = 2", dwell.replace("2", "3", 1))))
    gone = [change for change in drive(feeder, FIRST + DAY) if change["dimension"] == "kind"]
    assert {(change["from"], change["to"], change["cause"]) for change in gone} <= {("c1", None, "policy")}
    assert {customer["segments"]["kind"] for customer in feeder.customers().values()} == {None}
    three = model_of(("recency_days", "orders"), (0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (3.0, 0.0), (5.0, 0.0))
    known = {("kind", FIRST + WEEK): three.model_copy(update={"version": 2}).encode()}
    feeder.store.commit_learners(feeder.store.learners()[0], 0, {}, known)
    found = clustered(drive(feeder, FIRST + WEEK + SETTLE + 1))
    assert [each for each in found if each[1] == "kind"] == [
        ("a", "kind", None, "c2", "model", 2, True),
        ("b", "kind", None, "c2", "model", 2, True),
    ]


def test_moves_are_counted_by_their_cause() -> None:
    """What a model has moved is told apart from what other cut-offs have."""
    feeder = begun(make_policy(more=ABC + KIND), model(1, 4.0))
    found: dict[tuple[str, ...], int] = {}
    while feeder.processor.stop_at <= FIRST + SETTLE:
        step = feeder.processor.stop(FIRST + SETTLE)
        if step is None:
            assert feeder.processor.activations.merge(1)
            continue
        feeder.processor.commit(step)
    step = feeder.processor.advance(FIRST + SETTLE)
    assert step is not None
    assert isinstance(step.outcome.changes, Changes)
    found = step.outcome.changes.moves(feeder.processor.table)
    assert found["kind", "", "c1", "model"] == 2
    assert found["near", "", "near", "population"] == 2
    assert sum(count for (dimension, *_, cause), count in found.items() if dimension == "value") == 2
