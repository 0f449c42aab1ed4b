"""Segmenter: deadlines, fold, label, compare; one rule at a time."""

from collections.abc import Iterable
from typing import Any

import pytest

from models.changes import SegmentChanged
from models.events import ROLES
from models.money import LARGEST_TOTAL
from models.table import OTHER
from streams.commit import OutboxEntry
from streams.processor import Clock
from tests.support.tables import rows_of
from tests.unit.build import Feeder, at, erasure, make_policy, profile, purchase, refund, signup, text, tick

TWO = make_policy(dimensions={"slow": ("30d", 3, "90d"), "fast": ("30d", 2, "45d")})


@pytest.fixture
def shard() -> Feeder:
    return Feeder()


def moves(changes: Iterable[SegmentChanged]) -> list[tuple[Any, ...]]:
    """Customer, from, to and cause of each change, in order."""
    return [(change["customer_id"], change["from"], change["to"], change["cause"]) for change in changes]


def times(changes: Iterable[SegmentChanged]) -> list[tuple[str, str]]:
    """effective_at and decided_at of each change, in order."""
    return [(change["effective_at"], change["decided_at"]) for change in changes]


def days(*pairs: tuple[float, float]) -> list[tuple[str, str]]:
    return [(text(at(effective)), text(at(decided))) for effective, decided in pairs]


def test_a_first_purchase_makes_a_customer_new(shard: Feeder) -> None:
    """The change says everything: who, from, to, why, when, and the measures after it."""
    (change,) = shard.feed(purchase("a", "e1", at(1), "12.30"))
    assert change == {
        "change_id": change["change_id"],
        "customer_id": "a",
        "sequence": 1,
        "dimension": "lifecycle",
        "from": None,
        "to": "new",
        "title": None,
        "channel": None,
        "viable": True,
        "model_version": None,
        "cause": "purchase",
        "event_id": "e1",
        "effective_at": "2024-01-02T00:00:00Z",
        "decided_at": "2024-01-02T00:00:00Z",
        "policy_version": 1,
        "population_as_of": None,
        "backfill": False,
        "rfm": {"recency_days": 0, "frequency": 1, "monetary": "12.30", "currency": "USD"},
        "segments": {"lifecycle": "new"},
    }


def test_a_lifetime(shard: Feeder) -> None:
    """Signed up, potential, bought, regular, lapsed, back as regular: each once, with its cause and instant."""
    changes = shard.feed(
        signup("a", "s", at(0)), purchase("a", "1", at(40)), purchase("a", "2", at(41)), purchase("a", "3", at(42)),
        purchase("a", "4", at(43)), tick(at(133)), tick(at(134)), purchase("a", "5", at(200)),
    )  # fmt: skip
    assert moves(changes) == [
        ("a", None, "new", "signup"), ("a", "new", "potential", "time"), ("a", "potential", "new", "purchase"),
        ("a", "new", "regular", "purchase"), ("a", "regular", "lapsed", "time"), ("a", "lapsed", "regular", "purchase"),
    ]  # fmt: skip
    assert times(changes) == days((0, 0), (30, 40), (40, 40), (42, 42), (133, 134), (200, 200))
    assert [change["sequence"] for change in changes] == [1, 2, 3, 4, 5, 6]
    assert [change["event_id"] for change in changes] == ["s", None, "1", "3", None, "5"]
    assert [change["rfm"]["recency_days"] for change in changes] == [None, None, 0, 0, 90, 0]
    assert [change["rfm"]["frequency"] for change in changes] == [0, 0, 1, 3, 4, 5]


def test_a_lapsed_customer_with_few_orders_comes_back_as_new(shard: Feeder) -> None:
    """From says that it is a return."""
    changes = shard.feed(purchase("a", "1", at(0)), purchase("a", "2", at(91)))
    assert moves(changes)[1:] == [("a", "new", "lapsed", "time"), ("a", "lapsed", "new", "purchase")]


