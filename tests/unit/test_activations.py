"""Activations: the numbered list of policies and cut-offs that every worker follows, and who may append to it."""

import threading
from typing import Any

import numpy as np
import pytest

from models.activation import Activation
from models.clusters import ClusterModel, Settings
from models.errors import StateError
from models.events import ROLES
from models.instants import NEVER
from models.learner import Alarm, LearnerState, Numbers
from models.policy import Policy
from models.population import SUMMARISED, Cutoffs, Distribution, Summary
from models.rows import layout_of
from models.table import CustomerTable
from streams.activations import Activations
from streams.commit import ShardCommit
from streams.errors import ConfigurationError, StoreUnavailable
from streams.store.memory import MemoryStore
from tests.unit.build import Feeder, at, make_policy, purchase
from tests.unit.fakes import FaultyStore
from tests.unit.test_engines import model_of

ABC = '[dimensions.value]\nengine = "pareto"\nclasses = { A = 80, B = 20 }\nmargin = 0\n'
SETTLE = 600_000_000
FIRST = Activation(1, "policy", 1, NEVER, NEVER, True, Cutoffs())


def abc(version: int = 1, more: str = "") -> Policy:
    """A policy with a dimension that needs the population."""
    return make_policy(version=version, more=ABC + more)


def of(*revenue: int) -> Summary:
    """A shard's buyers."""
    distribution = Distribution.of(np.array(revenue, dtype=np.int64))
    return Summary(dict.fromkeys(SUMMARISED, distribution))


def summarise(store: MemoryStore, shard: int, instant: int, summary: Summary) -> None:
    """Let a shard store a summary, as its commits do."""
    header = store.acquire(shard, "t", dict.fromkeys(ROLES, 0), {})
    layout = layout_of(CustomerTable(make_policy()))
    store.commit(
        ShardCommit(
            shard, "t", header.commits + 1, {}, instant, instant, 1, NEVER, 1, layout, (), (), {}, {}, None,
            (instant, summary.json), None,
        )
    )  # fmt: skip


# Following


def test_the_first_policy_seeds_an_empty_store() -> None:
    """It becomes activation 1: from the beginning, without cut-offs, and what it does is history."""
    store, policy = MemoryStore(), make_policy(version=3)
    activations = Activations(store, policy)
    assert activations.latest == 1
    assert activations.active == Activation(1, "policy", 3, NEVER, NEVER, True, Cutoffs())
    assert store.policy_text(3) == policy.text
    assert activations.policy(3) == policy


def test_a_store_with_activations_is_not_seeded() -> None:
    """What is in force counts, whatever policy a worker was given."""
    store = MemoryStore()
    Activations(store, make_policy(version=3))
    later = Activations(store, make_policy(version=9))
    assert (later.latest, later.active.policy_version) == (1, 3)
    assert store.policy_text(9) is None


def test_two_workers_that_seed_at_once_agree() -> None:
    """Whoever is first has it; the other follows."""
    store = FaultyStore()

    class Late(FaultyStore):
        def latest_activation(self) -> int:
            found = store.latest_activation()
            if not found:
                Activations(store, make_policy(version=1))
            return found

    late = Late()
    late.__dict__.update(store.__dict__)
    late._activations, late._policies = store._activations, store._policies
    activations = Activations(late, make_policy(version=2))
    assert (activations.latest, activations.active.policy_version) == (1, 1)


def test_refresh_finds_what_others_have_activated() -> None:
    """It says whether there is anything new."""
    store = MemoryStore()
    one, other = Activations(store, make_policy()), Activations(store, make_policy())
    assert not other.refresh()
    one.apply(make_policy(version=2), 5, backfill=False)
    assert other.latest == 1
    assert other.refresh()
    assert (other.latest, other.active.policy_version) == (2, 2)
    assert not other.refresh()
    assert other.segmenter(1, NEVER).policy.version == 1
    segmenter = other.segmenter(2, 7)
    assert (segmenter.number, segmenter.since, segmenter.policy.version) == (2, 7, 2)


