"""BatchProcessor: what a shard's batches write, and that what the store holds is the truth."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from models.counts import Count
from models.events import ROLES, Role
from models.instants import FOREVER, NEVER
from models.money import LARGEST_TOTAL
from models.table import CustomerTable
from streams.activations import Activations
from streams.commit import Range
from streams.errors import LostBatch, StaleOwner, StoreUnavailable
from streams.processor import BatchProcessor, Clock, Shard, Step
from streams.store.memory import MemoryStore
from tests.support.tables import rows_of
from tests.unit.build import (
    Event,
    Feeder,
    Rec,
    at,
    erasure,
    make_policy,
    purchase,
    record,
    refund,
    signup,
    text,
    tick,
)
from tests.unit.fakes import FaultyStore, processor_on

NO_HISTORY: dict[Role, int] = dict.fromkeys(ROLES, 0)
EMPTY_SIZES = {f"lifecycle:{label}": (0, 0) for label in ("new", "potential", "regular", "lapsed")}


def loaded(
    store: MemoryStore, *, start: int = 0, history: Mapping[Role, int] = NO_HISTORY, **how: Any
) -> BatchProcessor:
    """A processor of shard 0 that has just taken it."""
    processor = processor_on(store, **how)
    processor.load(dict.fromkeys(ROLES, start), history)
    return processor


def folded(processor: BatchProcessor, start: int, *events: Event, end: int | None = None) -> Step:
    """Purchases from an offset on, folded and not committed; they are stamped when they occurred."""
    records = [record(event, offset) for offset, event in enumerate(events, start)]
    batch, refusals = processor.read("purchases", records, FOREVER)
    return processor.fold(batch, refusals, {"purchases": Range(start, start + len(events) if end is None else end)})


def contents(store: MemoryStore) -> Any:
    """All that is stored of shard 0, in a form that can be compared."""
    header = store.header(0)
    return (
        dict(header.offsets), dict(header.backfill_until), header.time, dict(header.values), header.commits,
        [(entry.id, entry.values, entry.dead_letters) for entry in header.entries],
        sorted(pair for part in store.rows(0) for pair in part), store.segments(0),
    )  # fmt: skip


# Loading


def test_the_first_load_takes_an_empty_shard() -> None:
    """Where nothing is stored, the position is the one given, nobody is known, and the shard has no time yet."""
    store = MemoryStore()
    processor = processor_on(store)
    header = processor.load({"signups": 1, "purchases": 2, "erasures": 3}, {"purchases": 9})
    assert header.offsets == {"signups": 1, "purchases": 2, "erasures": 3}
    assert header.backfill_until == {"purchases": 9}
    assert (header.time, header.entries, header.values, header.commits) == (None, [], {}, 0)
    assert processor.time == NEVER
    assert len(processor.table) == 0
    assert processor.segments() == {name: Count(*size) for name, size in EMPTY_SIZES.items()}
    assert processor.token
    assert store.header(0).owner == processor.token


def test_every_load_is_a_new_owner() -> None:
    """Nobody can guess or repeat a token."""
    store = MemoryStore()
    tokens = {loaded(store).token for _ in range(5)}
    assert len(tokens) == 5
    assert all(len(token) >= 16 for token in tokens)


def test_a_later_load_begins_where_the_store_stands() -> None:
    """Stored offsets win over those given."""
    store = MemoryStore()
    first = loaded(store)
    first.commit(folded(first, 0, purchase("a", "1", at(0)), end=7))
    header = processor_on(store).load(dict.fromkeys(ROLES, 99), NO_HISTORY)
    assert header.offsets == {"signups": 0, "purchases": 7, "erasures": 0}
    assert header.commits == 1


def test_a_loaded_table_is_the_table_that_was_committed() -> None:
    """A worker that takes over goes on as the one before would have: same changes, same rows, same sizes."""
    first = [
        signup("s", "s1", at(0), country="DE"),
        purchase("p", "p1", at(1), "10.00", channel="web"),
        purchase("p", "p2", at(2), "5.50"),
        refund("p", "r1", at(3), "2.25"),
        purchase("gone", "g1", at(3)),
        erasure("gone", "g2", at(4)),
        purchase("old", "o1", at(-60)),
    ]
    second = [
        purchase("p", "p2", at(5), "99.00"),
        purchase("p", "p3", at(6), "1.00", country="FR"),
        signup("s", "s2", at(-1), country="FR"),
        tick(at(97)),
    ]
    staying, moving = Feeder(), Feeder()
    for feeder in (staying, moving):
        feeder.feed(*first)
    moving.load()
    assert moving.processor.time == staying.processor.time
    assert moving.feed(*second) == staying.feed(*second)
    assert moving.customers() == staying.customers()
    assert moving.sizes() == staying.sizes()
    assert moving.advance(at(300)) == staying.advance(at(300))
    assert moving.customers() == staying.customers()


@pytest.mark.parametrize("batches", [1, 3, 11])
def test_loading_after_every_batch_changes_nothing(batches: int) -> None:
    """However often a shard is taken over, the published changes are the same."""
    countries = ["DE", "FR"]
    events = [purchase(f"c{i % 5}", f"e{i}", at(i * 25), f"{i}.50", country=countries[i % 2]) for i in range(33)]
    staying, moving = Feeder(), Feeder()
    size = len(events) // batches
    parts = [events[i : i + size] for i in range(0, len(events), size)]
    changes = []
    for part in parts:
        changes += moving.feed(*part)
        moving.load()
    assert changes == [change for part in parts for change in staying.feed(*part)]
    assert {change["to"] for change in changes} == {"new", "regular", "lapsed"}
    assert moving.customers() == staying.customers()
    assert moving.sizes() == staying.sizes()


# Folding and committing


def test_nothing_is_stored_before_the_commit() -> None:
    """A fold is only a plan: the store changes when it is committed, and then as a whole."""
    store = MemoryStore()
    processor = loaded(store)
    before = contents(store)
    step = folded(processor, 0, purchase("a", "1", at(0), "2.00", country="DE"))
    assert contents(store) == before
    processor.commit(step)
    offsets, _, time, values, commits, entries, rows, sizes = contents(store)
    assert offsets == {"signups": 0, "purchases": 1, "erasures": 0}
    assert time == at(0)
    assert values == {"country": ["DE"]}
    assert commits == 1
    assert [len(changes) for _, changes, _ in entries] == [1]
    assert [customer for customer, _ in rows] == ["a"]
    assert sizes["lifecycle:new"] == Count(1, 200, 1)


def test_outbox_entries_are_numbered_and_carry_the_owner() -> None:
    """Ids order a shard's entries across owners and tell what each owner wrote."""
    store = MemoryStore()
    first = loaded(store)
    for i in range(2):
        first.commit(folded(first, i, purchase(f"c{i}", f"{i}", at(i))))
    second = loaded(store)
    second.commit(folded(second, 2, purchase("c2", "2", at(2))))
    entries = store.header(0).entries
    assert [entry.id.partition("-")[2] for entry in entries] == [first.token, first.token, second.token]
    numbers = [entry.number for entry in entries]
    assert numbers == sorted(set(numbers))
    assert [change["customer_id"] for entry in entries for change in entry.changes] == ["c0", "c1", "c2"]


