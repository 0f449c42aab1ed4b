"""The processor and the population: stops, summaries, cut-offs at fixed instants, other policies, slices, reloads."""

from collections import Counter
from typing import Any

import pytest

from models.activation import Activation
from models.changes import SegmentChanged
from models.instants import FOREVER, NEVER
from models.policy import Policy
from models.population import Cutoffs
from streams.processor import MOST_SUMMARIES
from streams.store.memory import MemoryStore
from tests.unit.build import DAY, Feeder, at, erasure, make_policy, purchase, refund, signup, text
from tests.unit.fakes import FaultyStore, processor_on, switch

WEEK, SETTLE = 7 * DAY, 600_000_000
#: The first multiple of a week after the first day of the events.
FIRST = at(0) // WEEK * WEEK + WEEK
ABC = '[dimensions.value]\nengine = "pareto"\nclasses = { A = 80, B = 15, C = 5 }\nmargin = 0\n'
RFM = '[dimensions.rfm]\nengine = "rfm"\nmargin = 0\n'
RULES = """
[dimensions.save]
engine = "rules"
otherwise = "relax"
[[dimensions.save.rules]]
segment = "save"
when = [{ dimension = "value", is = ["A"] }, { dimension = "lifecycle", is = ["lapsed"] }]
"""


def abc(more: str = "", **how: Any) -> Policy:
    """The lifecycle and ABC classes."""
    return make_policy(more=ABC + more, **how)


def drive(feeder: Feeder, until: int, most: int | None = None, *, reload: bool = False) -> list[SegmentChanged]:
    """Let time pass as a worker does that owns the only shard; with ``reload``, it crashes after every commit."""
    changes: list[SegmentChanged] = []

    def commit(step: Any) -> None:
        feeder.processor.commit(step)
        changes.extend(step.outcome.published)
        if reload or step.reload:
            feeder.load()

    while feeder.processor.stop_at <= until:
        step = feeder.processor.stop(until, most)
        if step is not None:
            commit(step)
        elif not feeder.processor.activations.merge(1):
            feeder.processor.give_up()
    while (step := feeder.processor.advance(until, most)) is not None:
        commit(step)
    return changes


def begun(policy: Policy, store: MemoryStore | None = None) -> Feeder:
    """A shard whose time has begun, with nobody in it."""
    feeder = Feeder(policy, store=store)
    assert drive(feeder, at(0)) == []
    return feeder


def buyers(count: int = 12) -> list[Any]:
    """Customers who spend 1, 2, 4 … on the first days."""
    return [purchase(f"c{i:02}", f"e{i}", at(0, i), f"{2**i}.00") for i in range(count)]


def moves(changes: list[SegmentChanged], dimension: str = "value") -> dict[str, tuple[str | None, str | None]]:
    """From and to by customer; nobody may move twice."""
    found = {c["customer_id"]: (c["from"], c["to"]) for c in changes if c["dimension"] == dimension}
    assert len(found) == sum(change["dimension"] == dimension for change in changes)
    return found


def labels(feeder: Feeder, dimension: str = "value") -> dict[str, str | None]:
    return {name: customer["segments"][dimension] for name, customer in feeder.customers().items()}


# Stops and summaries


def test_nothing_stops_time_without_a_population() -> None:
    """A policy of which no label depends on others needs no summaries."""
    feeder = Feeder()
    assert feeder.processor.stop_at == FOREVER
    feeder.feed(*buyers())
    assert feeder.processor.stop_at == FOREVER
    assert drive(feeder, at(60)) == []
    assert feeder.store.header(0).summarised is None


def test_time_begins_with_a_summary_of_nobody() -> None:
    """Before the first event it stops at once, so that the other shards need not wait for one that is empty."""
    feeder = Feeder(abc())
    assert feeder.processor.stop_at == NEVER
    step = feeder.processor.stop(at(0))
    assert step is not None
    feeder.processor.commit(step)
    begin = FIRST - WEEK
    assert (feeder.processor.time, feeder.store.header(0).summarised) == (begin, begin)
    summary = feeder.store.summary(0, begin)
    assert summary is not None
    assert summary.distributions["orders"].size == 0
    assert feeder.processor.stop_at == begin + SETTLE
    feeder.load()
    assert feeder.processor.stop_at == begin + SETTLE