def test_a_deadline_holds_at_its_instant_and_passes_after_it(shard: Feeder) -> None:
    """At last purchase + 90 d nothing changes; a microsecond later the customer has lapsed, as of the deadline."""
    shard.feed(purchase("a", "1", at(0)))
    assert shard.feed(tick(at(90))) == []
    assert shard.advance(at(90)) == []
    changes = shard.feed(tick(at(90, 1)))
    assert moves(changes) == [("a", "new", "lapsed", "time")]
    assert times(changes) == [(text(at(90)), text(at(90, 1)))]


def test_a_purchase_at_the_deadline_keeps_the_customer(shard: Feeder) -> None:
    """Exactly lapse_after since the last purchase is not more than it."""
    assert moves(shard.feed(purchase("a", "1", at(0)), purchase("a", "2", at(90)))) == [("a", None, "new", "purchase")]
    assert moves(shard.feed(purchase("a", "3", at(180, 1)))) == [
        ("a", "new", "lapsed", "time"),
        ("a", "lapsed", "regular", "purchase"),
    ]


def test_a_purchase_at_the_deadline_while_another_customer_lapses(shard: Feeder) -> None:
    """The deadline of the one is passed, the equal instant of the other is not."""
    shard.feed(purchase("a", "1", at(0)), purchase("b", "2", at(0, -1)))
    assert moves(shard.feed(purchase("a", "3", at(90)))) == [("b", "new", "lapsed", "time")]
    assert moves(shard.feed(purchase("a", "4", at(90), "2.00"), tick(at(90, 1)))) == [
        ("a", "new", "regular", "purchase")
    ]


def test_due_deadlines_come_before_the_event(shard: Feeder) -> None:
    """An event that finds deadlines passed has them published first, all of them, in time order."""
    changes = shard.feed(signup("a", "s", at(0)), purchase("a", "1", at(100)))
    assert moves(changes) == [
        ("a", None, "new", "signup"), ("a", "new", "potential", "time"), ("a", "potential", "lapsed", "time"),
        ("a", "lapsed", "new", "purchase"),
    ]  # fmt: skip
    assert times(changes) == days((0, 0), (30, 100), (90, 100), (100, 100))


def test_a_lapse_is_decided_by_the_first_later_record(shard: Feeder) -> None:
    """decided_at is the shard's time at the first record past the deadline, whoever's record it is."""
    changes = shard.feed(
        purchase("a", "1", at(0)), purchase("b", "2", at(0)), purchase("c", "3", at(90)), purchase("c", "4", at(90, 1)),
        purchase("b", "5", at(95)),
    )  # fmt: skip
    lapses = [change for change in changes if change["cause"] == "time"]
    assert moves(lapses) == [("a", "new", "lapsed", "time"), ("b", "new", "lapsed", "time")]
    assert times(lapses) == [(text(at(90)), text(at(90, 1)))] * 2


def test_changes_are_ordered_by_deciding_record_then_deadline_then_customer(shard: Feeder) -> None:
    """Within one deciding record lapses come first, by deadline, then customer; then the event's own change."""
    shard.feed(
        purchase("b", "1", at(0)), purchase("a", "2", at(0)), purchase("c", "3", at(-1)), purchase("d", "4", at(0, 1))
    )
    changes = shard.feed(purchase("e", "5", at(91)), purchase("b", "6", at(92)))
    assert moves(changes) == [
        ("c", "new", "lapsed", "time"), ("a", "new", "lapsed", "time"), ("b", "new", "lapsed", "time"),
        ("d", "new", "lapsed", "time"), ("e", None, "new", "purchase"), ("b", "lapsed", "new", "purchase"),
    ]  # fmt: skip


def test_time_never_steps_back(shard: Feeder) -> None:
    """A record of an earlier instant is decided at the shard's time, in a batch and across batches."""
    changes = shard.feed(purchase("a", "1", at(10)), purchase("b", "2", at(5)))
    assert times(changes) == days((10, 10), (5, 10))
    assert times(shard.feed(purchase("c", "3", at(1)))) == days((1, 10))
    assert shard.advance(at(3)) == []
    assert times(shard.feed(purchase("d", "4", at(2)))) == days((2, 10))
    assert shard.processor.time == at(10)