def test_numbers_go_on_after_the_outbox_was_emptied() -> None:
    """A new owner's entries follow those of the owner before, although these are published and gone."""
    store = MemoryStore()
    first = loaded(store)
    first.commit(folded(first, 0, purchase("a", "1", at(0))))
    (entry,) = store.header(0).entries
    store.acknowledge(0, [entry.id])
    second = loaded(store)
    second.commit(folded(second, 1, purchase("b", "2", at(1))))
    assert store.header(0).entries[0].number > entry.number


def test_a_batch_that_publishes_nothing_has_no_entry() -> None:
    """What moves no label leaves the outbox alone."""
    processor = loaded(MemoryStore())
    assert folded(processor, 0, refund("a", "1", at(0))).commit.entry is None
    assert folded(processor, 1, tick(at(1))).commit.entry is None


def test_dead_letters_are_committed_with_the_batch() -> None:
    """A refused record is in the outbox with its topic, partition and offset, also if nothing else happened."""
    store = MemoryStore()
    processor = loaded(store)
    batch, refusals = processor.read("signups", [Rec(b"nonsense", b"a", 4)], FOREVER)
    processor.commit(processor.fold(batch, refusals, {"signups": Range(0, 5)}))
    (entry,) = store.header(0).entries
    assert entry.changes == []
    (letter,) = entry.dead_letters
    assert (letter["code"], letter["topic"], letter["partition"], letter["offset"], letter["value"]) == (
        "invalid_json", "signups", 0, 4, "nonsense",
    )  # fmt: skip
    assert store.header(0).offsets["signups"] == 5


