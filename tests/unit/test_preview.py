"""Preview: what it predicts is what activating the policy then does, and nothing is written meanwhile."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.changes import SegmentChanged
from models.events import ROLES
from models.instants import parse
from models.policy import Policy, parse_policy
from streams.activations import Activations
from streams.commit import ShardHeader
from streams.errors import ConfigurationError
from streams.generator import Population, generate
from streams.preview import Move, Preview, RecordedState, preview
from streams.processor import BatchProcessor, Clock, Shard
from streams.recorded import recorded_event
from streams.store.memory import MemoryStore
from tests.unit.build import DAY, Event, at, make_policy, purchase, signup

#: The instant at which policies are applied; it is only a name.
NOW = at(5000)

LIFE = '[dimensions.lifecycle]\nengine = "lifecycle"\n'
QUICK = LIFE + 'lapse_after = "40d"\nregular_orders = 2\n'
SPEND = '[dimensions.spend]\nengine = "bands"\nof = "average_order"\nbands = { low = 0, mid = 20, high = 60 }\n'
AGING = '[dimensions.aging]\nengine = "bands"\nof = "recency_days"\nbands = { fresh = 0, stale = 30, old = 120 }\n'
SCORED = """[population]
every = "28d"
[dimensions.value]
engine = "pareto"
classes = { A = 80, B = 15, C = 5 }
[dimensions.rfm]
engine = "rfm"
"""
DWELLING = SCORED.replace('engine = "rfm"', 'engine = "rfm"\ndwell = "30d"')
SMALL = """[dimensions.region]
engine = "attribute"
of = "country"
groups = { us = ["US"], dach = ["DE", "AT", "CH"], gb = ["GB"] }
other = "rest"
viable = { customers = 12, publish = false }
"""
RULES = """[dimensions.care]
engine = "rules"
[[dimensions.care.rules]]
segment = "save"
when = [{ dimension = "lifecycle", is = ["regular"] }, { measure = "recency_days", from = 20 }]
[[dimensions.care.rules]]
segment = "greet"
when = [{ dimension = "lifecycle", is = ["new"] }]
"""
TALLIED = (
    '[dimensions.shop]\nengine = "dominant"\nof = "channel"\ngroups = { online = ["online"], store = ["store"] }\n'
)
KEEP = '[attributes]\nkeep = ["country"]\n'

POLICIES = {
    "life": KEEP + LIFE,
    "quick": KEEP + QUICK + SPEND,
    "scored": SCORED + KEEP + LIFE,
    "dwelling": DWELLING + KEEP + QUICK + RULES,
    "small": SCORED + KEEP + SPEND + SMALL,
    "rules": KEEP + LIFE + RULES + AGING + TALLIED,
    "nothing in common": '[dimensions.pace]\nengine = "bands"\nof = "orders_per_month"\nbands = { low = 0, high = 1 }',
}


def policy_of(name: str, version: int) -> Policy:
    """One of POLICIES."""
    return parse_policy(f"version = {version}\n" + POLICIES[name])


@lru_cache(maxsize=4)
def generated(seed: int) -> tuple[Event, ...]:
    """Half a year of customers."""
    return tuple(generate(Population(customers=30, days=200, seed=seed)))


def state(policy: Policy, events: Iterable[Event], shards: int = 1, until: int | None = None) -> MemoryStore:
    """What is stored once the events are processed."""
    run = RecordedState(policy, shards)
    recorded = [recorded_event(json.dumps(event).encode(), "test", line) for line, event in enumerate(events, 1)]
    assert list(run.feed(recorded))[-1] == len(recorded)
    assert not run.finish(until).dead_letters
    return run.store


def applied(
    store: MemoryStore, shards: int, policy: Policy, until: int, most: int | None = None
) -> Iterator[SegmentChanged]:
    """Activate the policy as ``apply`` does and let every shard's worker follow; the changes that are published.

    The workers' time has reached ``until`` before.
    """
    processors = []
    for number in range(shards):
        topics = dict(zip(ROLES, ROLES, strict=True))
        activations = Activations(store, policy)
        processor = BatchProcessor(Shard(number, shards, topics), activations, store, Clock.EVENT)
        processor.load({}, {})
        assert processor.advance(until) is None
        processors.append(processor)
    Activations(store, policy).apply(policy, NOW, True)
    for processor in processors:
        if store.header(processor.shard.number).time is None:
            continue
        processor.activations.refresh()
        step = processor.follow()
        assert step is not None
        processor.commit(step)
        assert step.reload
        processor.load({}, {})
        while (step := processor.advance(processor.time, most)) is not None:
            processor.commit(step)
            published = enumerate(step.outcome.published)
            yield from (change for place, change in published if place not in step.outcome.withheld)


def identity(change: SegmentChanged) -> tuple[str, str, str | None, str | None, str]:
    return change["customer_id"], change["dimension"], change["from"], change["to"], change["change_id"]


def predicted(store: MemoryStore, shards: int, policy: Policy, until: int) -> tuple[Preview, list[SegmentChanged]]:
    """A preview and the changes in it."""
    found: list[SegmentChanged] = []
    return preview(store, shards, policy, NOW, at=until, take=found.append), found


def stored(store: MemoryStore) -> str:
    """Everything a store holds."""
    return repr(vars(store))


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2),
    old=st.sampled_from(sorted(POLICIES)),
    new=st.sampled_from(sorted(POLICIES)),
    shards=st.sampled_from([1, 3]),
    day=st.integers(20, 260),
    most=st.sampled_from([None, 1, 7]),
)
def test_what_is_predicted_is_what_then_happens(
    seed: int, old: str, new: str, shards: int, day: int, most: int | None
) -> None:
    """For any two policies: the same customers move from and to the same segments, in changes with the same ids."""
    events = [event for event in generated(seed) if day_of(event) < day]
    store = state(policy_of(old, 1), events or generated(seed)[:1], shards, at(day))
    before = stored(store)
    policy = policy_of(new, 2)
    found, changes = predicted(store, shards, policy, at(day))
    assert stored(store) == before
    really = list(applied(store, shards, policy, at(day), most))
    assert Counter(map(identity, changes)) == Counter(map(identity, really))
    moves = Counter(Move(change["dimension"], change["from"], change["to"]) for change in really)
    assert sum((found.moves.counts - moves).values()) == found.moves.withheld
    assert {change["cause"] for change in really} <= {"policy"}
    # A policy ends every dwell; and at the very instant of a summary, cut-offs of it are newer than those in force.
    if old == new != "dwelling" and at(day) % (28 * DAY):
        assert not found.moves.counts


def day_of(event: Event) -> float:
    """The day of an event in the tests' calendar."""
    return (parse(event["occurred_at"]) - at(0)) / DAY