def test_time_passes_without_events(shard: Feeder) -> None:
    """advance() applies every deadline before the instant, once, decided at it."""
    shard.feed(signup("a", "s", at(0)), purchase("b", "1", at(1)))
    changes = shard.advance(at(200))
    assert moves(changes) == [
        ("a", "new", "potential", "time"), ("a", "potential", "lapsed", "time"), ("b", "new", "lapsed", "time"),
    ]  # fmt: skip
    assert times(changes) == days((30, 200), (90, 200), (91, 200))
    assert shard.advance(at(300)) == []
    assert shard.processor.time == at(300)


def test_due_deadlines_can_be_applied_in_slices(shard: Feeder) -> None:
    """advance() of at most so many rows leaves the others for the next call; together they are all, once each."""
    shard.feed(*(purchase(f"c{i}", f"e{i}", at(i)) for i in range(5)))
    slices = [shard.advance(at(200), most=2) for _ in range(4)]
    assert [len(each) for each in slices] == [2, 2, 1, 0]
    assert sorted(moves(change for each in slices for change in each)) == [
        (f"c{i}", "new", "lapsed", "time") for i in range(5)
    ]


def test_a_slice_may_be_followed_by_an_event(shard: Feeder) -> None:
    """An event of a customer whose deadline still waits finds it applied first; the rest follows with the batch."""
    shard.feed(*(purchase(f"c{i}", f"e{i}", at(0)) for i in range(3)))
    shard.advance(at(200), most=1)
    changes = shard.feed(purchase("c2", "x", at(201)))
    assert moves(changes) == [
        ("c1", "new", "lapsed", "time"), ("c2", "new", "lapsed", "time"), ("c2", "lapsed", "new", "purchase"),
    ]  # fmt: skip
    assert times(changes) == days((90, 201), (90, 201), (201, 201))


def test_a_reload_between_slices_loses_no_lapse(shard: Feeder) -> None:
    """A worker that stops between two slices leaves the rest to whoever loads the shard next."""
    shard.feed(purchase("a", "1", at(0)), purchase("b", "2", at(0)))
    first = shard.advance(at(200), most=1)
    shard.load()
    second = shard.advance(at(201))
    assert sorted(moves([*first, *second])) == [(c, "new", "lapsed", "time") for c in "ab"]


def test_slices_begin_with_the_earliest_deadlines(shard: Feeder) -> None:
    """Of the due deadlines the oldest are applied first: their order does not depend on where rows lie."""
    shard.feed(*(purchase(f"c{i}", f"e{i}", at(9 - i)) for i in range(4)))
    slices = [change for _ in range(4) for change in shard.advance(at(200), most=1)]
    assert [change["customer_id"] for change in slices] == ["c3", "c2", "c1", "c0"]


def test_the_lag_of_deadlines_is_known(shard: Feeder) -> None:
    """lapse_lag() is how far the oldest deadline that was not applied lies back; 0 if none is due."""
    shard.feed(purchase("a", "1", at(0)), purchase("b", "2", at(1)))
    assert shard.processor.lapse_lag(at(90)) == 0
    assert shard.processor.lapse_lag(at(92)) == at(92) - at(90)
    shard.advance(at(92))
    assert shard.processor.lapse_lag(at(92)) == 0


def test_an_event_before_the_last_change_is_late(shard: Feeder) -> None:
    """It moves the customer straight to the present label, as late_event, effective at the shard's time."""
    shard.feed(purchase("a", "1", at(0)), tick(at(100)))
    changes = shard.feed(purchase("a", "2", at(50)))
    assert moves(changes) == [("a", "lapsed", "new", "late_event")]
    assert times(changes) == days((100, 100))
    assert changes[0]["event_id"] == "2"
    assert changes[0]["rfm"]["recency_days"] == 50
    assert moves(shard.feed(tick(at(140, 1)))) == [("a", "new", "lapsed", "time")]