def test_dead_letters_name_the_configured_topic() -> None:
    """The letter names the topic as Kafka knows it, not its role."""
    topics: dict[Role, str] = {"signups": "crm.signups", "purchases": "shop.sales", "erasures": "gdpr"}
    store = MemoryStore()
    processor = BatchProcessor(Shard(3, 8, topics), Activations(store, make_policy()), store, Clock.EVENT)
    processor.load(NO_HISTORY, NO_HISTORY)
    batch, refusals = processor.read("purchases", [Rec(b"", b"a", 1)], FOREVER)
    entry = processor.fold(batch, refusals, {"purchases": Range(0, 2)}).commit.entry
    assert entry is not None
    assert (entry.dead_letters[0]["topic"], entry.dead_letters[0]["partition"]) == ("shop.sales", 3)


def test_a_total_that_overflows_is_a_dead_letter_of_the_same_commit() -> None:
    """An event that cannot be counted is refused, with the changes of the others in one entry."""
    store = MemoryStore()
    processor = loaded(store)
    processor.commit(folded(processor, 0, purchase("a", "1", at(0))))
    processor.table.gross[processor.table.index["a"]] = LARGEST_TOTAL
    processor.commit(folded(processor, 1, purchase("a", "2", at(1)), purchase("b", "3", at(1))))
    entry = store.header(0).entries[-1]
    assert [(letter["code"], letter["offset"]) for letter in entry.dead_letters] == [("total_too_large", 1)]
    assert [(change["customer_id"], change["to"]) for change in entry.changes] == [("b", "new")]


def test_an_erased_customer_leaves_the_store() -> None:
    """Nothing about the customer is stored after the commit; others stay."""
    feeder = Feeder()
    feeder.feed(purchase("a", "1", at(0)), purchase("b", "2", at(0)))
    changes = feeder.feed(erasure("a", "3", at(1)))
    assert [(change["from"], change["to"], change["cause"]) for change in changes] == [("new", None, "erasure")]
    assert set(feeder.customers()) == {"b"}
    feeder.load()
    assert rows_of(feeder.processor.table).keys() == {"b"}


# Backfill


def test_records_below_the_mark_are_history() -> None:
    """Changes decided by records below backfill_until carry backfill: true, later ones do not."""
    processor = loaded(MemoryStore(), history={"purchases": 2})
    events = [purchase(f"c{i}", f"{i}", at(i)) for i in range(4)]
    published = folded(processor, 0, *events).outcome.published
    assert [change["backfill"] for change in published] == [True, True, False, False]


def test_each_topic_has_its_own_mark() -> None:
    """A mark on one topic says nothing about the others."""
    feeder = Feeder()
    feeder.processor.load(NO_HISTORY, {"purchases": 100})
    changes = feeder.feed(purchase("p", "1", at(0)), signup("s", "2", at(1)))
    assert {change["customer_id"]: change["backfill"] for change in changes} == {"p": True, "s": False}