def test_it_ends_where_apply_ends() -> None:
    """The segments that the preview leads to are those in the store afterwards."""
    events = [purchase(f"c{i}", str(i), at(i), f"{i}.00") for i in range(1, 30)]
    store = state(policy_of("life", 1), events, until=at(60))
    found, _ = predicted(store, 1, policy_of("quick", 2), at(60))
    assert found.customers == 29
    list(applied(store, 1, policy_of("quick", 2), at(60)))
    sizes = {name: count.customers for name, count in store.segments(0).items() if count.customers}
    after: Counter[str] = Counter({"lifecycle:new": 29})
    for move, count in found.moves.counts.items():
        after[f"{move.dimension}:{move.after}"] += count
        after[f"{move.dimension}:{move.before}"] -= count
    assert {name: count for name, count in after.items() if count > 0} == sizes
    assert found.moves.customers == 29


def one_by_one(found: Preview) -> dict[str, Any]:
    return {
        f"{sample.change['customer_id']} {move.dimension}": (sample.reason, sample.reason_before)
        for move, samples in found.moves.samples.items()
        for sample in samples
    }


def test_samples_say_why() -> None:
    """Under the new policy, and under the old one if that has the dimension; a few customers for each move."""
    events = [purchase(f"c{i}", str(i), at(0), "50.00") for i in range(9)]
    store = state(policy_of("life", 1), events, until=at(60))
    found = preview(store, 1, policy_of("quick", 2), NOW, at=at(60), samples=2)
    assert found.moves.counts == {Move("lifecycle", "new", "lapsed"): 9, Move("spend", None, "mid"): 9}
    why = "1 order, last purchase 60 days before"
    assert one_by_one(found) == {
        "c0 lifecycle": (why, why),
        "c1 lifecycle": (why, why),
        "c0 spend": ("average_order 50.00 is in [20, 60)", None),
        "c1 spend": ("average_order 50.00 is in [20, 60)", None),
    }
    assert found.moves.samples[Move("spend", None, "mid")][0].change["rfm"]["recency_days"] == 60
    assert preview(store, 1, policy_of("quick", 2), NOW, at=at(60), samples=0).moves.samples == {
        Move("lifecycle", "new", "lapsed"): [], Move("spend", None, "mid"): [],
    }  # fmt: skip


def test_samples_are_the_same_whatever_the_shards() -> None:
    """The first by customer_id."""
    events = [purchase(f"c{i}", str(i), at(0), "50.00") for i in range(30)]
    shown = [
        one_by_one(preview(state(policy_of("life", 1), events, shards, at(60)), shards, policy_of("quick", 2), NOW))
        for shards in (1, 4)
    ]
    assert shown[0] == shown[1]