def test_an_event_at_the_very_deadline_that_has_passed_is_late(shard: Feeder) -> None:
    """The customer has lapsed from the microsecond after the deadline on: what comes before that has been overtaken."""
    shard.feed(purchase("a", "1", at(0)), tick(at(95)))
    assert times(shard.feed(purchase("a", "2", at(90)))) == days((95, 95))
    shard.feed(purchase("b", "3", at(100)), tick(at(195)))
    changes = shard.feed(purchase("b", "4", at(190, 1)))
    assert moves(changes) == [("b", "lapsed", "new", "purchase")]
    assert times(changes) == [(text(at(190, 1)), text(at(195)))]


def test_an_event_that_time_has_overtaken_is_late(shard: Feeder) -> None:
    """A first purchase long before the shard's time makes a customer lapsed at once, not new in the past."""
    shard.feed(tick(at(200)))
    changes = shard.feed(purchase("a", "1", at(50)))
    assert moves(changes) == [("a", None, "lapsed", "late_event")]
    assert times(changes) == days((200, 200))


def test_an_event_out_of_order_that_time_has_not_overtaken_is_not_late(shard: Feeder) -> None:
    """Where what the event did still holds, it counts from when it happened."""
    shard.feed(tick(at(60)))
    changes = shard.feed(purchase("a", "1", at(50)))
    assert moves(changes) == [("a", None, "new", "purchase")]
    assert times(changes) == days((50, 60))


def test_a_late_event_that_moves_nothing_is_only_counted(shard: Feeder) -> None:
    """A purchase long ago by a customer who has lapsed since leaves them lapsed, and is in their measures."""
    shard.feed(purchase("a", "1", at(0), "1.00"), tick(at(100)))
    assert shard.feed(purchase("a", "2", at(-50), "2.50")) == []
    customer = shard.customer("a")
    assert (customer["orders"], customer["gross"]) == (2, "3.50")
    assert (customer["first_purchase_at"], customer["last_purchase_at"]) == (text(at(-50)), text(at(0)))


def test_a_late_signup_before_the_first_purchase_moves_nothing(shard: Feeder) -> None:
    """A buyer's signup is a measure, no move."""
    shard.feed(purchase("a", "1", at(10)))
    assert shard.feed(signup("a", "s", at(5))) == []
    assert shard.customer("a")["signed_up_at"] == text(at(5))


def test_effective_at_never_goes_back() -> None:
    """Under the ingestion clock a late event is effective no earlier than the change before it."""
    shard = Feeder(make_policy(skew="10d"), Clock.INGESTION)
    first = shard.feed(purchase("a", "1", at(10)), record_times=[at(2)])
    assert times(first) == days((10, 2))
    changes = shard.feed(purchase("a", "2", at(3)), purchase("a", "3", at(4)), record_times=[at(3), at(5)])
    assert moves(changes) == [("a", "new", "regular", "late_event")]
    assert times(changes) == days((10, 5))


def test_the_ingestion_clock_is_the_running_maximum_of_record_times() -> None:
    """Deadlines pass when records say so, not when events do."""
    shard = Feeder(make_policy(skew="365d"), Clock.INGESTION)
    shard.feed(purchase("a", "1", at(0)), record_times=[at(0)])
    assert moves(shard.feed(purchase("b", "2", at(200)), record_times=[at(80)])) == [("b", None, "new", "purchase")]
    changes = shard.feed(tick(at(0)), purchase("b", "3", at(201)), record_times=[at(91), at(70)])
    assert moves(changes) == [("a", "new", "lapsed", "time")]
    assert times(changes) == days((90, 91))