def test_a_lapse_is_history_if_the_record_that_decided_it_is() -> None:
    """A lapse that a record of history passes is history; one that the clock passes is not."""
    feeder = Feeder(backfill_until=2)
    (_, lapse) = feeder.feed(purchase("a", "1", at(0)), tick(at(100)))
    assert (lapse["cause"], lapse["backfill"]) == ("time", True)
    feeder = Feeder(backfill_until=1)
    (_, lapse) = feeder.feed(purchase("a", "1", at(0)), tick(at(100)))
    assert (lapse["cause"], lapse["backfill"]) == ("time", False)
    feeder = Feeder(backfill_until=1000)
    feeder.feed(purchase("a", "1", at(0)))
    assert [change["backfill"] for change in feeder.advance(at(100))] == [False]


def test_the_mark_of_the_first_start_outlives_a_crash() -> None:
    """Whoever takes the shard in the middle of a first start still knows what is history."""
    store = MemoryStore()
    first = loaded(store, history={"purchases": 3})
    first.commit(folded(first, 0, purchase("a", "1", at(0))))
    second = loaded(store)
    published = folded(second, 1, *(purchase(f"c{i}", f"x{i}", at(i)) for i in range(3))).outcome.published
    assert [change["backfill"] for change in published] == [True, True, False]


def test_a_later_mark_extends_history() -> None:
    """A rewind below a commit that is found at assignment is history up to that commit."""
    store = MemoryStore()
    loaded(store, history={"purchases": 1})
    second = loaded(store, history={"purchases": 2})
    published = folded(second, 0, *(purchase(f"c{i}", f"{i}", at(i)) for i in range(3))).outcome.published
    assert [change["backfill"] for change in published] == [True, True, False]


# Clocks


def test_the_event_clock_is_the_latest_occurred_at() -> None:
    """Time is the running maximum of occurred_at, whatever the records' timestamps are."""
    feeder = Feeder(clock=Clock.EVENT)
    changes = feeder.feed(
        purchase("a", "1", at(5)), purchase("b", "2", at(3)), purchase("c", "3", at(6)), record_times=[at(90)] * 3
    )
    assert [change["decided_at"] for change in changes] == [text(at(5)), text(at(5)), text(at(6))]
    assert feeder.store.header(0).time == at(6)


def test_the_ingestion_clock_is_the_latest_record_timestamp() -> None:
    """Time is the running maximum of the records' Kafka timestamps, whatever the events say."""
    feeder = Feeder(clock=Clock.INGESTION)
    changes = feeder.feed(
        purchase("a", "1", at(5)), purchase("b", "2", at(3)), purchase("c", "3", at(6)),
        record_times=[at(20), at(10), at(30)],
    )  # fmt: skip
    assert [change["decided_at"] for change in changes] == [text(at(20)), text(at(20)), text(at(30))]
    assert [change["effective_at"] for change in changes] == [text(at(5)), text(at(3)), text(at(6))]
    assert feeder.store.header(0).time == at(30)


@pytest.mark.parametrize("clock", Clock)
def test_time_never_steps_back(clock: Clock) -> None:
    """A batch of earlier records, with or without a load between, leaves the shard's time where it was."""
    feeder = Feeder(clock=clock)
    feeder.feed(purchase("a", "1", at(50)), record_times=[at(50)])
    for i in range(2):
        (change,) = feeder.feed(purchase(f"b{i}", f"x{i}", at(1)), record_times=[at(1)])
        assert change["decided_at"] == text(at(50))
        assert feeder.processor.time == feeder.store.header(0).time == at(50)
        feeder.load()
        assert feeder.processor.time == at(50)


def test_advancing_to_the_past_is_no_step_back() -> None:
    """An instant before the shard's time changes nothing."""
    feeder = Feeder()
    feeder.feed(purchase("a", "1", at(50)))
    assert feeder.processor.advance(at(1)) is None
    assert feeder.processor.time == at(50)


def test_advancing_over_nothing_needs_no_commit() -> None:
    """Where nothing is due there is nothing to store, and a later record is still judged by the new time."""
    feeder = Feeder()
    feeder.feed(purchase("a", "1", at(0)))
    before = contents(feeder.store)
    assert feeder.processor.advance(at(10)) is None
    assert contents(feeder.store) == before
    (change,) = feeder.feed(purchase("b", "2", at(5)))
    assert (change["decided_at"], change["cause"]) == (text(at(10)), "purchase")


