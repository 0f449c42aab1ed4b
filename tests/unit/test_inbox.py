"""Inbox: fetched records of several topics, merged by time into batches, with the offsets they cover."""

from collections.abc import Iterable

import pytest

from models.batch import Refusal
from models.events import ROLES, Role
from models.instants import FOREVER
from models.records import Reader, read
from streams.commit import Range
from streams.inbox import Batch, Beyond, Inbox
from streams.processor import Clock
from tests.unit.build import Event, Rec, at, erasure, make_policy, purchase, record, signup

READER = Reader(make_policy(skew="36500d"), 0, 1, FOREVER)
ALL = frozenset(ROLES)
NONE: frozenset[Role] = frozenset()
BAD = "bad"


def event_of(role: Role, day: float) -> Event:
    """An event whose id says where it belongs: p3 occurred on day 3."""
    build = {"purchases": purchase, "signups": signup, "erasures": erasure}[role]
    return build("a", f"{role[0]}{day:g}", at(day))


def put(
    inbox: Inbox,
    role: Role,
    start: int,
    *days: float | str,
    end: int | None = None,
    recorded: Iterable[float] | None = None,
) -> None:
    """One fetch of a topic from an offset on: an event for each day, an unusable record for each BAD."""
    records = []
    stamps = [None] * len(days) if recorded is None else [at(day) // 1000 for day in recorded]
    for offset, (day, stamp) in enumerate(zip(days, stamps, strict=True), start=start):
        made = Rec(b"{", b"a", offset) if isinstance(day, str) else record(event_of(role, day), offset)
        records.append(made if stamp is None else made._replace(timestamp=stamp))
    batch, refusals = read(role, records, READER)
    inbox.put(role, Range(start, start + len(days) if end is None else end), batch, refusals)


def offsets(refusals: Iterable[Refusal]) -> list[tuple[Role, int]]:
    return [(refusal.role, refusal.record.offset) for refusal in refusals]


def taken(batch: Batch | Beyond | None) -> list[str]:
    assert isinstance(batch, Batch)
    return batch.events.event_id


@pytest.fixture
def inbox() -> Inbox:
    return Inbox(Clock.EVENT)


def test_an_empty_inbox_gives_nothing(inbox: Inbox) -> None:
    """Without records there is no batch, whatever is drained."""
    assert inbox.take(10, NONE) is None
    assert inbox.take(10, ALL) is None
    assert inbox.roles == set()
    assert inbox.size("purchases") == 0


def test_topics_are_merged_by_time(inbox: Inbox) -> None:
    """Once every topic is drained all records come in time order, with the offsets of each topic."""
    put(inbox, "purchases", 10, 1, 4, 5)
    put(inbox, "signups", 70, 0, 2, 6)
    put(inbox, "erasures", 3, 3)
    batch = inbox.take(100, NONE)
    assert taken(batch) == ["s0", "p1", "s2", "e3", "p4", "p5", "s6"]
    assert isinstance(batch, Batch)
    assert batch.ranges == {"signups": (70, 73), "purchases": (10, 13), "erasures": (3, 4)}
    assert batch.refusals == []
    assert inbox.take(100, NONE) is None


def test_at_one_instant_signups_come_first_and_erasures_last(inbox: Inbox) -> None:
    """Ties are broken by the topic's rank, then by offset."""
    put(inbox, "erasures", 0, 1, 1)
    put(inbox, "purchases", 0, 1)
    put(inbox, "signups", 0, 1)
    assert taken(inbox.take(10, NONE)) == ["s1", "p1", "e1", "e1"]


def test_the_clock_decides_what_time_is() -> None:
    """Under the ingestion clock the records' own timestamps merge the topics, not the events' instants."""
    inbox = Inbox(Clock.INGESTION)
    put(inbox, "purchases", 0, 5, 1, recorded=[10, 12])
    put(inbox, "signups", 0, 9, 0, recorded=[9, 11])
    assert taken(inbox.take(10, NONE)) == ["s9", "p5", "s0", "p1"]


def test_nothing_overtakes_a_topic_that_is_not_drained(inbox: Inbox) -> None:
    """No record later than the last one waiting of an undrained topic is handed out: an earlier one may follow."""
    put(inbox, "purchases", 0, 1, 2, 8, 9)
    put(inbox, "signups", 0, 0, 3, 5)
    batch = inbox.take(100, frozenset({"signups"}))
    assert taken(batch) == ["s0", "p1", "p2", "s3", "s5"]
    assert isinstance(batch, Batch)
    assert batch.ranges == {"signups": (0, 3), "purchases": (0, 2)}
    assert inbox.take(100, frozenset({"signups"})) is None
    put(inbox, "signups", 3, 8, 8.5)
    assert taken(inbox.take(100, frozenset({"signups"}))) == ["s8", "p8", "s8.5"]
    assert taken(inbox.take(100, NONE)) == ["p9"]


def test_every_undrained_topic_is_a_bound(inbox: Inbox) -> None:
    """With two undrained topics the one whose last record is earlier bounds the batch."""
    put(inbox, "purchases", 0, 1, 4, 7)
    put(inbox, "signups", 0, 2, 5)
    put(inbox, "erasures", 0, 3, 9)
    assert taken(inbox.take(100, ALL)) == ["p1", "s2", "e3", "p4", "s5"]


def test_an_undrained_topic_with_nothing_waiting_stops_all(inbox: Inbox) -> None:
    """While anything may come from a topic of which nothing waits, nothing is handed out."""
    put(inbox, "purchases", 0, 1, 2)
    assert inbox.take(100, frozenset({"signups"})) is None
    put(inbox, "erasures", 0, 1)
    assert inbox.take(100, frozenset({"signups"})) is None
    assert inbox.size("purchases") == 2
    assert inbox.roles == {"purchases", "erasures"}


def test_a_topic_may_hold_back_itself_only_by_others(inbox: Inbox) -> None:
    """A topic that is not drained hands out what waits of it: its own next record can only come after."""
    put(inbox, "purchases", 0, 1, 2)
    assert taken(inbox.take(100, frozenset({"purchases"}))) == ["p1", "p2"]


def test_nothing_produced_after_the_horizon_is_handed_out(inbox: Inbox) -> None:
    """From the first record on that was produced after the horizon all wait, in one topic and in several."""
    put(inbox, "purchases", 0, 1, 2, 3, recorded=[10, 11, 12])
    assert inbox.take(100, NONE, at(10) - 1) is None
    batch = inbox.take(100, NONE, at(11))
    assert taken(batch) == ["p1", "p2"]
    assert isinstance(batch, Batch)
    assert batch.ranges == {"purchases": (0, 2)}
    put(inbox, "signups", 0, 0, 4, 5, recorded=[10, 13, 13])
    assert taken(inbox.take(100, NONE, at(11))) == ["s0"]
    assert taken(inbox.take(100, frozenset({"purchases"}), at(20))) == ["p3"]
    assert taken(inbox.take(100, NONE, at(13))) == ["s4", "s5"]


def test_late_records_stay_behind_the_record_before_them(inbox: Inbox) -> None:
    """A topic keeps its offset order: a record earlier than its predecessor follows it, wherever batches are cut."""
    put(inbox, "purchases", 0, 5, 1, 2, 9)
    put(inbox, "signups", 0, 3, 6, 4)
    everything = ["s3", "p5", "p1", "p2", "s6", "s4", "p9"]
    got: list[str] = []
    while isinstance(batch := inbox.take(1, NONE), Batch):
        got += batch.events.event_id
    assert got == everything


def test_ranges_are_split_where_batches_are_cut(inbox: Inbox) -> None:
    """Each batch covers the offsets up to its first record that stays; together the ranges have no gap."""
    put(inbox, "purchases", 10, 1, 3, 5, end=20)
    put(inbox, "signups", 0, 2, 4)
    seen = []
    while isinstance(batch := inbox.take(2, NONE), Batch):
        seen.append((batch.events.event_id, dict(batch.ranges)))
    assert seen == [
        (["p1", "s2"], {"purchases": (10, 11), "signups": (0, 1)}),
        (["p3", "s4"], {"purchases": (11, 12), "signups": (1, 2)}),
        (["p5"], {"purchases": (12, 20)}),
    ]


def test_gaps_belong_to_the_range_before_them(inbox: Inbox) -> None:
    """Offsets without a record, as compaction and transactions leave them, are covered like any other."""
    policy_reader = READER
    records = [record(event_of("purchases", day), offset) for day, offset in ((1, 12), (3, 17), (5, 18))]
    batch, _ = read("purchases", records, policy_reader)
    inbox.put("purchases", Range(10, 25), batch, [])
    put(inbox, "signups", 0, 2, 4)
    first, second = inbox.take(2, NONE), inbox.take(10, NONE)
    assert isinstance(first, Batch)
    assert isinstance(second, Batch)
    assert first.ranges["purchases"] == (10, 17)
    assert second.ranges["purchases"] == (17, 25)


def test_refusals_travel_with_their_range(inbox: Inbox) -> None:
    """A refused record is handed out with the batch that covers its offset, once."""
    put(inbox, "purchases", 0, BAD, 1, BAD, BAD, 5, BAD)
    put(inbox, "signups", 0, 3, BAD, 7)
    first = inbox.take(2, NONE)
    assert taken(first) == ["p1", "s3"]
    assert isinstance(first, Batch)
    assert first.ranges == {"purchases": (0, 4), "signups": (0, 2)}
    assert offsets(first.refusals) == [("signups", 1), ("purchases", 0), ("purchases", 2), ("purchases", 3)]
    second = inbox.take(10, NONE)
    assert taken(second) == ["p5", "s7"]
    assert isinstance(second, Batch)
    assert second.ranges == {"purchases": (4, 6), "signups": (2, 3)}
    assert offsets(second.refusals) == [("purchases", 5)]


def test_a_fetch_of_refusals_only_moves_the_offset(inbox: Inbox) -> None:
    """Records that are all refused, and ranges without records, are handed out as ranges, also while undrained."""
    put(inbox, "purchases", 0, BAD, BAD)
    put(inbox, "signups", 0, 3)
    batch = inbox.take(10, frozenset({"purchases"}))
    assert isinstance(batch, Batch)
    assert len(batch.events) == 0
    assert (batch.ranges, offsets(batch.refusals)) == ({"purchases": (0, 2)}, [("purchases", 0), ("purchases", 1)])
    assert inbox.take(10, frozenset({"purchases"})) is None
    put(inbox, "purchases", 2, end=9)
    batch = inbox.take(10, NONE)
    assert taken(batch) == ["s3"]
    assert isinstance(batch, Batch)
    assert batch.ranges == {"signups": (0, 1), "purchases": (2, 9)}


def test_refusals_before_the_first_record_that_must_wait(inbox: Inbox) -> None:
    """Of a topic that must wait, what was refused before its first good record need not wait."""
    put(inbox, "signups", 0, BAD, BAD, 3)
    put(inbox, "purchases", 0, BAD)
    batch = inbox.take(10, frozenset({"purchases"}))
    assert isinstance(batch, Batch)
    assert len(batch.events) == 0
    assert batch.ranges == {"signups": (0, 2), "purchases": (0, 1)}
    assert offsets(batch.refusals) == [("signups", 0), ("signups", 1), ("purchases", 0)]


def test_a_single_topic_is_handed_out_in_whole_fetches(inbox: Inbox) -> None:
    """With one topic waiting, fetches are joined up to the limit and never split; the first one always fits."""
    put(inbox, "purchases", 0, 1, 2, 3)
    put(inbox, "purchases", 3, 4, BAD, 5)
    put(inbox, "purchases", 6, 6)
    assert inbox.size("purchases") == 6
    batch = inbox.take(5, NONE)
    assert taken(batch) == ["p1", "p2", "p3", "p4", "p5"]
    assert isinstance(batch, Batch)
    assert (batch.ranges, offsets(batch.refusals)) == ({"purchases": (0, 6)}, [("purchases", 4)])
    assert inbox.size("purchases") == 1
    put(inbox, "purchases", 7, 7, 8, 9)
    assert taken(inbox.take(3, NONE)) == ["p6"]
    assert taken(inbox.take(1, NONE)) == ["p7", "p8", "p9"]
    assert inbox.roles == set()


def test_fetches_of_one_topic_are_joined_when_merged(inbox: Inbox) -> None:
    """Several fetches of a topic are one range, whose refusals are kept."""
    put(inbox, "purchases", 0, 1, BAD)
    put(inbox, "purchases", 2, 3)
    put(inbox, "signups", 0, 2)
    batch = inbox.take(10, NONE)
    assert taken(batch) == ["p1", "s2", "p3"]
    assert isinstance(batch, Batch)
    assert batch.ranges == {"signups": (0, 1), "purchases": (0, 3)}
    assert offsets(batch.refusals) == [("purchases", 1)]


def test_clear_forgets_everything(inbox: Inbox) -> None:
    """After clear() the inbox is empty, and fetches may begin anywhere."""
    put(inbox, "purchases", 0, 1)
    put(inbox, "signups", 0, BAD)
    inbox.clear()
    assert inbox.take(10, NONE) is None
    assert inbox.roles == set()
    put(inbox, "purchases", 40, 2)
    batch = inbox.take(10, NONE)
    assert isinstance(batch, Batch)
    assert batch.ranges == {"purchases": (40, 41)}


# Where time must stop


def test_nothing_at_or_beyond_the_stop_is_handed_out(inbox: Inbox) -> None:
    """Records before it come, of one topic and of several; then it is said at which instant the next one waits."""
    put(inbox, "purchases", 0, 1, 2, 3, 4)
    batch = inbox.take(100, NONE, until=at(3))
    assert taken(batch) == ["p1", "p2"]
    assert isinstance(batch, Batch)
    assert batch.ranges == {"purchases": (0, 2)}
    assert inbox.take(100, NONE, until=at(3)) == Beyond(at(3))
    assert inbox.take(100, NONE, until=at(2)) == Beyond(at(3))
    put(inbox, "signups", 0, 2.5, 3.5)
    assert taken(inbox.take(100, NONE, until=at(3))) == ["s2.5"]
    assert inbox.take(100, NONE, until=at(3)) == Beyond(at(3))
    assert taken(inbox.take(100, NONE, until=at(4))) == ["p3", "s3.5"]
    assert taken(inbox.take(100, NONE)) == ["p4"]
    assert inbox.take(100, NONE, until=at(3)) is None


def test_a_late_record_does_not_wait_for_the_stop(inbox: Inbox) -> None:
    """It moves no time; but one that follows the first record beyond waits behind it."""
    put(inbox, "purchases", 0, 2, 1, 5, 1.5)
    assert taken(inbox.take(100, NONE, until=at(3))) == ["p2", "p1"]
    assert inbox.take(100, NONE, until=at(3)) == Beyond(at(5))
    assert taken(inbox.take(100, NONE, until=at(6))) == ["p5", "p1.5"]


def test_the_clock_says_what_lies_beyond() -> None:
    """Under the ingestion clock it is the records' own timestamps."""
    inbox = Inbox(Clock.INGESTION)
    put(inbox, "purchases", 0, 50, 1, recorded=[1, 9])
    assert taken(inbox.take(100, NONE, until=at(3))) == ["p50"]
    assert inbox.take(100, NONE, until=at(3)) == Beyond(at(9))


def test_what_must_wait_anyhow_is_not_beyond(inbox: Inbox) -> None:
    """While an undrained topic may still deliver something earlier, time need not be stopped."""
    put(inbox, "purchases", 0, 5)
    assert inbox.take(100, frozenset({"signups"}), until=at(3)) is None
    put(inbox, "signups", 0, 2)
    assert taken(inbox.take(100, frozenset({"signups"}), until=at(3))) == ["s2"]
    assert inbox.take(100, frozenset({"signups"}), until=at(3)) is None
    put(inbox, "signups", 1, 6)
    assert inbox.take(100, frozenset({"signups"}), until=at(3)) == Beyond(at(5))


def test_nothing_unsure_is_beyond(inbox: Inbox) -> None:
    """What was produced after the horizon may still be preceded by something earlier."""
    put(inbox, "purchases", 0, 5, recorded=[10])
    assert inbox.take(100, NONE, at(9), until=at(3)) is None
    assert inbox.take(100, NONE, at(10), until=at(3)) == Beyond(at(5))


def test_refusals_do_not_wait_for_the_stop(inbox: Inbox) -> None:
    """They have no time; those before the first record beyond are handed out with what there is."""
    put(inbox, "purchases", 0, 1, BAD, 5, BAD)
    batch = inbox.take(100, NONE, until=at(3))
    assert taken(batch) == ["p1"]
    assert isinstance(batch, Batch)
    assert (batch.ranges, offsets(batch.refusals)) == ({"purchases": (0, 2)}, [("purchases", 1)])
    put(inbox, "signups", 0, BAD, BAD)
    again = inbox.take(100, NONE, until=at(3))
    assert again == Beyond(at(5)) or (isinstance(again, Batch) and again.ranges == {"signups": (0, 2)})
    assert taken(inbox.take(100, NONE, until=at(6))) == ["p5"]


def test_a_batch_is_no_larger_for_the_stop(inbox: Inbox) -> None:
    """At most so many records, whether the stop lies within them or after them."""
    put(inbox, "purchases", 0, *range(1, 9))
    put(inbox, "signups", 0, 0.5)
    assert taken(inbox.take(3, NONE, until=at(7))) == ["s0.5", "p1", "p2"]
    assert taken(inbox.take(3, NONE, until=at(4))) == ["p3"]
    assert inbox.take(3, NONE, until=at(4)) == Beyond(at(4))