@pytest.mark.parametrize("one_batch", [True, False])
def test_a_redelivered_event_counts_once(shard: Feeder, one_batch: bool) -> None:
    """An event_id that is remembered adds nothing, in the same batch or a later one; another customer's may."""
    events = [
        purchase("a", "1", at(0), "5.00"), purchase("a", "1", at(0), "5.00"), refund("a", "1", at(1), "5.00"),
        purchase("b", "1", at(2), "7.00"), purchase("a", "2", at(3), "5.00"), purchase("a", "1", at(4), "9.00"),
    ]  # fmt: skip
    changes = shard.feed(*events) if one_batch else shard.feed_one_by_one(events)
    assert moves(changes) == [("a", None, "new", "purchase"), ("b", None, "new", "purchase")]
    customer = shard.customer("a")
    assert (customer["orders"], customer["gross"], customer["refunds"]) == (2, "10.00", 0)
    assert customer["last_purchase_at"] == text(at(3))


def test_as_many_ids_are_remembered_as_the_policy_says() -> None:
    """The last ids of a customer are remembered; one that has fallen out of the window counts again."""
    shard = Feeder(make_policy(remembered=2))
    shard.feed(*(purchase("a", f"{i}", at(i)) for i in range(3)))
    shard.feed(purchase("a", "1", at(1)), purchase("a", "2", at(2)))
    assert shard.customer("a")["orders"] == 3
    shard.feed(purchase("a", "0", at(0)))
    assert shard.customer("a")["orders"] == 4


def test_refunds_move_nobody(shard: Feeder) -> None:
    """Refunds change the totals only: before a purchase, after it, and beyond what was paid."""
    assert shard.feed(refund("a", "1", at(0), "30.00")) == []
    assert shard.customer("a")["segments"] == {"lifecycle": None}
    (change,) = shard.feed(purchase("a", "2", at(1), "12.00"))
    assert change["rfm"] == {"recency_days": 0, "frequency": 1, "monetary": "-18.00", "currency": "USD"}
    assert shard.feed(refund("a", "3", at(60), "1.00")) == []
    assert times(shard.feed(tick(at(92)))) == days((91, 92))
    customer = shard.customer("a")
    assert (customer["refunds"], customer["refunded"], customer["net"]) == (2, "31.00", "-19.00")


def test_a_refund_only_customer_never_lapses(shard: Feeder) -> None:
    """Without a purchase or signup there is no segment to leave, however long ago it was."""
    shard.feed(refund("a", "1", at(0), "3.00"))
    assert shard.feed(tick(at(5000))) == []
    assert set(shard.customers()) == {"a"}


def test_an_erasure_forgets_the_customer(shard: Feeder) -> None:
    """The change says the label is gone and knows no measures; nothing of the customer is stored any more."""
    shard.feed(signup("a", "s", at(0), country="DE"), purchase("a", "1", at(1), "9.00"), purchase("b", "2", at(1)))
    (change,) = shard.feed(erasure("a", "x", at(2)))
    assert moves([change]) == [("a", "new", None, "erasure")]
    assert (change["sequence"], change["event_id"], change["effective_at"]) == (2, "x", text(at(2)))
    assert change["rfm"] == {"recency_days": None, "frequency": 0, "monetary": "0.00", "currency": "USD"}
    assert change["segments"] == {"lifecycle": None}
    assert set(shard.customers()) == {"b"}
    assert rows_of(shard.processor.table).keys() == {"b"}
    assert moves(shard.feed(tick(at(300)))) == [("b", "new", "lapsed", "time")]