def test_a_deadline_passes_after_its_instant() -> None:
    """At the deadline the label still holds; a microsecond later it has changed, as of the deadline."""
    feeder = Feeder()
    feeder.feed(purchase("a", "1", at(0)))
    assert feeder.advance(at(90)) == []
    assert feeder.processor.lapse_lag(at(90)) == 0
    assert feeder.processor.lapse_lag(at(90, 7)) == 7
    (change,) = feeder.advance(at(90, 1))
    assert (change["to"], change["effective_at"], change["event_id"]) == ("lapsed", text(at(90)), None)
    assert feeder.processor.lapse_lag(at(900)) == 0


def test_a_shard_without_time_advances() -> None:
    """An empty shard may be told the time."""
    processor = loaded(MemoryStore())
    assert processor.lapse_lag(at(0)) == 0
    assert processor.advance(at(0)) is None
    assert processor.time == at(0)


def test_an_empty_batch_moves_only_the_offsets() -> None:
    """A range of control records, or of refused ones, is covered; time and customers stay."""
    feeder = Feeder()
    feeder.feed(purchase("a", "1", at(3)))
    before = feeder.customers()
    nothing, _ = feeder.processor.read("purchases", [], FOREVER)
    feeder.processor.commit(feeder.processor.fold(nothing, [], {"purchases": Range(1, 9)}))
    header = feeder.store.header(0)
    assert (header.offsets["purchases"], header.time) == (9, at(3))
    assert feeder.customers() == before
    feeder.load()
    assert feeder.processor.time == at(3)


def test_an_empty_batch_may_be_the_first() -> None:
    """A shard whose first records are all refused has no time yet, and goes on as if they had not been there."""
    store = MemoryStore()
    processor = loaded(store)
    nothing, _ = processor.read("purchases", [], FOREVER)
    processor.commit(processor.fold(nothing, [], {"purchases": Range(0, 2)}))
    processor = loaded(store)
    assert processor.time == NEVER
    processor.commit(folded(processor, 2, purchase("a", "1", at(-10_000))))
    assert store.header(0).time == at(-10_000)


# Refused commits


def test_a_stale_owner_writes_nothing() -> None:
    """Once another has taken the shard the commit is refused as a whole; after a load the same work succeeds."""
    store = MemoryStore()
    old = loaded(store)
    step = folded(old, 0, purchase("a", "1", at(0), country="DE"))
    new = loaded(store)
    new.commit(folded(new, 0, purchase("b", "2", at(0), country="FR")))
    before = contents(store)
    with pytest.raises(StaleOwner):
        old.commit(step)
    assert contents(store) == before
    header = old.load(NO_HISTORY, NO_HISTORY)
    assert header.offsets["purchases"] == 1
    old.commit(folded(old, 1, purchase("a", "1", at(0), country="DE")))
    assert store.header(0).values == {"country": ["FR", "DE"]}
    with pytest.raises(StaleOwner):
        new.commit(folded(new, 1, purchase("c", "3", at(0))))


@pytest.mark.parametrize("start", [0, 2])
def test_a_batch_that_does_not_begin_at_the_stored_offset_is_refused(start: int) -> None:
    """Neither a gap nor a repetition is ever folded into the store."""
    store = MemoryStore()
    processor = loaded(store)
    processor.commit(folded(processor, 0, purchase("a", "1", at(0))))
    before = contents(store)
    with pytest.raises(LostBatch):
        processor.commit(folded(processor, start, purchase("b", "2", at(1))))
    assert contents(store) == before
    processor.load(NO_HISTORY, NO_HISTORY)
    processor.commit(folded(processor, 1, purchase("b", "2", at(1))))
    assert store.header(0).offsets["purchases"] == 2


def test_one_topic_out_of_place_refuses_the_whole_batch() -> None:
    """The guard holds for every topic in the batch."""
    store = MemoryStore()
    processor = loaded(store)
    batch, _ = processor.read("purchases", [record(purchase("a", "1", at(0)))], FOREVER)
    before = contents(store)
    with pytest.raises(LostBatch):
        processor.commit(processor.fold(batch, [], {"purchases": Range(0, 1), "signups": Range(5, 5)}))
    assert contents(store) == before