def test_an_emptied_store_is_seeded_again() -> None:
    """It gets back the policy that was in force, as number 1; of those before nothing is remembered."""
    store = FaultyStore()
    store.keep()
    activations = Activations(store, make_policy(version=4))
    activations.apply(make_policy(version=5, keep=[]), 0, backfill=True)
    store.restore()
    assert activations.refresh()
    assert (activations.latest, activations.active.policy_version) == (1, 5)
    assert activations.policy(5).attributes.keep == ()
    with pytest.raises(StateError, match="the store has no policy of version 4; restore the store from a backup"):
        activations.policy(4)
    activations.apply(make_policy(version=6, max_values=7), 0, backfill=True)
    assert activations.policy(6).attributes.max_values == 7


def test_a_store_that_was_restored_is_followed() -> None:
    """From a backup with fewer activations, what is made next is made anew."""
    store = FaultyStore()
    activations = Activations(store, make_policy())
    store.keep()
    activations.apply(make_policy(version=2), 0, backfill=True)
    store.restore()
    activations.refresh()
    assert activations.latest == 1
    activations.apply(make_policy(version=3), 0, backfill=True)
    assert (activations.latest, activations.active.policy_version) == (2, 3)


def test_an_activation_that_is_not_there_is_told() -> None:
    """A shard that says it is at one that the store does not have cannot be read."""
    with pytest.raises(StateError, match="no activation 7"):
        Activations(MemoryStore(), make_policy()).segmenter(7, NEVER)


def test_a_store_that_does_not_answer() -> None:
    """What is known stays known."""
    store = FaultyStore()
    activations = Activations(store, make_policy())
    store.fail("latest_activation", "before")
    with pytest.raises(StoreUnavailable):
        activations.refresh()
    assert activations.latest == 1
    assert not activations.refresh()


def listed(*made: Activation) -> Activations:
    """These activations, all of the policy's version 1 after the first."""
    store = MemoryStore()
    activations = Activations(store, abc())
    for each in made:
        assert store.activate(each)
    activations.refresh()
    return activations


def cutoffs(number: int, instant: int) -> Activation:
    return Activation(number, "population", 1, instant, instant + 10, False, Cutoffs(as_of=instant))


def policy_at(number: int, as_of: int) -> Activation:
    return Activation(number, "policy", 1, 999, NEVER, False, Cutoffs(as_of=as_of))


def test_which_comes_next() -> None:
    """A policy at once; cut-offs when a shard's time has reached them; those that are awaited, the first there are."""
    activations = listed(cutoffs(2, 100), cutoffs(3, 200), policy_at(4, 200), cutoffs(5, 300), cutoffs(6, 400))
    assert [activations.newer_policy(number) for number in range(7)] == [4, 4, 4, 4, None, None, None]
    assert [activations.cutoffs_at(4, time) for time in (0, 309, 310, 409, 410, 10**9)] == [None, None, 5, 5, 6, 6]
    assert activations.cutoffs_at(6, 10**9) is None
    assert [activations.cutoffs_since(1, as_of) for as_of in (0, 100, 101, 201, 400, 401)] == [2, 2, 3, 5, 6, None]
    assert activations.cutoffs_since(5, 100) == 6


# Merging


def test_cutoffs_need_all_shards() -> None:
    """While one has not summarised itself there are none; then they are those of all together."""
    store = MemoryStore()
    activations = Activations(store, abc())
    summarise(store, 0, 1000, of(1, 2, 3))
    assert not activations.merge(2)
    assert (activations.latest, store.population()) == (1, None)
    summarise(store, 1, 1000, of(10, 84))
    assert activations.merge(2)
    scores = {"value": {"monetary": (84,)}}
    cutoffs = Cutoffs(1000, scores)
    assert activations.active == Activation(2, "population", 1, 1000, 1000 + SETTLE, False, cutoffs, ("value",))
    population = store.population()
    assert population is not None
    assert (population[0], population[1].distributions["orders"].size) == (1000, 5)
    assert not activations.merge(2)


def test_a_shard_that_began_later_was_empty_before() -> None:
    """It does not keep the others waiting for an instant at which it had nobody."""
    store = MemoryStore()
    activations = Activations(store, abc())
    summarise(store, 0, 1000, of(5))
    summarise(store, 1, 2000, of(7))
    assert activations.merge(2)
    assert activations.active.cutoffs.as_of == 1000
    assert not activations.merge(2)
    summarise(store, 0, 2000, of(6))
    assert activations.merge(2)
    assert activations.active.cutoffs == Cutoffs(2000, {"value": {"monetary": (6,)}})