def test_erasure_and_return_in_one_batch(shard: Feeder) -> None:
    """What follows an erasure starts a new customer: nothing is remembered, sequences begin again at 1."""
    step = shard.step(
        [
            purchase("a", "1", at(0), "9.00", country="DE"), purchase("a", "2", at(1)), purchase("a", "3", at(2)),
            erasure("a", "x", at(3)), signup("a", "s", at(4)), purchase("a", "1", at(5), "1.50"),
        ]
    )  # fmt: skip
    changes = step.outcome.published
    assert moves(changes) == [
        ("a", None, "new", "purchase"), ("a", "new", "regular", "purchase"), ("a", "regular", None, "erasure"),
        ("a", None, "new", "signup"),
    ]  # fmt: skip
    assert [change["sequence"] for change in changes] == [1, 2, 3, 1]
    assert step.outcome.erased == []
    customer = shard.customer("a")
    assert (customer["orders"], customer["gross"], customer["attributes"]) == (1, "1.50", {})
    assert (customer["signed_up_at"], customer["first_purchase_at"]) == (text(at(4)), text(at(5)))


def test_a_customer_who_comes_and_goes_in_one_batch(shard: Feeder) -> None:
    """Both changes are published, nothing is stored, and the row is free for the next customer."""
    step = shard.step([purchase("a", "1", at(0)), erasure("a", "x", at(1))])
    assert moves(step.outcome.published) == [("a", None, "new", "purchase"), ("a", "new", None, "erasure")]
    assert step.outcome.erased == ["a"]
    assert shard.customers() == {}
    shard.feed(purchase("b", "2", at(2)))
    assert rows_of(shard.processor.table) == {"b": 0}


def test_an_erasure_of_nobody_changes_nothing(shard: Feeder) -> None:
    """Erasing an unknown customer, or one without a segment, publishes nothing and leaves nothing behind."""
    shard.feed(refund("b", "1", at(0)))
    assert shard.feed(erasure("a", "x", at(1)), erasure("b", "y", at(1)), erasure("b", "y", at(1))) == []
    assert shard.customers() == {}


def test_a_passed_deadline_comes_before_an_erasure(shard: Feeder) -> None:
    """A customer who had lapsed by then is erased as lapsed."""
    shard.feed(purchase("a", "1", at(0)))
    changes = shard.feed(erasure("a", "x", at(91)))
    assert moves(changes) == [("a", "new", "lapsed", "time"), ("a", "lapsed", None, "erasure")]
    assert times(changes) == days((90, 91), (91, 91))


def test_a_late_erasure_is_no_earlier_than_what_was_said(shard: Feeder) -> None:
    """An erasure that occurred before the last change is effective when that change was."""
    shard.feed(purchase("a", "1", at(10)))
    changes = shard.feed(erasure("a", "x", at(5)))
    assert times(changes) == days((10, 10))
    assert changes[0]["cause"] == "erasure"


def overflowing(shard: Feeder, column: str, room: int) -> None:
    """Leave customer a so much room below the largest total."""
    getattr(shard.processor.table, column)[shard.processor.table.index["a"]] = LARGEST_TOTAL - room


@pytest.mark.parametrize(("build", "column"), [(purchase, "gross"), (refund, "refunded")])
def test_a_total_that_would_be_too_large_is_refused(shard: Feeder, build: Any, column: str) -> None:
    """An event that fits exactly is counted; one minor unit more is refused as total_too_large, and can come again."""
    shard.feed(purchase("a", "0", at(0)), purchase("b", "1", at(0)))
    overflowing(shard, column, 100)
    step = shard.step(
        [build("a", "2", at(1), "1.01"), purchase("b", "3", at(1), "1.01"), build("a", "4", at(2), "1.00")]
    )
    (refusal,) = step.outcome.overflowed
    assert (refusal.role, refusal.code, refusal.record.offset) == ("purchases", "total_too_large", 2)
    assert "check the amounts" in refusal.reason
    entry = step.commit.entry
    assert entry is not None
    assert [letter["code"] for letter in entry.dead_letters] == ["total_too_large"]
    assert shard.customer("b")["orders"] == 2
    table = shard.processor.table
    assert int(getattr(table, column)[table.index["a"]]) == LARGEST_TOTAL
    overflowing(shard, column, 200)
    assert shard.step([build("a", "2", at(3), "1.01")]).outcome.overflowed == []