def test_a_shard_that_begins_late_does_not_wait_for_what_is_in_force() -> None:
    """Others have summarised themselves, and cut-offs as of its first instant or a later one are there already."""
    store, policy = MemoryStore(), abc()
    store.activate(Activation(1, "policy", 1, NEVER, NEVER, True, Cutoffs()), policy.text)
    store.activate(Activation(2, "population", 1, FIRST, FIRST + SETTLE, False, Cutoffs(FIRST)))
    feeder = Feeder(policy, store=store)
    step = feeder.processor.follow()
    assert step is None
    step = feeder.processor.stop(FIRST + DAY)
    assert step is not None
    feeder.processor.commit(step)
    step = feeder.processor.stop(FIRST + DAY)
    assert step is not None
    feeder.processor.commit(step)
    assert (feeder.processor.activation, feeder.processor.stop_at) == (2, FIRST + WEEK)
    again = Feeder(policy, store=MemoryStore())
    again.store.activate(Activation(1, "policy", 1, NEVER, NEVER, True, Cutoffs()), policy.text)
    again.store.activate(Activation(2, "population", 1, FIRST, NEVER, False, Cutoffs(FIRST)))
    again.processor.activations.refresh()
    step = again.processor.follow()
    assert step is not None
    again.processor.commit(step)
    step = again.processor.stop(FIRST + DAY)
    assert step is not None
    again.processor.commit(step)
    assert again.processor.stop_at == FIRST + WEEK


def test_an_empty_shard_is_summarised_as_time_passes() -> None:
    """Where no event has ever been there is nobody, at each instant."""
    feeder = begun(abc())
    assert drive(feeder, FIRST + 1) == []
    assert list(feeder.store.summarised(0)) == [FIRST - WEEK, FIRST]
    summary = feeder.store.summary(0, FIRST)
    assert summary is not None
    assert summary.distributions["orders"].size == 0
    assert feeder.processor.activations.active.cutoffs.scores == {}


def test_a_shard_with_customers_may_begin_to_be_summarised() -> None:
    """Under a policy that is the first to need it, it does so at once, and is not held up by other shards."""
    feeder = Feeder()
    feeder.feed(*buyers())
    switch(feeder, abc())
    assert feeder.processor.stop_at == FIRST - WEEK
    step = feeder.processor.stop(at(1))
    assert step is not None
    assert step.commit.summary is not None
    assert (step.commit.summary[0], step.commit.time) == (FIRST - WEEK, feeder.processor.time)
    feeder.processor.commit(step)
    assert feeder.processor.stop_at == FIRST


def test_a_summary_is_made_at_each_instant() -> None:
    """With every deadline before it applied, of everybody who is there by then."""
    feeder = begun(abc())
    feeder.feed(*buyers(3))
    step = feeder.processor.stop(at(40))
    assert step is not None
    assert step.commit.summary is not None
    assert (step.commit.summary[0], step.commit.time, step.commit.settled) == (FIRST, FIRST, FIRST)
    feeder.processor.commit(step)
    summary = feeder.store.summary(0, FIRST)
    assert summary is not None
    assert summary.distributions["monetary"].values.tolist() == [100, 200, 400]
    assert summary.distributions["recency"].values.tolist() == [FIRST - at(0, 2), FIRST - at(0, 1), FIRST - at(0)]
    assert summary.segments["lifecycle:new"] == (3, 700)
    assert feeder.processor.stop_at == FIRST + SETTLE