def test_an_instant_that_will_never_be_complete_is_passed_over() -> None:
    """A shard that has jumped over some has a later one, and that is merged; before its first it was empty."""
    store = MemoryStore()
    activations = Activations(store, abc())
    for instant in (1000, 2000, 3000):
        summarise(store, 0, instant, of(1))
    for instant in (500, 3000):
        summarise(store, 1, instant, of(2))
    made = []
    while activations.merge(2):
        made.append(activations.active.cutoffs.as_of)
    assert made == [500, 3000]


def test_instants_are_merged_one_after_the_other() -> None:
    """So that every worker, and every replay, goes through the same cut-offs."""
    store = MemoryStore()
    activations = Activations(store, abc())
    for instant in (1000, 2000, 3000):
        summarise(store, 0, instant, of(instant))
    while activations.merge(1):
        pass
    assert [activations[number].cutoffs.as_of for number in range(1, 5)] == [NEVER, 1000, 2000, 3000]
    assert activations.latest == 4


def test_a_policy_that_needs_no_population_has_no_cutoffs() -> None:
    """Whatever summaries there still are."""
    store = MemoryStore()
    activations = Activations(store, make_policy())
    summarise(store, 0, 1000, of(1))
    assert not activations.merge(1)
    assert activations.latest == 1


def test_two_who_merge_at_once_make_one_activation() -> None:
    """The store takes each number once; who comes second has done nothing, and sees what the first did."""
    store = MemoryStore()
    workers = [Activations(store, abc()) for _ in range(2)]
    summarise(store, 0, 1000, of(1, 5))
    made = [worker.merge(1) for worker in workers]
    assert made == [True, False]
    assert [worker.latest for worker in workers] == [2, 2]
    assert store.latest_activation() == 2