def test_a_step_committed_twice_is_written_once() -> None:
    """Also one that covers no range, as the passing of time does."""
    feeder = Feeder()
    feeder.feed(purchase("a", "1", at(0)))
    step = feeder.processor.advance(at(100))
    assert step is not None
    feeder.processor.commit(step)
    before = contents(feeder.store)
    with pytest.raises(LostBatch):
        feeder.processor.commit(step)
    assert contents(feeder.store) == before


@pytest.mark.parametrize("fault", ["before", "after", "stolen"])
def test_after_a_failed_commit_a_load_goes_on_where_the_store_stands(fault: str) -> None:
    """Whether the lost commit was written or not, nothing is counted twice and nothing is missing."""
    events = [purchase("a", f"{i}", at(i), "1.00", country=f"C{i}") for i in range(4)]
    undisturbed = Feeder()
    undisturbed.feed_one_by_one(events)

    store = FaultyStore()
    processor = loaded(store)
    processor.commit(folded(processor, 0, events[0]))
    store.fail("commit", fault)
    with pytest.raises(StaleOwner if fault == "stolen" else StoreUnavailable):
        processor.commit(folded(processor, 1, events[1]))
    while (done := processor.load(NO_HISTORY, NO_HISTORY).offsets["purchases"]) < 4:
        processor.commit(folded(processor, done, events[done]))
    assert store.header(0).values == undisturbed.store.header(0).values
    assert contents(store)[6:] == contents(undisturbed.store)[6:]
    published = [change for entry in store.header(0).entries for change in entry.changes]
    assert [change["to"] for change in published] == ["new", "regular"]


# Dictionaries


def test_a_value_is_stored_once() -> None:
    """The first commit that needs a value stores its text; no later one does, not even by another owner."""
    store = FaultyStore()
    processor = loaded(store)
    processor.commit(folded(processor, 0, purchase("a", "1", at(0), country="DE", channel="web")))
    processor.commit(folded(processor, 1, purchase("b", "2", at(0), country="DE")))
    processor.commit(folded(processor, 2, purchase("c", "3", at(0), country="FR", channel="shop")))
    processor = loaded(store)
    processor.commit(folded(processor, 3, purchase("d", "4", at(0), country="FR")))
    processor.commit(folded(processor, 4, purchase("e", "5", at(0), country="IT")))
    assert [dict(commit.values) for commit in store.committed()] == [
        {"country:0": "DE", "channel:0": "web"},
        {},
        {"country:1": "FR", "channel:1": "shop"},
        {},
        {"country:2": "IT"},
    ]
    assert store.header(0).values == {"country": ["DE", "FR", "IT"], "channel": ["web", "shop"]}


def test_a_value_whose_commit_failed_is_stored_by_the_next() -> None:
    """No code is ever used whose text is not stored."""
    store = FaultyStore()
    processor = loaded(store)
    store.fail("commit", "before")
    with pytest.raises(StoreUnavailable):
        processor.commit(folded(processor, 0, purchase("a", "1", at(0), country="DE")))
    processor.load(NO_HISTORY, NO_HISTORY)
    processor.commit(folded(processor, 0, purchase("b", "2", at(0), country="FR")))
    assert store.header(0).values == {"country": ["FR"]}


def test_values_beyond_the_cap_are_stored_as_other() -> None:
    """A dictionary ends with "(other)", once."""
    feeder = Feeder(make_policy(max_values=2))
    for i, country in enumerate(["DE", "FR", "IT", "ES", "DE"]):
        feeder.feed(purchase(f"c{i}", f"{i}", at(i), country=country))
    assert feeder.store.header(0).values == {"country": ["DE", "FR", "(other)"]}
    found = [feeder.customer(f"c{i}")["attributes"]["country"] for i in range(5)]
    assert found == ["DE", "FR", "(other)", "(other)", "DE"]