def test_deadlines_come_before_the_summary() -> None:
    """In as many slices as it takes."""
    feeder = begun(abc())
    feeder.feed(*buyers(5))
    lapse = (at(90) // WEEK + 1) * WEEK
    drive(feeder, at(88))
    feeder.feed(purchase("late", "x", at(88)))
    drive(feeder, at(89))
    seen = []
    while feeder.store.header(0).summarised != lapse:
        assert feeder.processor.stop_at == lapse
        step = feeder.processor.stop(lapse, most=2)
        assert step is not None
        feeder.processor.commit(step)
        seen.append(sum(change["to"] == "lapsed" for change in step.outcome.published))
    assert seen == [2, 2, 1, 0]
    summary = feeder.store.summary(0, lapse)
    assert summary is not None
    assert summary.segments["lifecycle:lapsed"][0] == 5


def test_only_the_last_summaries_are_kept() -> None:
    """Eight of them, and of very many instants at once only the last thousand are stopped at."""
    feeder = begun(abc())
    feeder.feed(*buyers(2))
    drive(feeder, FIRST + 20 * WEEK)
    kept = list(feeder.store.summarised(0))
    assert kept == [FIRST + i * WEEK for i in range(13, 21)]
    far = FIRST + 100_000 * WEEK
    step = feeder.processor.stop(far)
    while step is None or step.commit.summary is None:
        if step is None:
            feeder.processor.give_up()
        else:
            feeder.processor.commit(step)
        step = feeder.processor.stop(far)
    assert step.commit.summary[0] == far - MOST_SUMMARIES * WEEK


def test_a_batch_may_not_pass_a_stop_but_must_not_break() -> None:
    """Records are taken up to the stop only; what comes after it finds the summary made as of its instant."""
    feeder = begun(abc())
    feeder.feed(*buyers(3))
    drive(feeder, FIRST + 5 * DAY)
    feeder.feed(purchase("x", "x", FIRST + 5 * DAY))
    drive(feeder, FIRST + WEEK)
    summary = feeder.store.summary(0, FIRST + WEEK)
    assert summary is not None
    assert summary.distributions["orders"].size == 4


# Cut-offs


def test_cutoffs_are_taken_at_a_fixed_instant() -> None:
    """As of the instant of the summary, in force a while later: that is when everybody gets a first label."""
    feeder = begun(abc())
    feeder.feed(*buyers())
    assert labels(feeder) == dict.fromkeys(labels(feeder))
    changes = drive(feeder, at(9))
    assert {(c["cause"], c["effective_at"], c["event_id"]) for c in changes} == {
        ("population", text(FIRST + SETTLE), None)
    }
    # To be labelled for the first time is no move that a campaign should hear of.
    assert {(change["backfill"], change["population_as_of"]) for change in changes} == {(True, text(FIRST))}
    found = {name: to for name, (_, to) in moves(changes).items()}
    assert [name for name, to in found.items() if to == "A"] == ["c09", "c10", "c11"]
    assert found == labels(feeder)
    header = feeder.store.header(0)
    assert (header.activation, header.since, header.summarised) == (3, FIRST + SETTLE, FIRST)


def test_later_moves_are_news() -> None:
    """Whoever another population puts into another class has moved, and a new customer enters under the cut-offs."""
    feeder = begun(abc())
    feeder.feed(*buyers())
    drive(feeder, at(5))
    (_, entered) = feeder.feed(purchase("rich", "r1", at(6), "900000.00"))
    assert (entered["dimension"], entered["to"], entered["cause"]) == ("value", "A", "purchase")
    assert entered["population_as_of"] == text(FIRST)
    changes = drive(feeder, FIRST + WEEK + DAY)
    assert {change["cause"] for change in changes} == {"population"}
    assert {change["backfill"] for change in changes} == {False}
    assert moves(changes)["c11"] == ("A", "C")
    assert {change["effective_at"] for change in changes} == {text(FIRST + WEEK + SETTLE)}
    again = begun(abc())
    again.feed(*buyers())
    drive(again, at(5))
    again.feed(purchase("rich", "r1", at(6), "900000.00"))
    assert [c["change_id"] for c in drive(again, FIRST + WEEK + DAY)] == [c["change_id"] for c in changes]


def test_cutoffs_that_do_not_come_are_given_up() -> None:
    """Time goes on with those of before, and takes the missing ones when they are there."""
    feeder = begun(abc())
    feeder.feed(*buyers())
    processor = feeder.processor
    step = processor.stop(at(30))
    assert step is not None
    processor.commit(step)
    assert processor.stop_at == FIRST + SETTLE
    assert processor.stop(at(30)) is None
    assert processor.stop_at == FIRST + SETTLE
    processor.give_up()
    assert processor.stop_at == FIRST + WEEK
    assert processor.follow() is None
    assert processor.activations.merge(1)
    assert feeder.advance(at(6)) == []
    step = processor.follow()
    assert step is not None
    assert not step.reload
    processor.commit(step)
    changes = feeder.advance(at(6))
    assert {change["effective_at"] for change in changes} == {text(at(6))}
    assert len(moves(changes)) == 12
    assert processor.follow() is None


def test_cutoffs_are_not_taken_before_their_instant() -> None:
    """A shard that lags behind the others takes them at the same time of its own."""
    feeder = begun(abc())
    feeder.feed(*buyers())
    processor = feeder.processor
    step = processor.stop(at(30))
    assert step is not None
    processor.commit(step)
    assert processor.activations.merge(1)
    assert processor.follow() is None
    assert feeder.advance(FIRST + SETTLE - 1) == []
    assert processor.follow() is None
    assert processor.stop_at == FIRST + SETTLE
    step = processor.stop(at(30))
    assert step is not None
    assert step.commit.activation == 3
    assert step.commit.since == FIRST + SETTLE


HOWS = [(None, False), (1, False), (3, False), (None, True), (1, True), (5, True)]


@pytest.mark.parametrize(("most", "reload"), HOWS)
def test_slices_and_crashes_change_nothing(most: int | None, reload: bool) -> None:
    """However new cut-offs are applied, every move is made once, with the same id; nothing is lost or repeated."""
    policy = abc(RFM + RULES)

    def run(most: int | None, reload: bool) -> tuple[Feeder, list[SegmentChanged]]:
        feeder, changes = begun(policy), []
        changes += feeder.feed(*buyers(), signup("s", "s", at(1)), refund("c03", "r", at(2), "3.00"))
        changes += drive(feeder, at(9), most, reload=reload)
        changes += feeder.feed(purchase("c00", "p", at(9), "70000.00"), erasure("c05", "x", at(9, 1)))
        changes += drive(feeder, at(40), most, reload=reload)
        changes += feeder.feed(purchase("c01", "q", at(41), "5.00"))
        changes += drive(feeder, at(120), most, reload=reload)
        return feeder, changes

    expected, all_at_once = run(None, False)
    found, changes = run(most, reload)
    assert {"population", "time", "purchase", "erasure"} <= {change["cause"] for change in all_at_once}
    ids = Counter(change["change_id"] for change in changes)
    assert ids == Counter(change["change_id"] for change in all_at_once)
    assert found.customers() == expected.customers()
    assert found.sizes() == expected.sizes()
    by_id = {change["change_id"]: change for change in all_at_once}
    for change in changes:
        for name in ("from", "to", "cause", "effective_at", "backfill", "population_as_of", "event_id"):
            assert change[name] == by_id[change["change_id"]][name]  # type: ignore[literal-required]


def test_live_events_between_slices() -> None:
    """A purchase in the middle of slices finds its customer labelled under the new cut-offs first."""
    feeder = begun(abc())
    feeder.feed(*buyers())
    processor = feeder.processor
    while processor.activation == 2:
        step = processor.stop(FIRST + SETTLE, most=2)
        if step is None:
            assert processor.activations.merge(1)
        else:
            processor.commit(step)
    first = feeder.advance(processor.time, most=4)
    assert len(first) == 4
    assert feeder.store.header(0).settled == processor.time - 1
    (event,) = [purchase("c11", "live", FIRST + SETTLE + 5, "1.00")]
    rest = feeder.feed(event)
    causes = Counter(change["cause"] for change in rest)
    assert causes == {"population": 8}
    assert len(moves([*first, *rest])) == 12
    assert feeder.store.header(0).settled == feeder.store.header(0).time


def test_retaking_the_shard_waits_for_the_same_cutoffs() -> None:
    """Whoever loads the shard between the summary and the cut-offs stops where the one before would have."""
    feeder = begun(abc())
    feeder.feed(*buyers())
    step = feeder.processor.stop(at(30))
    assert step is not None
    feeder.processor.commit(step)
    feeder.load()
    assert feeder.processor.stop_at == FIRST + SETTLE
    assert feeder.processor.stop(at(30)) is None
    assert len(drive(feeder, at(9))) == 12
    feeder.load()
    assert feeder.processor.stop_at == FIRST + WEEK


def test_a_failed_commit_leaves_everything_to_be_done_again() -> None:
    """Summaries and adoptions are made anew from what is stored."""
    store = FaultyStore()
    whole, feeder = begun(abc()), begun(abc(), store)
    expected = [*whole.feed(*buyers()), *drive(whole, at(10))]
    feeder.feed(*buyers())
    changes: list[SegmentChanged] = []
    for fault in ("before", "after") * 6:
        store.fail("commit", fault)
        processor = feeder.processor
        step = processor.stop(at(10), 5) if processor.stop_at <= at(10) else processor.advance(at(10), 5)
        if step is None:
            store.faults.clear()
            processor.activations.merge(1)
            continue
        with pytest.raises(Exception, match="the store"):
            processor.commit(step)
        feeder.load()
    drive(feeder, at(10))
    for entry in store.peek().entries:
        changes += entry.changes
    assert [c["change_id"] for c in changes] == [c["change_id"] for c in expected]
    assert feeder.customers() == whole.customers()


# Dwell


def test_a_label_stays_for_its_dwell() -> None:
    """New cut-offs move nobody who has just moved; an event still does; when the dwell is over the move is made."""
    policy = make_policy(more=ABC + 'dwell = "30d"\n')
    feeder = begun(policy)
    feeder.feed(*buyers())
    drive(feeder, at(5))
    assert labels(feeder)["c11"] == "A"
    feeder.feed(purchase("rich", "r1", at(6), "900000.00"))
    changes = drive(feeder, FIRST + WEEK + DAY)
    assert moves(changes) == {}
    assert labels(feeder)["c11"] == "A"
    (moved,) = [c for c in feeder.feed(purchase("c00", "p", at(20), "900000.00")) if c["dimension"] == "value"]
    assert (moved["from"], moved["to"], moved["cause"]) == ("C", "A", "purchase")
    dwelt = FIRST + SETTLE + 30 * DAY
    assert moves(drive(feeder, dwelt)) == {}
    changes = drive(feeder, dwelt + SETTLE)
    assert moves(changes)["c11"][0] == "A"
    assert labels(feeder)["c11"] != "A"


@pytest.mark.parametrize(("most", "reload"), [(None, False), (1, False), (3, False), (None, True)])
def test_a_dwell_outlives_a_reload(most: int | None, reload: bool) -> None:
    """Whoever loads the shard makes the same moves at the same instants."""
    policy = make_policy(more=ABC + 'dwell = "20d"\n' + RFM + 'dwell = "10d"\n' + RULES)

    def run(most: int | None, reload: bool) -> tuple[Feeder, list[tuple[Any, ...]]]:
        feeder, changes = begun(policy), []
        changes += feeder.feed(*buyers())
        for day in range(5, 130, 5):
            if reload:
                feeder.load()
            changes += drive(feeder, at(day), most, reload=reload)
            changes += feeder.feed(purchase(f"c{day % 12:02}", f"d{day}", at(day), f"{day**3}.00"))
        return feeder, sorted(
            (c["customer_id"], c["effective_at"], c["dimension"], str(c["from"]), str(c["to"]), c["cause"])
            for c in changes
        )

    expected, moved = run(None, False)
    found, changes = run(most, reload)
    assert changes == moved
    assert found.customers() == expected.customers()


# Other policies


LIFE = ("30d", 3, "90d")


def test_a_policy_is_taken_at_once() -> None:
    """Its moves are as of the shard's time, caused by the policy, and history unless it was told otherwise."""
    for backfill in (True, False):
        feeder = Feeder()
        feeder.feed(purchase("a", "1", at(0)), purchase("a", "2", at(1)), purchase("b", "3", at(2)))
        changes = switch(feeder, make_policy(dimensions={"lifecycle": ("30d", 2, "90d")}), at(500), backfill=backfill)
        (change,) = changes
        assert (change["customer_id"], change["from"], change["to"]) == ("a", "new", "regular")
        assert (change["cause"], change["effective_at"], change["decided_at"]) == ("policy", text(at(2)), text(at(2)))
        assert (change["backfill"], change["policy_version"], change["event_id"]) == (backfill, 2, None)
        assert feeder.store.header(0).activation == 2
        assert feeder.advance(at(2)) == []
        feeder.load()
        assert feeder.advance(at(2)) == []


def test_a_policy_that_changes_no_label_publishes_nothing() -> None:
    """Deadlines follow the new policy all the same."""
    feeder = Feeder()
    feeder.feed(purchase("a", "1", at(0)))
    assert switch(feeder, make_policy(dimensions={"lifecycle": ("30d", 3, "60d")})) == []
    (change,) = feeder.advance(at(61))
    assert (change["to"], change["effective_at"], change["cause"]) == ("lapsed", text(at(60)), "time")


GROUPS = """
[dimensions.region]
engine = "attribute"
of = "country"
groups = { dach = ["DE", "AT"], france = ["FR"] }
other = "elsewhere"
"""


def test_removed_and_added_segments() -> None:
    """Whoever is in a segment that is gone moves out of it by name; whom nothing concerns is left alone."""
    feeder = Feeder(make_policy(more=GROUPS))
    feeder.feed(*(purchase(c, c, at(0), country=c) for c in ("DE", "AT", "FR", "US")), signup("none", "n", at(0)))
    new = GROUPS.replace(
        '{ dach = ["DE", "AT"], france = ["FR"] }', '{ austria = ["AT"], dach = ["DE"], usa = ["US"] }'
    )
    changes = switch(feeder, make_policy(more=new))
    assert {c["customer_id"]: (c["from"], c["to"]) for c in changes} == {
        "AT": ("dach", "austria"), "FR": ("france", "elsewhere"), "US": ("elsewhere", "usa"),
    }  # fmt: skip
    assert labels(feeder, "region") == {
        "DE": "dach", "AT": "austria", "FR": "elsewhere", "US": "usa", "none": None,
    }  # fmt: skip
    assert "region:france" not in feeder.sizes()
    assert feeder.sizes()["region:usa"] == (1, 100)


def test_a_retired_segment_is_counted_until_its_last_customer_has_left() -> None:
    """Sizes are true at every commit, in slices too."""
    feeder = Feeder(make_policy(more=GROUPS))
    feeder.feed(*(purchase(f"f{i}", f"{i}", at(0), country="FR") for i in range(5)))
    policy = make_policy(more=GROUPS.replace(', france = ["FR"]', ""), version=2)
    feeder.processor.activations.apply(policy, 0, backfill=True)
    step = feeder.processor.follow()
    assert step is not None
    feeder.processor.commit(step)
    sizes = []
    while True:
        feeder.load()
        found = feeder.sizes()
        sizes.append((found.get("region:france", (0, 0))[0], found["region:elsewhere"][0]))
        stored = Counter(customer["segments"]["region"] for customer in feeder.customers().values())
        assert (stored["france"], stored["elsewhere"]) == sizes[-1]
        if not feeder.advance(feeder.processor.time, 2):
            break
    assert sizes == [(5, 0), (3, 2), (1, 4), (0, 5)]


def test_removed_and_added_dimensions() -> None:
    """A dimension that is new labels everybody it can, with its own deadlines; one that is gone is forgotten."""
    feeder = Feeder(make_policy(dimensions={"slow": LIFE, "fast": ("1d", 2, "7d")}))
    feeder.feed(purchase("a", "1", at(0)), refund("r", "2", at(0)))
    changes = switch(feeder, make_policy(dimensions={"new": ("2d", 5, "20d"), "slow": LIFE}))
    assert [(c["customer_id"], c["dimension"], c["from"], c["to"]) for c in changes] == [("a", "new", None, "new")]
    assert changes[0]["segments"] == {"new": "new", "slow": "new"}
    assert feeder.customer("a")["segments"] == {"new": "new", "slow": "new"}
    assert [(c["dimension"], c["to"]) for c in feeder.advance(at(100))] == [("new", "lapsed"), ("slow", "lapsed")]
    back = switch(feeder, make_policy(dimensions={"slow": LIFE, "fast": ("1d", 2, "7d")}))
    assert [(c["dimension"], c["from"], c["to"]) for c in back] == [("fast", None, "lapsed")]


def test_what_is_made_of_others_follows_them() -> None:
    """Rules over labels that another policy moves are labelled after them, in the same step."""
    rules = RULES.replace('"value", is = ["A"]', '"lifecycle", is = ["lapsed"]').replace(
        '{ dimension = "lifecycle", is = ["lapsed"] }]', '{ dimension = "lifecycle", not = ["regular"] }]'
    )
    feeder = Feeder(make_policy(more=rules))
    feeder.feed(purchase("a", "1", at(0)), purchase("b", "2", at(30)))
    changes = switch(feeder, make_policy(dimensions={"lifecycle": ("5d", 3, "10d")}, more=rules))
    assert [(c["customer_id"], c["dimension"], c["to"]) for c in changes] == [
        ("a", "lifecycle", "lapsed"), ("a", "save", "save"),
    ]  # fmt: skip
    assert {change["cause"] for change in changes} == {"policy"}


@pytest.mark.parametrize(("most", "reload"), HOWS)
def test_another_policy_in_slices_and_crashes(most: int | None, reload: bool) -> None:
    """Every move is made once, with the same id, whatever happens in between, events too."""

    def run(most: int | None, reload: bool) -> tuple[Feeder, list[SegmentChanged]]:
        feeder, changes = begun(abc()), []
        changes += feeder.feed(*buyers())
        changes += drive(feeder, at(9), most, reload=reload)
        following = make_policy(
            version=2,
            dimensions={"lifecycle": ("2d", 2, "5d")},
            more=ABC.replace("80", "90").replace("B = 15", "B = 5") + RFM,
        )
        feeder.processor.activations.apply(following, at(9), backfill=True)
        step = feeder.processor.follow()
        assert step is not None
        assert step.reload
        feeder.processor.commit(step)
        feeder.load()
        while (step := feeder.processor.advance(feeder.processor.time, most)) is not None:
            feeder.processor.commit(step)
            changes += step.outcome.published
            if reload:
                feeder.load()
        changes += feeder.feed(purchase("c00", "p", at(9, 5), "70000.00"))
        changes += drive(feeder, at(60), most, reload=reload)
        return feeder, changes

    expected, all_at_once = run(None, False)
    found, changes = run(most, reload)
    assert Counter(c["change_id"] for c in changes) == Counter(c["change_id"] for c in all_at_once)
    assert max(Counter(c["change_id"] for c in changes).values()) == 1
    assert sum(change["cause"] == "policy" for change in changes) > 12
    assert found.customers() == expected.customers()
    assert found.sizes() == expected.sizes()


def test_one_activation_after_the_other() -> None:
    """Another is not taken while what the last one has changed is not applied."""
    feeder = Feeder()
    feeder.feed(*buyers())
    activations = feeder.processor.activations
    activations.apply(make_policy(version=2, dimensions={"lifecycle": ("1h", 3, "2h")}, more=""), 1, backfill=True)
    feeder.feed(purchase("z", "z", at(1)))
    step = feeder.processor.follow()
    assert step is not None
    feeder.processor.commit(step)
    feeder.load()
    activations = feeder.processor.activations
    activations.apply(make_policy(version=3), 2, backfill=True)
    taken = []
    while feeder.processor.activation == 2:
        step = feeder.processor.follow()
        if step is None:
            taken.append(len(feeder.advance(feeder.processor.time, 5)))
        else:
            feeder.processor.commit(step)
            feeder.load()
    assert taken == [5, 5, 2]
    assert len(feeder.advance(feeder.processor.time)) == 12


def test_a_shard_follows_the_latest_policy_only() -> None:
    """Policies that were replaced before a shard looked are passed over."""
    feeder = Feeder()
    feeder.feed(purchase("a", "1", at(0)))
    for version, orders in ((2, 4), (3, 5), (4, 2)):
        policy = make_policy(version=version, dimensions={"lifecycle": ("30d", orders, "90d")})
        feeder.processor.activations.apply(policy, version, backfill=True)
    step = feeder.processor.follow()
    assert step is not None
    assert (step.commit.activation, step.commit.policy_version) == (4, 4)
    feeder.processor.commit(step)
    feeder.load()
    assert feeder.processor.follow() is None


def test_a_new_shard_begins_with_the_latest_policy() -> None:
    """There is nothing to move."""
    store = MemoryStore()
    first = processor_on(store)
    first.activations.apply(make_policy(version=2, keep=[]), 0, backfill=True)
    second = processor_on(store)
    second.load({}, {})
    assert (second.activation, second.policy.version, second.time) == (2, 2, NEVER)
    assert second.follow() is None


def test_withheld_moves_are_those_into_small_segments() -> None:
    """Once the population is known, moves into a segment too small to be published are marked in the outbox."""
    viable = "[dimensions.lifecycle.viable]\ncustomers = 3\npublish = false\n"
    feeder = begun(make_policy(more=viable))
    feeder.feed(purchase("a", "1", at(0)), purchase("b", "2", at(0)))
    assert [list(entry.withheld) for entry in feeder.store.header(0).entries] == [[]]
    drive(feeder, at(10))
    (change,) = feeder.feed(purchase("c", "3", at(10)))
    assert (change["to"], change["viable"]) == ("new", False)
    assert list(feeder.store.header(0).entries[-1].withheld) == [0]
    drive(feeder, FIRST + 2 * WEEK + DAY)
    (change,) = feeder.feed(purchase("d", "4", FIRST + 2 * WEEK + DAY))
    assert change["viable"]
    assert list(feeder.store.header(0).entries[-1].withheld) == []


def test_summaries_are_made_at_multiples_of_another_policys_pace() -> None:
    """However the shard was paced before, so that shards which stood apart meet again."""
    feeder = begun(abc())
    feeder.feed(*buyers())
    drive(feeder, at(30))
    switch(feeder, abc('[population]\nevery = "21d"\n'))
    assert feeder.processor.stop_at % (21 * DAY) == 0


def test_instants_that_were_passed_without_need_are_not_made_up_for() -> None:
    """Under a policy that compared nobody there were no summaries; the first one after it is as of now, and one."""
    feeder = begun(abc())
    feeder.feed(*buyers())
    drive(feeder, at(30))
    compared = feeder.policy
    switch(feeder, make_policy())
    drive(feeder, at(300))
    known = set(feeder.store.summarised(0))
    switch(feeder, compared)
    drive(feeder, at(300, 1))
    (made,) = set(feeder.store.summarised(0)) - known
    assert 0 <= at(300) - made < compared.population.every


def test_customers_before_the_first_summary_are_not_nobody() -> None:
    """A shard that had customers when it was first summarised is unknown before that, and not empty."""
    feeder = Feeder(make_policy())
    feeder.feed(*buyers())
    feeder.advance(at(30))
    switch(feeder, abc())
    drive(feeder, at(31))
    first = min(feeder.store.summarised(0))
    assert feeder.store.summary(0, first - 1) is None


def test_the_first_cutoffs_are_history_in_what_is_made_of_them_too() -> None:
    """Nobody did anything, so no campaign may fire, not from rules either."""
    feeder = begun(abc(RULES))
    feeder.feed(*buyers())
    changes = [change for change in drive(feeder, at(120)) if change["cause"] == "population"]
    first = [change for change in changes if change["population_as_of"] == changes[0]["population_as_of"]]
    assert {change["backfill"] for change in first} == {True}