def test_many_threads_make_one_activation() -> None:
    """A worker's shards may all find at once that everything is there."""
    store = MemoryStore()
    activations = Activations(store, abc())
    summarise(store, 0, 1000, of(1, 5))
    made: list[bool] = []
    threads = [threading.Thread(target=lambda: made.append(activations.merge(1))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False] * 7 + [True]
    assert store.latest_activation() == 2


def test_a_merge_whose_answer_is_lost_is_made_once() -> None:
    """It is found there when it is tried again."""
    store = FaultyStore()
    activations = Activations(store, abc())
    summarise(store, 0, 1000, of(1, 5))
    store.fail("activate", "after")
    with pytest.raises(StoreUnavailable):
        activations.merge(1)
    activations.merge(1)
    assert store.latest_activation() == 2
    activations.refresh()
    assert activations.latest == 2


# What is learned

CLUSTER = '[dimensions.kind]\nengine = "cluster"\nclusters = 2\nfeatures = ["orders"]\n'


def model(version: int, instant: int, clusters: int = 2) -> ClusterModel:
    """A model of one measure."""
    return model_of(("orders",), (1.0,), (1.0,), *((float(centre),) for centre in range(clusters))).model_copy(
        update={"version": version, "as_of": instant}
    )


def publish(store: MemoryStore, instant: int, published: ClusterModel | None) -> None:
    """Store what the trainer has learned by an instant."""
    said = b"null" if published is None else published.encode()
    store.commit_learners(store.learners()[0], 0, {}, {("kind", instant): said})


def learner(published: ClusterModel) -> LearnerState:
    """The learner of a model, which has learned from two customers."""
    learned = Numbers(
        count=2, means=(1.0,), variances=(1.0,), centres=published.centres, idle=(0, 0), hasty=0, alarm=Alarm(unit=1.0)
    )
    return LearnerState(
        dimension="kind",
        settings=Settings(features=("orders",), clusters=2, sample=100, seed=1),
        policy_version=1,
        shards=1,
        learned_as_of=published.as_of,
        version=published.version,
        samples=2,
        learned=learned,
        model=published,
    )


def test_cutoffs_wait_for_what_is_learned() -> None:
    """A model of the same instant belongs to them; who has waited long enough goes without."""
    store = MemoryStore()
    activations = Activations(store, abc(more=CLUSTER))
    for instant in (1000, 2000, 3000, 4000):
        summarise(store, 0, instant, of(1, 2))
    assert not activations.merge(1)
    publish(store, 1000, None)
    assert activations.merge(1)
    assert (activations.active.cutoffs.clusters, activations.active.first) == ({}, ("value",))
    assert not activations.merge(1)
    publish(store, 2000, model(1, 2000))
    assert activations.merge(1)
    assert activations.active.cutoffs.clusters == {"kind": model(1, 2000)}
    assert activations.active.first == ("kind",)
    assert not activations.merge(1)
    assert activations.merge(1, models=False)
    assert activations.active.cutoffs.as_of == 3000
    assert activations.active.cutoffs.clusters == {"kind": model(1, 2000)}
    publish(store, 4000, model(3, 4000))
    assert activations.merge(1)
    assert (activations.active.cutoffs.clusters, activations.active.first) == ({"kind": model(3, 4000)}, ())


def test_a_model_that_does_not_fit_is_no_model() -> None:
    """Of another policy's clusters nobody is labelled; what was known before stays while it fits."""
    store = MemoryStore()
    activations = Activations(store, abc(more=CLUSTER))
    summarise(store, 0, 1000, of(1, 2))
    publish(store, 1000, model(1, 1000, clusters=3))
    assert activations.merge(1)
    assert activations.active.cutoffs.clusters == {}
    three = activations.apply(abc(2, CLUSTER.replace("= 2", "= 3")), 5, backfill=True)
    assert three.cutoffs.clusters == {}


def test_a_rollback_has_what_was_learned() -> None:
    """A policy takes clusters away, and the one before brings them back with the latest model."""
    store = MemoryStore()
    first = abc(more=CLUSTER)
    activations = Activations(store, first)
    summarise(store, 0, 1000, of(1, 2))
    state = learner(model(1, 1000))
    store.commit_learners(None, 1, {"kind": state.encode()}, {("kind", 1000): model(1, 1000).encode()})
    assert activations.merge(1)
    assert activations.apply(abc(2), 5, backfill=True).cutoffs.clusters == {}
    assert activations.apply(first, 6, backfill=True, again=True).cutoffs.clusters == {"kind": model(1, 1000)}


def test_an_activation_is_stored_with_its_models() -> None:
    """What is read is what was written; a damaged or newer model is refused."""
    cutoffs = Cutoffs(7, {"value": {"monetary": (5,)}}, frozenset(("value:B",)), {"kind": model(2, 7)})
    activation = Activation(3, "population", 1, 7, 8, False, cutoffs, ("kind",))
    assert Activation.parse(3, activation.json) == activation
    with pytest.raises(StateError, match="a stored cluster model was stored in format 2; run a newer version"):
        Activation.parse(3, activation.json.replace(b'"format":1', b'"format":2'))
    with pytest.raises(StateError, match="a stored cluster model is damaged: scale"):
        Activation.parse(3, activation.json.replace(b'"scale":[1.0]', b'"scale":[0.0]'))
    with pytest.raises(StateError, match="activation 3 was stored in format 3; run a newer version"):
        Activation.parse(3, activation.json.replace(b'"format":2', b'"format":3'))


def test_activations_of_the_first_format_are_read() -> None:
    """They have no models, and all that the first cut-offs moved was history."""
    old = b'{"format":1,"cause":"population","policy_version":1,"instant":7,"active_from":8,"backfill":true,'
    old += b'"cutoffs":{"as_of":7,"scores":{"value":{"monetary":[5]}},"small":[]}}'
    cutoffs = Cutoffs(7, {"value": {"monetary": (5,)}})
    assert Activation.parse(2, old) == Activation(2, "population", 1, 7, 8, True, cutoffs)


# Applying


def test_a_policy_is_applied() -> None:
    """It is the next activation, in force at once, named by its instant; its moves are history if that is wanted."""
    store = MemoryStore()
    activations = Activations(store, make_policy())
    for number, backfill in ((2, True), (3, False)):
        policy = make_policy(version=number)
        made = activations.apply(policy, at(number), backfill)
        assert made == Activation(number, "policy", number, at(number), NEVER, backfill, Cutoffs())
        assert activations.active == made
        assert store.policy_text(number) == policy.text


def test_an_applied_policy_has_cutoffs_of_the_last_population() -> None:
    """A new dimension that needs them is not without until the next instant."""
    store = MemoryStore()
    activations = Activations(store, abc())
    summarise(store, 0, 1000, of(1, 99))
    activations.merge(1)
    rfm = '[dimensions.rfm]\nengine = "rfm"\n'
    made = activations.apply(abc(2, rfm), 5, backfill=True)
    assert made.cutoffs.as_of == 1000
    assert made.cutoffs.scores["value"] == {"monetary": (99,)}
    assert made.cutoffs.scores["rfm"]["monetary"] == (1, 1, 99, 99)


@pytest.mark.parametrize(
    ("policy", "again", "sentence"),
    [
        (make_policy(version=5), False, "policy version 5 is already active"),
        (make_policy(version=5), True, "policy version 5 is already active"),
        (
            make_policy(version=5, keep=[]),
            False,
            "another policy with version 5 was active before; give this one a version of its own",
        ),
        (
            make_policy(version=3, keep=[]),
            True,
            "another policy with version 3 was active before; give this one a version of its own",
        ),
        (
            make_policy(version=3),
            False,
            "policy version 5 is active; give this one a greater version than 3, or use `segmenter policy rollback` "
            "to go back",
        ),
        (
            make_policy(version=4),
            False,
            "policy version 5 is active; give this one a greater version than 4, or use `segmenter policy rollback` "
            "to go back",
        ),
        (
            make_policy(version=6, base="EUR"),
            False,
            "amounts are stored in USD and this policy's base is EUR; set money.base back, or start with another "
            "SEGMENTER_NAMESPACE and rebuild",
        ),
    ],
)
def test_a_policy_that_cannot_follow_is_refused(policy: Policy, again: bool, sentence: str) -> None:
    """With a sentence that says what to do, and nothing is activated."""
    store = MemoryStore()
    activations = Activations(store, make_policy(version=3))
    activations.apply(make_policy(version=5), 0, backfill=True)
    with pytest.raises(ConfigurationError) as refused:
        activations.apply(policy, 1, backfill=True, again=again)
    assert str(refused.value) == sentence
    assert store.latest_activation() == 2


def test_a_policy_may_be_active_again() -> None:
    """A rollback is another activation, of a version that was there before."""
    store = MemoryStore()
    first = make_policy(version=3)
    activations = Activations(store, first)
    activations.apply(make_policy(version=5, keep=[]), 0, backfill=True)
    made = activations.apply(first, 9, backfill=True, again=True)
    assert (made.number, made.policy_version) == (3, 3)
    assert activations.policy(activations.active.policy_version) == first


def test_a_conflict_is_tried_again() -> None:
    """Cut-offs or a policy that somebody else activates in the meantime are followed, not overwritten."""

    class Busy(MemoryStore):
        meanwhile = 2

        def activate(self, activation: Activation, *args: Any, **kwargs: Any) -> bool:
            if self.meanwhile and activation.number > 1:
                self.meanwhile -= 1
                assert super().activate(cutoffs(activation.number, 100 * activation.number))
            return super().activate(activation, *args, **kwargs)

    store = Busy()
    activations = Activations(store, abc())
    made = activations.apply(abc(2), 5, backfill=True)
    assert (made.number, activations.latest) == (4, 4)
    assert [activations[number].cause for number in range(1, 5)] == ["policy", "population", "population", "policy"]


def test_a_policy_that_another_applies_meanwhile_is_looked_at() -> None:
    """What could follow before may not be able to any more."""

    class Busy(MemoryStore):
        busy = True

        def activate(self, activation: Activation, *args: Any, **kwargs: Any) -> bool:
            if self.busy and activation.number > 1:
                self.busy = False
                Activations(self, make_policy()).apply(make_policy(version=7), 1, backfill=True)
            return super().activate(activation, *args, **kwargs)

    activations = Activations(Busy(), make_policy())
    with pytest.raises(ConfigurationError, match="policy version 7 is active; give this one a greater version than 6"):
        activations.apply(make_policy(version=6), 2, backfill=True)
    assert activations.latest == 2


def test_a_shard_of_the_version_before_begins_with_the_policy() -> None:
    """State that knows of no activation is labelled under the first one, which changes nothing that is right."""
    store = FaultyStore()
    feeder = Feeder(store=store)
    feeder.feed(purchase("a", "1", at(0)))
    store.lose_activations()
    assert store.peek().activation == 0
    feeder.load()
    assert feeder.processor.activation == 1
    assert feeder.advance(at(1)) == []
    assert [change["to"] for change in feeder.advance(at(91))] == ["lapsed"]
    assert store.peek().activation == 1