def test_only_attributes_of_the_policy_are_stored() -> None:
    """What the policy does not keep appears nowhere."""
    feeder = Feeder(make_policy(keep=["country"]))
    feeder.feed(purchase("a", "1", at(0), country="DE", channel="web", attributes={"secret": "x"}))
    assert feeder.store.header(0).values == {"country": ["DE"]}
    assert feeder.customer("a")["attributes"] == {"country": "DE"}


# Sizes


def test_sizes_are_those_of_the_stored_customers() -> None:
    """After any batch, customers and revenue of each segment equal a count over the stored rows."""
    feeder = Feeder()
    batches: list[list[Event]] = [
        [signup("s", "1", at(0)), purchase("p", "2", at(0), "10.00"), refund("r", "3", at(0), "4.00")],
        [purchase("p", "4", at(1), "5.00"), purchase("p", "5", at(2), "5.00"), purchase("q", "6", at(2), "1.50")],
        [refund("q", "7", at(3), "3.00"), purchase("s", "8", at(3), "7.00")],
        [erasure("p", "9", at(4)), purchase("n", "10", at(4)), signup("t", "11", at(4))],
        [tick(at(40))],
        [tick(at(200)), purchase("s", "12", at(200), "1.00")],
    ]
    for number, batch in enumerate(batches):
        feeder.feed(*batch)
        if number % 2:
            feeder.load()
        counted: Counter[str] = Counter()
        revenue: Counter[str] = Counter()
        for customer in feeder.customers().values():
            for dimension, label in customer["segments"].items():
                if label is not None:
                    counted[f"{dimension}:{label}"] += 1
                    revenue[f"{dimension}:{label}"] += round(float(customer["net"]) * 100)
        assert feeder.sizes() == {name: (counted[name], revenue[name]) for name in EMPTY_SIZES}


def test_every_segment_has_a_size() -> None:
    """Segments without customers are listed with none, for every dimension of the policy."""
    feeder = Feeder(make_policy(dimensions={"lifecycle": ("30d", 3, "90d"), "fast": ("1d", 2, "7d")}))
    feeder.feed(purchase("a", "1", at(0), "2.00"), tick(at(8)))
    sizes = feeder.sizes()
    assert sizes.keys() == {
        f"{d}:{s}" for d in ("lifecycle", "fast") for s in ("new", "potential", "regular", "lapsed")
    }
    assert {name: size for name, size in sizes.items() if size != (0, 0)} == {
        "lifecycle:new": (1, 200),
        "fast:lapsed": (1, 200),
    }


# Slices


def due_feeder(customers: int = 7, clock: Clock = Clock.INGESTION) -> Feeder:
    """Customers who all lapse, one a day from day 90 on."""
    feeder = Feeder(clock=clock)
    stamps = [at(i) for i in range(customers)]
    feeder.feed(*(purchase(f"c{i}", f"{i}", at(i)) for i in range(customers)), record_times=stamps)
    return feeder


@pytest.mark.parametrize("most", [1, 2, 3, 7, 100])
def test_slices_give_the_changes_of_one_step(most: int) -> None:
    """Time that passes in slices of at most so many rows gives each lapse once, the earliest first."""
    whole, sliced = due_feeder(), due_feeder()
    expected = whole.advance(at(1000))
    changes = []
    while part := sliced.advance(at(1000), most):
        assert len(part) <= most
        changes += part
    assert changes == expected
    assert sliced.customers() == whole.customers()
    assert sliced.sizes() == whole.sizes()
    assert sliced.store.header(0).time == whole.store.header(0).time == at(1000)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_crash_between_slices_loses_no_lapse(most: int) -> None:
    """Whoever loads the shard after any slice finds the rest due."""
    whole, sliced = due_feeder(), due_feeder()
    expected = whole.advance(at(1000))
    changes = []
    while part := sliced.advance(at(1000), most):
        changes += part
        sliced.load()
    assert changes == expected
    assert sliced.customers() == whole.customers()