def test_a_refused_event_moves_nobody(shard: Feeder) -> None:
    """What is refused adds no order, no instant and no label, but time passes; an unknown customer stays unknown."""
    shard.feed(purchase("a", "0", at(0)))
    overflowing(shard, "gross", 0)
    changes = shard.feed(purchase("a", "1", at(91), "0.01"))
    assert moves(changes) == [("a", "new", "lapsed", "time")]
    assert shard.customer("a")["orders"] == 1
    assert shard.customer("a")["last_purchase_at"] == text(at(0))


def test_attributes_keep_the_latest_value(shard: Feeder) -> None:
    """The value with the latest occurred_at stays, of equal instants the greater text; absence changes nothing."""
    shard.feed(
        purchase("a", "1", at(5), country="DE", channel="web"), purchase("a", "2", at(3), country="FR"),
        purchase("a", "3", at(6)), signup("a", "4", at(5), country="ES"), signup("a", "5", at(5), country="AT"),
        purchase("b", "6", at(5), country="AT"), purchase("b", "7", at(5), country="ES"), purchase("b", "8", at(4)),
    )  # fmt: skip
    assert shard.customer("a")["attributes"] == {"country": "ES", "channel": "web"}
    assert shard.customer("b")["attributes"] == {"country": "ES"}
    shard.feed(purchase("a", "9", at(7), country="AT"))
    assert shard.customer("a")["attributes"] == {"country": "AT", "channel": "web"}


def test_further_values_are_other() -> None:
    """Beyond the cap every new text is kept as (other); texts that are known stay themselves."""
    shard = Feeder(make_policy(keep=["country"], max_values=2))
    shard.feed(*(purchase(c, f"e{c}", at(0), country=c) for c in "abcd"), purchase("e", "ee", at(0), country="b"))
    assert [shard.customer(c)["attributes"]["country"] for c in "abcde"] == ["a", "b", OTHER, OTHER, "b"]
    shard.load()
    shard.feed(purchase("f", "ef", at(1), country="z"), purchase("c", "f", at(1), country="a"))
    assert [shard.customer(c)["attributes"]["country"] for c in "abcdf"] == ["a", "b", "a", OTHER, OTHER]


def test_two_dimensions_move_on_their_own() -> None:
    """Each dimension has its own labels and deadlines; a customer's sequence counts the moves of all."""
    shard = Feeder(TWO)
    changes = shard.feed(purchase("a", "1", at(0)), purchase("a", "2", at(1)), tick(at(100)))
    assert [(c["dimension"], c["from"], c["to"], c["sequence"]) for c in changes] == [
        ("slow", None, "new", 1), ("fast", None, "new", 2), ("fast", "new", "regular", 3),
        ("fast", "regular", "lapsed", 4), ("slow", "new", "lapsed", 5),
    ]  # fmt: skip
    assert changes[-1]["segments"] == {"slow": "lapsed", "fast": "lapsed"}
    assert len({change["change_id"] for change in changes}) == 5


def test_an_erasure_in_two_dimensions() -> None:
    """Each dimension that had a label says that it is gone; after the last one none is left."""
    shard = Feeder(TWO)
    shard.feed(purchase("a", "1", at(0)))
    changes = shard.feed(erasure("a", "x", at(1)))
    assert [(change["dimension"], change["to"], change["sequence"]) for change in changes] == [
        ("slow", None, 3),
        ("fast", None, 4),
    ]
    assert changes[-1]["segments"] == {"slow": None, "fast": None}


def test_history_is_marked() -> None:
    """Changes decided by records below the backfill offset are history; the first record beyond it decides anew."""
    shard = Feeder(backfill_until=3)
    changes = shard.feed(
        purchase("a", "1", at(0)), purchase("b", "2", at(1)), tick(at(90, 1)), tick(at(95)), purchase("c", "3", at(96))
    )
    assert [(change["customer_id"], change["to"], change["backfill"]) for change in changes] == [
        ("a", "new", True), ("b", "new", True), ("a", "lapsed", True), ("b", "lapsed", False), ("c", "new", False),
    ]  # fmt: skip
    assert [change["backfill"] for change in shard.advance(at(300))] == [False]