def test_the_first_summary_of_the_population_is_foreseen() -> None:
    """Cut-offs come only after the policy; who would move then is told apart."""
    events = [purchase(f"c{i}", str(i), at(i), f"{10 * i + 1}.00") for i in range(20)]
    store = state(policy_of("life", 1), events)
    before = stored(store)
    found, changes = predicted(store, 1, policy_of("scored", 2), at(19))
    assert changes == []
    assert found.later is not None
    assert {move.dimension for move in found.later.counts} == {"value", "rfm"}
    assert found.later.customers == 20
    assert any("nobody has a segment in value, rfm until" in note for note in found.notes)
    assert stored(store) == before
    scored = state(policy_of("scored", 1), events, until=at(30))
    assert predicted(scored, 1, policy_of("small", 2), at(30))[0].later is None


def test_a_shard_of_an_older_version() -> None:
    """One that has never committed under an activation moves like any other."""
    store = state(policy_of("life", 1), [purchase(f"c{i}", str(i), at(0)) for i in range(5)], until=at(60))
    store._shards[0].activation = 0
    _, changes = predicted(store, 1, policy_of("quick", 2), at(60))
    assert len(changes) == 10
    really = applied(store, 1, policy_of("quick", 2), at(60))
    assert Counter(map(identity, changes)) == Counter(map(identity, really))


def test_notes_say_what_the_moves_do_not() -> None:
    """What is not known yet, what goes without a change, and other rates."""
    old = make_policy(keep=["country"], dimensions={"lifecycle": ("30d", 3, "90d"), "vip": ("30d", 9, "90d")})
    more = '[dimensions.shop]\nengine = "dominant"\nof = "channel"\nhalf_life = "60d"\ngroups = { web = ["web"] }\n'
    new = make_policy(keep=["gender", "country"], numbers=["income"], rates={"EUR": "1.1"}, version=2, more=more)
    store = state(old, [signup("ann", "1", at(0))])
    later = "; they are unknown until events arrive or the state is rebuilt"
    assert preview(store, 1, new, NOW).notes == [
        f"attributes that this policy keeps and the state does not have: gender{later}",
        f"numbers that this policy keeps and the state does not have: income{later}",
        f"tallies that this policy keeps and the state does not have: channel by orders, halved every 60 days{later}",
        "the policy no longer has vip; their segments end without a change",
        "other rates count for purchases from now on; what is stored stays as it was converted",
    ]


def test_a_policy_that_apply_refuses_is_previewed_all_the_same() -> None:
    """With the reason: a version can be given later. The active policy moves nobody."""
    store = state(policy_of("life", 5), [purchase("ann", "1", at(0))], until=at(60))
    same, none = predicted(store, 1, policy_of("life", 5), at(60))
    assert (same.notes, none) == (["this policy is the active one"], [])
    for version in (5, 4):
        found, _ = predicted(store, 1, policy_of("quick", version), at(60))
        assert found.moves.counts[Move("lifecycle", "new", "lapsed")] == 1
        assert found.notes[0].startswith("apply will refuse this policy: ")


def test_another_currency_cannot_be_compared() -> None:
    """Amounts mean something else in it."""
    store = state(make_policy(), [purchase("ann", "1", at(0))])
    with pytest.raises(ConfigurationError, match="amounts are stored in USD and this policy's base is EUR"):
        preview(store, 1, make_policy(base="EUR", version=2), NOW)


def test_an_empty_store_is_told() -> None:
    """There is nothing to compare with."""
    with pytest.raises(ConfigurationError, match="no active policy"):
        preview(MemoryStore(), 1, make_policy(), NOW)


class Busy(MemoryStore):
    """A store in which somebody writes between any two reads."""

    def header(self, shard: int) -> ShardHeader:
        """See StateStore."""
        self._shards[shard].commits += 1
        return super().header(shard)


def test_a_shard_that_is_written_to_is_told() -> None:
    """After some tries its rows are taken as they were read."""
    source, busy = state(policy_of("life", 1), [purchase("ann", "1", at(0))], until=at(60)), Busy()
    vars(busy).update(vars(source))
    found, changes = predicted(busy, 1, policy_of("quick", 2), at(60))
    assert found.notes == ["shard 0 was written to while it was read; a few of its customers may be counted wrong"]
    assert len(changes) == 2


def test_what_is_due_before_is_no_move_of_the_policy() -> None:
    """A lapse that a worker has not applied yet happens with or without the policy."""
    store = state(policy_of("life", 1), [purchase(f"c{i}", str(i), at(0)) for i in range(5)], until=at(10))
    topics = dict(zip(ROLES, ROLES, strict=True))
    worker = BatchProcessor(Shard(0, 1, topics), Activations(store, policy_of("life", 1)), store, Clock.EVENT)
    worker.load({}, {})
    step = worker.advance(at(200), most=2)
    assert step is not None
    worker.commit(step)
    assert preview(store, 1, policy_of("life", 2), NOW).moves.counts == {}
    assert sequence(preview(store, 1, policy_of("quick", 2), NOW)) == [("spend", None, "low")]


def sequence(found: Preview) -> Sequence[Move]:
    return sorted(found.moves.counts)