def test_lapse_lag_tells_how_late_the_oldest_lapse_is() -> None:
    """It falls as slices are applied, and is 0 at the end."""
    feeder = due_feeder(3)
    lags = [feeder.processor.lapse_lag(at(100))]
    while feeder.advance(at(100), 1):
        lags.append(feeder.processor.lapse_lag(at(100)))
    assert lags == [at(100) - at(90), at(100) - at(91), at(100) - at(92), 0]


def test_lapse_lag_may_be_asked_while_the_shard_is_loaded() -> None:
    """A worker's watch asks it in the event loop while a thread loads the shard again."""
    feeder = due_feeder(3)
    processor = feeder.processor
    table = processor.table
    due = table.due

    def meanwhile(instant: int) -> Any:
        rows = due(instant)
        processor.table = CustomerTable(feeder.policy)
        return rows

    table.due = meanwhile  # type: ignore[method-assign]
    assert processor.lapse_lag(at(100)) == at(100) - at(90)


def test_nobody_sees_a_table_before_it_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """To look for what is due notes what was found, which must not happen while another thread adds customers."""
    feeder = due_feeder(3)
    processor, store = feeder.processor, feeder.store
    rows, seen = store.rows, []

    def looked_at(shard: int) -> Any:
        for part in rows(shard):
            yield part
            seen.append((len(processor.table), processor.lapse_lag(at(100))))

    monkeypatch.setattr(store, "rows", looked_at)
    processor.load(NO_HISTORY, NO_HISTORY)
    assert set(seen) == {(0, 0)}
    assert (len(processor.table), processor.lapse_lag(at(100))) == (3, at(100) - at(90))


def test_events_between_slices_find_their_customers_as_if_there_were_none() -> None:
    """A purchase that comes while slices are outstanding first lapses its customer, and then all others."""
    whole, sliced = due_feeder(), due_feeder()
    whole.advance(at(1000))
    sliced.advance(at(1000), 2)
    event = purchase("c6", "x", at(1001))
    back = whole.feed(event, record_times=[at(1001)])
    rest = sliced.feed(event, record_times=[at(1001)])
    assert [change["change_id"] for change in back] == [rest[-1]["change_id"]]
    assert [(change["customer_id"], change["to"]) for change in rest] == [
        *((f"c{i}", "lapsed") for i in range(2, 7)),
        ("c6", "new"),
    ]
    assert sliced.customers() == whole.customers()


@pytest.mark.parametrize("records", [[], [Rec(b"nonsense", b"a", 3)]])
def test_a_batch_without_events_between_slices_loses_no_lapse(records: list[Rec]) -> None:
    """After a slice, a commit that only covers control or refused records must leave the rest due for a loader."""
    feeder = due_feeder(3)
    feeder.advance(at(1000), 1)
    batch, refusals = feeder.processor.read("purchases", records, FOREVER)
    feeder.processor.commit(feeder.processor.fold(batch, refusals, {"purchases": Range(3, 4)}))
    feeder.load()
    assert [change["customer_id"] for change in feeder.advance(at(1001))] == ["c1", "c2"]


def test_two_dimensions_lapse_each_in_its_time() -> None:
    """Slices pass the deadlines of all dimensions in time order, and give what one step gives."""
    policy = make_policy(dimensions={"slow": ("30d", 3, "90d"), "fast": ("1d", 2, "7d")})
    whole, sliced = Feeder(policy), Feeder(policy)
    for feeder in (whole, sliced):
        feeder.feed(signup("a", "1", at(0)), signup("b", "2", at(1)))
    expected = whole.advance(at(100))
    changes = []
    while part := sliced.advance(at(100), 1):
        changes += part
        sliced.load()
    assert [(c["customer_id"], c["dimension"], c["to"], c["effective_at"]) for c in changes] == [
        (customer, dimension, label, text(at(day + later)))
        for day, dimension, label in [
            (1, "fast", "potential"), (7, "fast", "lapsed"), (30, "slow", "potential"), (90, "slow", "lapsed"),
        ]
        for later, customer in enumerate("ab")
    ]  # fmt: skip
    assert {change["change_id"] for change in changes} == {change["change_id"] for change in expected}
    assert sliced.customers() == whole.customers()
    assert sliced.sizes() == whole.sizes()