def test_deadlines_that_were_told_before_are_history(shard: Feeder) -> None:
    """A lapse before told_until is marked, whatever record decides it; one at it, and every event, is not."""
    shard.feed(purchase("a", "1", at(0)), purchase("b", "2", at(5)), purchase("c", "3", at(6)))
    shard.processor.load(dict.fromkeys(ROLES, 0), {}, told_until=at(95))
    changes = [*shard.feed(purchase("d", "4", at(96))), *shard.advance(at(97))]
    assert [(change["customer_id"], change["to"], change["backfill"]) for change in changes] == [
        ("a", "lapsed", True), ("b", "lapsed", False), ("d", "new", False), ("c", "lapsed", False),
    ]  # fmt: skip


def test_a_batch_of_ticks_moves_time_only(shard: Feeder) -> None:
    """Ticks touch no row, but time passes with them and is stored."""
    step = shard.step([tick(at(1)), tick(at(5)), tick(at(3))])
    assert (len(step.outcome.before.rows), step.outcome.published, step.commit.entry) == (0, [], None)
    assert shard.processor.time == at(5)
    assert shard.store.header(0).time == at(5)


def test_an_empty_batch_changes_nothing(shard: Feeder) -> None:
    """A batch without events, as when all records were refused, leaves table and time alone."""
    shard.feed(purchase("a", "1", at(0)))
    step = shard.step([])
    assert (step.outcome.published, step.outcome.erased, len(step.outcome.dirty)) == ([], [], 0)
    assert shard.processor.time == at(0)


def test_only_touched_rows_are_stored(shard: Feeder) -> None:
    """A commit holds the rows of the batch's customers and of those whom time moved, and no other."""
    shard.feed(*(purchase(f"c{i}", f"e{i}", at(i)) for i in range(5)))
    step = shard.step([purchase("c4", "x", at(91, 1))])
    assert sorted(customer for customer, _ in step.commit.rows) == ["c0", "c1", "c4"]


def test_many_customers_make_the_table_grow(shard: Feeder) -> None:
    """Thousands of customers in one batch are all labelled, and all lapse."""
    count = 2500
    changes = shard.feed(*(purchase(f"c{i:04d}", f"e{i}", at(0)) for i in range(count)))
    assert [change["customer_id"] for change in changes] == [f"c{i:04d}" for i in range(count)]
    assert len(shard.advance(at(91))) == count
    assert shard.sizes()["lifecycle:lapsed"] == (count, count * 100)
    assert len(shard.processor.table) == count


def test_a_new_policy_version_is_in_its_changes() -> None:
    """Changes name the version of the policy under which they were decided."""
    shard = Feeder(make_policy(version=7))
    assert [change["policy_version"] for change in shard.feed(purchase("a", "1", at(0)))] == [7]


def test_a_customer_erased_without_a_segment_is_forgotten_in_the_snapshots_too() -> None:
    """Nothing moves any more, but a snapshot says who the customer was: it must go."""
    more = '[dimensions.region]\nengine = "attribute"\nof = "country"\ngroups = { dach = ["DE"] }'
    feeder = Feeder(make_policy(keep=["country"], more=more, dimensions={"lifecycle": ("30d", 3, "90d")}))
    feeder.feed(profile("a", "1", at(0), country="DE"), profile("b", "2", at(0), country="ZZ"))
    assert [change["to"] for change in feeder.feed(profile("a", "3", at(1), country="ZZ"))] == [None]
    step = feeder.step([erasure("a", "4", at(2)), erasure("b", "5", at(2))])
    assert (list(step.outcome.published), step.outcome.forgotten) == ([], ["a"])
    assert step.commit.entry is not None
    assert OutboxEntry.decode(step.commit.entry.id, step.commit.entry.encode()).forgotten == ("a",)
