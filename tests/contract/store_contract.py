"""The contract of StateStore. Every store subclasses StoreContract and passes all of it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import orjson
import pytest

from models.activation import Activation
from models.changes import DeadLetter, SegmentChanged
from models.counts import Count
from models.errors import StateError
from models.events import ROLES, Role
from models.instants import NEVER
from models.population import SUMMARISED, Cutoffs, Distribution, Summary
from models.rows import Layout
from streams.commit import OutboxEntry, Range, ShardCommit, ShardHeader
from streams.errors import FleetMismatch, LostBatch, StaleOwner
from streams.ports import StateStore

LAYOUT = Layout("USD", {"lifecycle": ("new", "lapsed")}, ("country",))
OTHER_LAYOUT = Layout("USD", {"lifecycle": ("new", "lapsed"), "größe": ("klein", "groß")}, ())
START: dict[Role, int] = {"signups": 3, "purchases": 10, "erasures": 0}

#: Customers whose ids a careless store would mix up, cut short or refuse.
ODD_CUSTOMERS = (
    "Zoë", "Zoe\u0308", "zoë", "客户-7", "😀", "a b", " a", "a ", "a:b", "{a}", "a\r\nb", "\t", "0", "00", "1e3", "nil",
    "false", "*", "a\u0000b", "'; DROP", '"', "\\x00", "\ufeff", "\U0010ffff", "x" * 256, "ß" * 256,
)  # fmt: skip


def entry_of(number: int, token: str = "t", customer: str = "c") -> OutboxEntry:
    """An outbox entry with a change and a dead letter, as a commit would publish them."""
    change: SegmentChanged = {
        "change_id": f"{number:032x}",
        "customer_id": customer,
        "sequence": number,
        "dimension": "lifecycle",
        "from": None,
        "to": "new",
        "title": "Neu dabei",
        "channel": None,
        "viable": True,
        "model_version": None,
        "cause": "purchase",
        "event_id": f"e-{number}",
        "effective_at": "2024-01-05T09:30:00Z",
        "decided_at": "2024-01-05T09:30:00.000001Z",
        "policy_version": 1,
        "population_as_of": "2024-01-04T00:00:00Z",
        "backfill": False,
        "rfm": {"recency_days": 0, "frequency": 1, "monetary": "19.90", "currency": "USD"},
        "segments": {"lifecycle": "new", "region": None},
    }
    letter: DeadLetter = {
        "code": "invalid_json",
        "reason": "the value is not a JSON object: größer",
        "topic": "purchases",
        "partition": 0,
        "offset": number,
        "timestamp": 1_704_447_000_000,
        "key": None,
        "value": "{\u2028",
        "headers": [],
        "encoding": "utf-8",
    }
    return OutboxEntry(f"{number}-{token}", [change], [letter], [0] if number % 2 else [])


def activation_of(number: int, version: int, instant: int = 0) -> Activation:
    """An activation of a policy, or of cut-offs taken at an instant."""
    return Activation(number, "policy", version, instant, NEVER, backfill=True, cutoffs=Cutoffs(as_of=instant))


def a_summary(people: int) -> Summary:
    """Somebody's shard, told by a number."""
    distribution = Distribution.of(np.array([people, 7, 7], dtype=np.int64))
    every = dict.fromkeys(SUMMARISED, distribution)
    return Summary(every, {"lifecycle:new": (people, -people), "größe:groß": (2**40, 2**62)})


def same(found: Summary | None, expected: Summary) -> bool:
    """Whether a summary is the one expected: two are the same if they are stored alike."""
    return found is not None and found.json == expected.json


class Held(NamedTuple):
    """Everything a store shows of one shard."""

    header: ShardHeader
    rows: dict[str, bytes]
    segments: Mapping[str, Count]


class Learned(NamedTuple):
    """Everything a store shows of the learners of clusters: of two dimensions at three instants."""

    offset: int | None
    learners: Mapping[str, bytes]
    models: dict[tuple[str, int], bytes | None]


def learned(store: StateStore) -> Learned:
    """All that the store shows of learners."""
    offset, learners = store.learners()
    asked = product(("cluster", "größe:k"), (-7, 0, 2**62))
    return Learned(offset, dict(learners), {each: store.learned_model(*each) for each in asked})


#: What a store shows of learners before anything was learned.
NOTHING_LEARNED = Learned(None, {}, dict.fromkeys(product(("cluster", "größe:k"), (-7, 0, 2**62))))

#: What a store shows of a shard that nobody has touched.
NOTHING = Held(ShardHeader(), {}, {})


def commit_of(token: str, number: int, ranges: Mapping[Role, Range], **parts: Any) -> ShardCommit:
    """A commit to shard 0 with this number and these ranges; whatever ``parts`` leave out is empty."""
    rest: dict[str, Any] = {
        "shard": 0,
        "time": 1_704_447_000_000_000,
        "settled": 1_704_447_000_000_000,
        "activation": 1,
        "since": NEVER,
        "policy_version": 1,
        "layout": LAYOUT,
        "rows": (),
        "erased": (),
        "segments": {},
        "values": {},
        "entry": None,
    }
    return ShardCommit(token=token, number=number, ranges=ranges, **(rest | parts))


def put(store: StateStore, token: str, ranges: Mapping[Role, Range], shard: int = 0, **parts: Any) -> None:
    """Store the shard's next commit, made of these parts; see ``commit_of``."""
    store.commit(commit_of(token, store.header(shard).commits + 1, ranges, shard=shard, **parts))


def full_commit(token: str, ranges: Mapping[Role, Range], number: int = 2) -> ShardCommit:
    """A commit that would change everything a commit can change in a shard that ``started`` made, as its next one."""
    return commit_of(
        token,
        number,
        ranges,
        time=1_800_000_000_000_000,
        settled=1_799_000_000_000_000,
        activation=2,
        since=1_704_447_000_000_000,
        policy_version=2,
        layout=OTHER_LAYOUT,
        rows=[("kept", b"changed"), ("fresh", b"fresh")],
        erased=["doomed"],
        segments={"lifecycle:new": Count(9, 9), "lifecycle:fresh": Count(1, 1)},
        values={"country:1": "FR", "channel:0": "web"},
        entry=entry_of(2, token),
    )


def plain(header: ShardHeader) -> ShardHeader:
    """The header with its entries as a tuple, so that headers of any store can be compared."""
    return replace(header, entries=tuple(header.entries))


def rows_of(store: StateStore, shard: int = 0) -> dict[str, bytes]:
    """All rows of a shard, each customer of which must be there once."""
    every = [pair for part in store.rows(shard) for pair in part]
    rows = dict(every)
    assert len(every) == len(rows) == store.size(shard)
    return rows


def held(store: StateStore, shard: int = 0) -> Held:
    """All that the store shows of a shard."""
    return Held(plain(store.header(shard)), rows_of(store, shard), store.segments(shard))


def started(store: StateStore) -> Held:
    """Acquire shard 0 for "t", commit rows, segments, values and an outbox entry, and return what is then held."""
    store.acquire(0, "t", START, {"purchases": 40})
    put(
        store,
        "t",
        {"signups": Range(3, 5), "purchases": Range(10, 20), "erasures": Range(0, 0)},
        rows=[("kept", b"kept"), ("doomed", b"doomed")],
        segments={"lifecycle:new": Count(2, 1990), "lifecycle:lapsed": Count(0, 0)},
        values={"country:0": "DE"},
        entry=entry_of(1),
    )
    return held(store)


class StoreContract:
    """What every StateStore promises. A subclass gives the fixture ``store``, an empty one."""

    @pytest.fixture
    def store(self) -> StateStore:
        raise NotImplementedError

    # An empty store

    def test_an_unknown_shard_is_empty(self, store: StateStore) -> None:
        """A shard that nobody has acquired has an empty header, no rows and no segments."""
        assert held(store) == NOTHING
        assert store.row(0, "c") is None

    def test_acknowledging_in_an_unknown_shard_does_nothing(self, store: StateStore) -> None:
        """Acknowledging where nothing is stored is no error and leaves nothing behind."""
        store.acknowledge(0, ["1-t"])
        store.acknowledge(0, [])
        assert held(store) == NOTHING

    def test_a_commit_without_acquire_is_refused(self, store: StateStore) -> None:
        """Nobody can commit to a shard that has no owner, not even with an empty token."""
        for token in ("t", ""):
            with pytest.raises(StaleOwner):
                store.commit(full_commit(token, {}))
        assert held(store) == NOTHING

    # Acquiring

    def test_the_first_acquire_sets_the_position(self, store: StateStore) -> None:
        """On a shard with nothing stored, acquire stores the owner and the given offsets, and returns the header."""
        header = plain(store.acquire(0, "t", START, {"purchases": 40}))
        assert header == ShardHeader(offsets=START, backfill_until={"purchases": 40}, owner="t")
        assert plain(store.header(0)) == header

    def test_acquire_may_know_no_offsets(self, store: StateStore) -> None:
        """Without offsets acquire only takes the shard."""
        assert plain(store.acquire(0, "t", {}, {})) == ShardHeader(owner="t")

    def test_a_later_acquire_keeps_stored_offsets(self, store: StateStore) -> None:
        """Stored offsets are the truth: acquire changes none of them and adds only topics that have none."""
        store.acquire(0, "t", {"purchases": 10}, {})
        put(store, "t", {"purchases": Range(10, 20)})
        header = store.acquire(0, "u", {"purchases": 7, "signups": 4}, {})
        assert header.offsets == {"purchases": 20, "signups": 4}
        assert plain(header) == plain(store.header(0))

    def test_backfill_until_is_kept_from_the_first_acquire(self, store: StateStore) -> None:
        """What was history at the first start stays so; a topic that is new gets its own mark."""
        store.acquire(0, "t", START, {"purchases": 40})
        header = store.acquire(0, "u", START, {"purchases": 99, "signups": 8})
        assert header.backfill_until == {"purchases": 40, "signups": 8}
        assert store.acquire(0, "v", START, {}).backfill_until == {"purchases": 40, "signups": 8}

    def test_a_stored_zero_counts_as_stored(self, store: StateStore) -> None:
        """An offset or mark of 0 is a position like any other and is not replaced."""
        store.acquire(0, "t", {"purchases": 0}, {"purchases": 0})
        header = store.acquire(0, "u", {"purchases": 5}, {"purchases": 5})
        assert (header.offsets, header.backfill_until) == ({"purchases": 0}, {"purchases": 0})

    def test_acquire_changes_only_the_owner(self, store: StateStore) -> None:
        """Another worker finds time, layouts, values, entries, rows and segments as they were committed."""
        before = started(store)
        header = store.acquire(0, "u", {"purchases": 0}, {"purchases": 0})
        assert held(store) == before._replace(header=replace(before.header, owner="u"))
        assert plain(header) == held(store).header

    # Committing

    def test_a_commit_is_read_back_whole(self, store: StateStore) -> None:
        """After a commit the header, rows, segments, dictionary and outbox are what it said."""
        now = started(store)
        assert now.header == ShardHeader(
            offsets={"signups": 5, "purchases": 20, "erasures": 0},
            backfill_until={"purchases": 40},
            time=1_704_447_000_000_000,
            layouts={LAYOUT.id: LAYOUT},
            values={"country": ["DE"]},
            entries=(entry_of(1),),
            owner="t",
            commits=1,
            settled=1_704_447_000_000_000,
            activation=1,
            since=NEVER,
        )
        assert now.rows == {"kept": b"kept", "doomed": b"doomed"}
        assert now.segments == {"lifecycle:new": Count(2, 1990), "lifecycle:lapsed": Count(0, 0)}
        assert store.row(0, "kept") == b"kept"
        assert store.row(0, "unknown") is None

    def test_the_next_commit_adds_and_replaces(self, store: StateStore) -> None:
        """A second commit replaces the rows it names and all segments, adds what is new, and leaves the rest alone."""
        started(store)
        store.commit(full_commit("t", {"purchases": Range(20, 21)}))
        assert held(store) == (
            ShardHeader(
                offsets={"signups": 5, "purchases": 21, "erasures": 0},
                backfill_until={"purchases": 40},
                time=1_800_000_000_000_000,
                layouts={LAYOUT.id: LAYOUT, OTHER_LAYOUT.id: OTHER_LAYOUT},
                values={"country": ["DE", "FR"], "channel": ["web"]},
                entries=(entry_of(1), entry_of(2)),
                owner="t",
                commits=2,
                settled=1_799_000_000_000_000,
                activation=2,
                since=1_704_447_000_000_000,
            ),
            {"kept": b"changed", "fresh": b"fresh"},
            {"lifecycle:new": Count(9, 9), "lifecycle:fresh": Count(1, 1)},
        )

    def test_a_commit_without_ranges_moves_no_offset(self, store: StateStore) -> None:
        """What time alone has changed is committed without any topic."""
        before = started(store)
        put(store, "t", {}, rows=[("kept", b"later")])
        assert store.header(0).offsets == before.header.offsets
        assert store.row(0, "kept") == b"later"

    def test_a_commit_without_anything_still_moves_the_offsets(self, store: StateStore) -> None:
        """A batch that changed no customer is remembered as read, and puts nothing into the outbox."""
        before = started(store)
        put(store, "t", {"purchases": Range(20, 30)}, segments=before.segments)
        offsets = {**before.header.offsets, "purchases": 30}
        assert held(store) == before._replace(header=replace(before.header, offsets=offsets, commits=2))

    def test_an_empty_range_is_checked_and_kept(self, store: StateStore) -> None:
        """A topic that gave nothing may take part with an empty range at its offset."""
        before = started(store)
        put(store, "t", {"purchases": Range(20, 20), "signups": Range(5, 6)})
        assert store.header(0).offsets == {**before.header.offsets, "signups": 6}
        with pytest.raises(LostBatch):
            put(store, "t", {"purchases": Range(21, 21)})

    @pytest.mark.parametrize("time", [NEVER, -1, 0, 2**62])
    def test_any_time_is_kept(self, store: StateStore, time: int) -> None:
        """The shard's time is kept as it is, also zero, negative and the sentinels."""
        store.acquire(0, "t", START, {})
        put(store, "t", {}, time=time)
        assert store.header(0).time == time

    def test_offsets_may_be_as_large_as_kafka_has_them(self, store: StateStore) -> None:
        """Offsets are exact up to 2^63 - 1: a neighbour is not taken for equal."""
        top = 2**63 - 1
        store.acquire(0, "t", {"purchases": top - 1}, {"purchases": top})
        with pytest.raises(LostBatch):
            put(store, "t", {"purchases": Range(top - 2, top)})
        put(store, "t", {"purchases": Range(top - 1, top)})
        header = store.header(0)
        assert (header.offsets, header.backfill_until) == ({"purchases": top}, {"purchases": top})

    def test_sizes_of_segments_are_exact(self, store: StateStore) -> None:
        """Revenue is an int64 and may be negative; names may be in any script."""
        sizes = {
            "lifecycle:new": Count(0, -(2**63)),
            "größe:groß": Count(2**31, 2**63 - 1),
            "a:b:c": Count(1, 2**53 + 1),
        }
        store.acquire(0, "t", START, {})
        put(store, "t", {}, segments=sizes)
        assert store.segments(0) == sizes

    def test_segments_of_a_former_policy_vanish(self, store: StateStore) -> None:
        """The segments are those of the latest commit alone: labels and dimensions that are gone do not linger."""
        started(store)
        many = {f"former:{i}": Count(i, i) for i in range(5_000)}
        for segments in (many, {"lifecycle:new": Count(1, 5), "größe:klein": Count(1, 5)}, {"b:x": Count(0, 0)}, {}):
            put(store, "t", {}, segments=segments)
            assert store.segments(0) == segments

    def test_dictionaries_keep_the_order_of_their_codes(self, store: StateStore) -> None:
        """Texts come back by code, ten after nine, over several commits, whatever they contain."""
        texts = ["DE", "", "a:b", "größe", "DE ", "客户", "😀", "\u0000", "(other)", "nine", "ten", "eleven"]
        store.acquire(0, "t", START, {})
        for part in (range(10, 12), range(10)):
            values = {f"country:{code}": texts[code] for code in part}
            if part.start:
                values = {f"channel:{code}": str(code) for code in range(3)}
            put(store, "t", {}, values=values)
        put(store, "t", {}, values={"country:10": "ten", "country:11": "eleven"})
        assert store.header(0).values == {"channel": ["0", "1", "2"], "country": texts}

    def test_odd_customer_ids_are_kept_apart(self, store: StateStore) -> None:
        """Every customer_id is its own, to the code point: no case folding, trimming, normalising or parsing."""
        rows = {customer: f"row {i}".encode() for i, customer in enumerate(ODD_CUSTOMERS)}
        store.acquire(0, "t", START, {})
        put(store, "t", {}, rows=list(rows.items()), entry=entry_of(1, customer="客户-7"))
        assert rows_of(store) == rows
        assert {customer: store.row(0, customer) for customer in rows} == rows
        assert dict(store.rows_of(0, [*rows, "unknown"])) == rows
        assert store.rows_of(0, []) == store.rows_of(7, ["unknown"]) == []
        assert list(store.header(0).entries) == [entry_of(1, customer="客户-7")]
        gone = ODD_CUSTOMERS[::2]
        put(store, "t", {}, erased=gone)
        assert rows_of(store) == {customer: row for customer, row in rows.items() if customer not in gone}

    def test_rows_are_kept_byte_for_byte(self, store: StateStore) -> None:
        """A packed row may contain any byte."""
        rows = {
            "every": bytes(range(256)),
            "text": b"\r\n*1\r\n$4\r\n",
            "invalid": b"\xff\xfe\x80",
            "long": b"\0" * 4096,
        }
        store.acquire(0, "t", START, {})
        put(store, "t", {}, rows=list(rows.items()))
        assert rows_of(store) == rows

    def test_an_erased_customer_is_gone(self, store: StateStore) -> None:
        """Erased customers have no row any more; erasing an unknown customer is no error; they may come back."""
        started(store)
        put(store, "t", {}, erased=["doomed", "never seen"])
        assert store.row(0, "doomed") is None
        assert rows_of(store) == {"kept": b"kept"}
        put(store, "t", {}, rows=[("doomed", b"back")])
        assert rows_of(store) == {"kept": b"kept", "doomed": b"back"}

    def test_a_shard_may_become_empty_again(self, store: StateStore) -> None:
        """When all customers are erased the shard keeps its position."""
        before = started(store)
        put(store, "t", {}, erased=["doomed", "kept"])
        assert held(store) == Held(replace(before.header, commits=2), {}, {})

    def test_tens_of_thousands_of_rows_in_one_commit(self, store: StateStore) -> None:
        """One commit takes 20,000 rows, 5,000 dictionary entries and 9,001 erasures, and loses none."""
        rows = {f"customer-{i}": hashlib.sha512(b"%d" % i).digest() for i in range(20_000)}
        store.acquire(0, "t", START, {})
        put(
            store,
            "t",
            {"purchases": Range(10, 30_010)},
            rows=list(rows.items()),
            values={f"country:{code}": f"text {code}" for code in range(5_000)},
            segments={f"d:{i}": Count(i, -i) for i in range(4_001)},
        )
        assert rows_of(store) == rows
        header = store.header(0)
        assert header.values == {"country": [f"text {code}" for code in range(5_000)]}
        assert header.offsets["purchases"] == 30_010
        assert store.segments(0) == {f"d:{i}": Count(i, -i) for i in range(4_001)}
        erased = list(rows)[5_000:14_001]
        put(store, "t", {"purchases": Range(30_010, 30_011)}, erased=erased)
        gone = set(erased)
        assert rows_of(store) == {customer: row for customer, row in rows.items() if customer not in gone}

    @pytest.mark.parametrize("count", [1, 1_999, 2_000, 2_001, 4_000, 4_001])
    def test_no_row_is_lost_where_a_commit_is_cut_into_parts(self, store: StateStore, count: int) -> None:
        """Commits of any size around a store's internal portions write and erase every row."""
        rows = {f"c{i}": b"%d" % i for i in range(count)}
        store.acquire(0, "t", START, {})
        put(store, "t", {}, rows=[*rows.items(), ("last", b"last")], erased=[])
        assert rows_of(store) == {**rows, "last": b"last"}
        put(store, "t", {}, erased=list(rows))
        assert rows_of(store) == {"last": b"last"}

    # The guard

    def test_a_stale_owner_is_refused(self, store: StateStore) -> None:
        """Once another worker has acquired the shard the former owner writes nothing, not even to its old offsets."""
        started(store)
        store.acquire(0, "u", START, {})
        before = held(store)
        for ranges in ({}, {"purchases": Range(20, 30)}, {"purchases": Range(10, 20)}):
            with pytest.raises(StaleOwner):
                store.commit(full_commit("t", ranges))  # type: ignore[arg-type]
            assert held(store) == before
        store.commit(full_commit("u", {"purchases": Range(20, 30)}))
        assert store.header(0).offsets["purchases"] == 30

    @pytest.mark.parametrize("token", ["", "T", "t ", "tt"])
    def test_a_token_must_be_equal(self, store: StateStore, token: str) -> None:
        """A token that merely resembles the owner's is refused."""
        before = started(store)
        with pytest.raises(StaleOwner):
            store.commit(full_commit(token, {}))
        assert held(store) == before

    @pytest.mark.parametrize("role", ROLES)
    @pytest.mark.parametrize("shift", [-1, 1, 1000])
    def test_a_range_must_start_where_the_last_one_ended(self, store: StateStore, role: Role, shift: int) -> None:
        """An overlapping or a skipped range of any topic is refused, names the topic, and writes nothing."""
        before = started(store)
        at = before.header.offsets[role] + shift
        with pytest.raises(LostBatch, match=role):
            store.commit(full_commit("t", {role: Range(at, at + 10)}))
        assert held(store) == before

    @pytest.mark.parametrize("role", ROLES)
    @pytest.mark.parametrize("order", [ROLES, ROLES[::-1]])
    def test_one_wrong_range_among_several_refuses_all(
        self, store: StateStore, role: Role, order: Sequence[Role]
    ) -> None:
        """When the range of one topic is wrong no topic moves, whichever it is and in whatever order they come."""
        before = started(store)
        at = before.header.offsets
        ranges = {each: Range(at[each] + (each == role), at[each] + 10) for each in order}
        with pytest.raises(LostBatch, match=role):
            store.commit(full_commit("t", ranges))
        assert held(store) == before
        store.commit(full_commit("t", {each: Range(at[each], at[each] + 10) for each in order}))
        assert store.header(0).offsets == {each: at[each] + 10 for each in ROLES}

    def test_a_topic_without_a_stored_offset_is_refused(self, store: StateStore) -> None:
        """A range of a topic whose position is unknown is refused, even if it starts at 0."""
        store.acquire(0, "t", {"purchases": 10}, {})
        before = held(store)
        with pytest.raises(LostBatch, match="erasures"):
            store.commit(full_commit("t", {"purchases": Range(10, 11), "erasures": Range(0, 5)}, 1))
        assert held(store) == before

    @pytest.mark.parametrize(
        "ranges",
        [{}, {"purchases": Range(20, 20)}, {"purchases": Range(20, 30)}],
        ids=["no range", "an empty range", "records"],
    )
    def test_a_commit_that_was_sent_twice_is_written_once(
        self, store: StateStore, ranges: Mapping[Role, Range]
    ) -> None:
        """A repeated commit is refused, with records or without, even if its entry has been published meanwhile."""
        started(store)
        commit = full_commit("t", ranges)
        store.commit(commit)
        store.acknowledge(0, ["2-t"])
        before = held(store)
        with pytest.raises(LostBatch):
            store.commit(commit)
        assert held(store) == before

    @pytest.mark.parametrize("ranges", [{}, {"signups": Range(5, 5)}], ids=["no range", "an empty range"])
    def test_a_commit_that_comes_late_is_refused(self, store: StateStore, ranges: Mapping[Role, Range]) -> None:
        """A commit without records that arrives after later ones does not take the shard back."""
        started(store)
        late = full_commit("t", ranges)
        store.commit(late)
        put(store, "t", {}, rows=[("kept", b"latest")], time=1_900_000_000_000_000, activation=2)
        before = held(store)
        for number in (1, 2):
            with pytest.raises(LostBatch):
                store.commit(replace(late, number=number))
            assert held(store) == before

    @pytest.mark.parametrize("ranges", [{}, {"purchases": Range(20, 30)}], ids=["no range", "records"])
    @pytest.mark.parametrize("number", [-1, 0, 1, 3, 4, 20, 2**53])
    def test_another_number_is_refused(self, store: StateStore, number: int, ranges: Mapping[Role, Range]) -> None:
        """After one commit only number 2 may come: any other is refused, told, writes nothing and uses up none."""
        before = started(store)
        with pytest.raises(LostBatch, match=rf"\b1 commits\b.*number {number}\b"):
            store.commit(full_commit("t", ranges, number))
        assert held(store) == before
        store.commit(full_commit("t", ranges))
        assert store.header(0).commits == 2

    def test_the_first_commit_is_number_1(self, store: StateStore) -> None:
        """A shard that was acquired and never committed has no commits; its first has number 1."""
        store.acquire(0, "t", START, {})
        before = held(store)
        for number in (0, 2):
            with pytest.raises(LostBatch, match=rf"\b0 commits\b.*number {number}\b"):
                store.commit(commit_of("t", number, {}, rows=[("c", b"row")]))
            assert held(store) == before
        store.commit(commit_of("t", 1, {}, rows=[("c", b"row")]))
        assert (store.header(0).commits, rows_of(store)) == (1, {"c": b"row"})

    def test_numbers_continue_across_owners(self, store: StateStore) -> None:
        """Acquiring and acknowledging count nothing: a new owner goes on after the commits of those before it."""
        started(store)
        for number, token in enumerate("uvw" * 4, start=2):
            assert store.acquire(0, token, START, {}).commits == number - 1
            store.acknowledge(0, [f"{number - 1}-{token}"])
            with pytest.raises(LostBatch):
                store.commit(full_commit(token, {}, 1))
            store.commit(full_commit(token, {}, number))
        assert store.header(0).commits == 13

    def test_a_stale_owner_is_told_so_whatever_the_number(self, store: StateStore) -> None:
        """Who is no longer the owner is refused as that, and not because of what others have committed."""
        started(store)
        store.acquire(0, "u", START, {})
        for number in (1, 2, 3):
            with pytest.raises(StaleOwner):
                store.commit(full_commit("t", {}, number))

    # The outbox

    def test_entries_come_in_the_order_of_their_numbers(self, store: StateStore) -> None:
        """Entries are ordered by number, ten after nine, whoever wrote them and in whatever order."""
        store.acquire(0, "t", START, {})
        for number in (10, 2, 1, 100, 9):
            put(store, "t", {}, entry=entry_of(number))
        store.acquire(0, "a", START, {})
        put(store, "a", {}, entry=entry_of(11, "a"))
        entries = store.header(0).entries
        assert list(entries) == [entry_of(n, "a" if n == 11 else "t") for n in (1, 2, 9, 10, 11, 100)]

    def test_entries_are_acknowledged_by_id(self, store: StateStore) -> None:
        """Acknowledged entries are gone, others stay; unknown ids, repeats and an empty list do not matter."""
        store.acquire(0, "t", START, {})
        for number in (1, 2, 3, 12):
            put(store, "t", {}, entry=entry_of(number))
        before = held(store)
        store.acknowledge(0, [])
        store.acknowledge(0, ["4-t", "1-u", "1", "2-", "12-t "])
        assert held(store) == before
        store.acknowledge(0, ["2-t", "2-t", "99-t", "1-t"])
        store.acknowledge(0, ["2-t"])
        left = (entry_of(3), entry_of(12))
        assert held(store) == before._replace(header=replace(before.header, entries=left))

    def test_a_former_owner_may_still_acknowledge(self, store: StateStore) -> None:
        """What the broker has confirmed is published, no matter who owns the shard by then."""
        started(store)
        store.acquire(0, "u", START, {})
        store.acknowledge(0, ["1-t"])
        assert not store.header(0).entries

    def test_thousands_of_entries_are_acknowledged_at_once(self, store: StateStore) -> None:
        """A large backlog is removed in one call."""
        store.acquire(0, "t", START, {})
        for number in range(1, 201):
            put(store, "t", {}, entry=OutboxEntry(f"{number}-t", [], []))
        store.acknowledge(0, [f"{number}-t" for number in range(20_000) if number != 77])
        assert [entry.number for entry in store.header(0).entries] == [77]

    @pytest.mark.parametrize("withheld", [[], [0], [1, 3]])
    def test_what_is_withheld_is_remembered(self, store: StateStore, withheld: Sequence[int]) -> None:
        """Whoever publishes an entry that another worker has left withholds the same changes."""
        store.acquire(0, "t", START, {})
        (change,) = entry_of(1).changes
        put(store, "t", {}, entry=OutboxEntry("1-t", [change] * 4, [], withheld))
        (entry,) = store.header(0).entries
        assert list(entry.withheld) == withheld
        assert list(entry.changes) == [change] * 4

    # Activations

    def test_a_store_begins_without_activations(self, store: StateStore) -> None:
        """There is none, no policy and no population; asking for one by number is an error that names it."""
        assert store.latest_activation() == 0
        assert store.policy_text(1) is None
        assert store.population() is None
        for number in (0, 1, -1):
            with pytest.raises(StateError, match=rf"no activation {number}\b"):
                store.activation(number)

    def test_activations_are_appended_in_order(self, store: StateStore) -> None:
        """Only the next number is taken; what is refused leaves no trace, and what is stored never changes."""
        assert not store.activate(activation_of(2, 2), "two")
        assert not store.activate(activation_of(0, 1), "none")
        assert store.activate(activation_of(1, 1), "one")
        assert not store.activate(activation_of(1, 2, instant=5), "other")
        assert not store.activate(activation_of(3, 3), "three", a_summary(1))
        assert (store.latest_activation(), store.policy_text(2), store.population()) == (1, None, None)
        assert store.activate(activation_of(2, 7), "seven")
        assert store.latest_activation() == 2
        assert [store.activation(number) for number in (1, 2)] == [activation_of(1, 1), activation_of(2, 7)]
        with pytest.raises(StateError, match=r"no activation 3\b"):
            store.activation(3)

    def test_ten_activations_come_after_nine(self, store: StateStore) -> None:
        """Numbers are numbers, not texts."""
        assert all(store.activate(activation_of(number, number)) for number in range(1, 13))
        assert store.latest_activation() == 12
        assert store.activation(11).policy_version == 11

    def test_an_activation_is_read_back_whole(self, store: StateStore) -> None:
        """Every field and cut-off comes back, at the ends of their ranges too."""
        cutoffs = Cutoffs(
            2**62, {"rfm": {"recency": (0, 1, 2, 2**63 - 1), "orders": ()}, "wert": {}}, frozenset(("a:ü", "b:c"))
        )
        for number, cause in enumerate(("policy", "population"), start=1):
            made = Activation(number, cause, 2**31 - 1, -5, NEVER, number == 1, cutoffs)  # type: ignore[arg-type]
            assert store.activate(made)
            assert store.activation(number) == made

    def test_policies_are_kept_by_version(self, store: StateStore) -> None:
        """Each version's text is kept as it was; an activation of cut-offs brings none and takes none away."""
        texts = {1: "version = 1\n# größer\r\n", 5: "", 2: "\u2028 ' \\ " + "x" * 100_000}
        for number, (version, text) in enumerate(texts.items(), start=1):
            assert store.activate(activation_of(number, version), text)
        assert store.activate(activation_of(4, 2))
        assert {version: store.policy_text(version) for version in texts} == texts
        assert store.policy_text(3) is None

    def test_the_population_is_the_latest(self, store: StateStore) -> None:
        """It is kept with the instant of the cut-offs that were made of it, until the next."""

        def kept(instant: int, people: int) -> bool:
            found = store.population()
            return found is not None and found[0] == instant and same(found[1], a_summary(people))

        assert store.activate(activation_of(1, 1, instant=7), "one", a_summary(1))
        assert kept(7, 1)
        assert store.activate(activation_of(2, 2, instant=9), "two")
        assert kept(7, 1)
        assert store.activate(activation_of(3, 2, instant=11), None, a_summary(2))
        assert kept(11, 2)

    def test_a_commit_says_where_the_shard_is(self, store: StateStore) -> None:
        """Settled, activation, since and the last summary's instant are those of the last commit that said them."""
        store.acquire(0, "t", START, {})
        assert plain(store.header(0)) == ShardHeader(offsets=START, owner="t")
        put(store, "t", {}, settled=-3, activation=2, since=5, summary=(10, a_summary(1).json), forget=0)
        put(store, "t", {}, settled=NEVER, activation=2, since=2**62)
        header = store.header(0)
        assert (header.settled, header.activation, header.since, header.summarised) == (NEVER, 2, 2**62, 10)
        assert store.acquire(0, "u", {}, {}).summarised == 10

    def test_an_older_activation_is_refused(self, store: StateStore) -> None:
        """A worker that has not heard of the latest policy never overwrites labels of it, though the shard is its."""
        store.acquire(0, "t", START, {})
        put(store, "t", {"purchases": Range(10, 20)}, activation=10, rows=[("kept", b"kept")])
        before = held(store)
        for activation in (9, 2, 0):
            for ranges in ({}, {"purchases": Range(20, 30)}):
                commit = replace(full_commit("t", ranges), activation=activation)  # type: ignore[arg-type]
                with pytest.raises(StaleOwner):
                    store.commit(replace(commit, summary=(10, a_summary(1).json), forget=0))
                assert held(store) == before
                assert not store.summarised(0)
        put(store, "t", {}, activation=10)
        put(store, "t", {}, activation=11)
        assert store.header(0).activation == 11

    # Summaries

    def test_a_shard_that_was_never_summarised(self, store: StateStore) -> None:
        """Nothing is known of it at any instant."""
        store.acquire(0, "t", START, {})
        put(store, "t", {})
        assert list(store.summarised(0)) == []
        assert [store.summary(0, instant) for instant in (NEVER, 0, 2**62)] == [None] * 3

    def test_summaries_are_kept_by_instant(self, store: StateStore) -> None:
        """Each is read back whole; one of another instant is not known, and before the first nobody was there."""
        store.acquire(0, "t", START, {})
        instants = (-20, 0, 1_704_447_000_000_000)
        for people, instant in enumerate(instants):
            put(store, "t", {}, summary=(instant, a_summary(people).json))
        assert list(store.summarised(0)) == list(instants)
        assert all(same(store.summary(0, instant), a_summary(people)) for people, instant in enumerate(instants))
        assert [store.summary(0, instant) for instant in (-19, 1, 2**62)] == [None] * 3
        assert all(same(store.summary(0, instant), Summary.empty()) for instant in (-21, NEVER))
        assert list(store.summarised(1)) == []
        assert store.summary(1, 0) is None

    def test_a_summary_made_again_replaces_the_one_before(self, store: StateStore) -> None:
        """As after a rewind: the last one says how it was."""
        store.acquire(0, "t", START, {})
        for people in (1, 2):
            put(store, "t", {}, summary=(10, a_summary(people).json))
        assert list(store.summarised(0)) == [10]
        assert same(store.summary(0, 10), a_summary(2))

    def test_old_summaries_are_forgotten(self, store: StateStore) -> None:
        """Everything up to the instant goes, however many there were; before the first there was still nobody."""
        store.acquire(0, "t", START, {})
        for instant in (10, 20, 30, 35, 100):
            put(store, "t", {}, summary=(instant, a_summary(1).json), forget=instant - 90)
        assert list(store.summarised(0)) == [20, 30, 35, 100]
        put(store, "t", {}, summary=(1_000_000, a_summary(2).json), forget=35)
        assert list(store.summarised(0)) == [100, 1_000_000]
        assert [store.summary(0, instant) for instant in (10, 20, 35)] == [None] * 3
        assert same(store.summary(0, 9), Summary.empty())
        put(store, "t", {}, forget=100)
        assert list(store.summarised(0)) == [1_000_000]
        assert store.header(0).summarised == 1_000_000

    # Learners of clusters

    def test_a_store_begins_without_learners(self, store: StateStore) -> None:
        """Nothing has been read and nothing learned, also after shards have been used."""
        started(store)
        assert learned(store) == NOTHING_LEARNED

    def test_learners_are_read_back(self, store: StateStore) -> None:
        """Learners, published models and the next offset come back as they were, at the ends of their ranges too."""
        models = {("cluster", -7): b"null", ("größe:k", 2**62): b'{"version":1}', ("größe:k", 0): b"\x00\r\n"}
        store.commit_learners(None, 2**62, {"cluster": b"{}", "größe:k": bytes(range(256))}, models)
        assert learned(store) == (
            2**62,
            {"cluster": b"{}", "größe:k": bytes(range(256))},
            NOTHING_LEARNED.models | models,
        )

    def test_the_next_learning_adds_and_replaces(self, store: StateStore) -> None:
        """Learners that are named are replaced, others and all models stay, and without either the offset moves."""
        store.commit_learners(None, 0, {"cluster": b"one", "größe:k": b"one"}, {("cluster", 0): b"a"})
        store.commit_learners(0, 7, {"cluster": b"two"}, {("größe:k", 0): b"b"})
        store.commit_learners(7, 8, {}, {})
        models = NOTHING_LEARNED.models | {("cluster", 0): b"a", ("größe:k", 0): b"b"}
        assert learned(store) == (8, {"cluster": b"two", "größe:k": b"one"}, models)

    @pytest.mark.parametrize("first", [b"null", b"model"])
    def test_a_published_model_never_changes(self, store: StateStore, first: bytes) -> None:
        """What was published as of an instant stays, whoever learns it again; the rest of that commit is written."""
        store.commit_learners(None, 5, {"cluster": b"one"}, {("cluster", 0): first})
        store.commit_learners(5, 5, {"cluster": b"two"}, {("cluster", 0): b"other", ("cluster", -7): b"new"})
        models = NOTHING_LEARNED.models | {("cluster", 0): first, ("cluster", -7): b"new"}
        assert learned(store) == (5, {"cluster": b"two"}, models)

    @pytest.mark.parametrize("stored", [None, 0, 10, 2**63 - 1])
    def test_learning_from_elsewhere_is_refused(self, store: StateStore, stored: int | None) -> None:
        """Who read from another offset than the store's writes nothing and is told both: somebody else has learned."""
        if stored is not None:
            store.commit_learners(None, stored, {"cluster": b"one"}, {("cluster", 0): b"model"})
        before = learned(store)
        for start in {None, 0, 1, 9, 10, 11, 2**63 - 2, 2**63 - 1} - {stored}:
            with pytest.raises(LostBatch, match=f"begins at {start}"):
                store.commit_learners(start, 99, {"cluster": b"two", "größe:k": b"two"}, {("cluster", -7): b"two"})
            assert learned(store) == before
        store.commit_learners(stored, 99, {}, {})
        assert learned(store) == before._replace(offset=99)

    def test_learning_that_was_sent_twice_is_written_once(self, store: StateStore) -> None:
        """The second of two is refused: the offset has moved on."""
        store.commit_learners(None, 5, {"cluster": b"one"}, {})
        store.commit_learners(5, 9, {"cluster": b"two"}, {})
        with pytest.raises(LostBatch):
            store.commit_learners(5, 9, {"cluster": b"three"}, {})
        assert store.learners() == (9, {"cluster": b"two"})

    def test_learning_may_go_on_after_a_gap_or_begin_again(self, store: StateStore) -> None:
        """Where reading ended is told beside where it began, so that it may skip what is gone, or step back."""
        store.commit_learners(None, 5, {}, {})
        store.commit_learners(5, 1000, {}, {})
        store.commit_learners(1000, 3, {}, {})
        assert store.learners() == (3, {})

    def test_thousands_of_models_in_one_commit(self, store: StateStore) -> None:
        """One commit takes more models than a command takes arguments at once, and loses none."""
        models = {("cluster", instant): b"%d" % instant for instant in range(9_001)}
        store.commit_learners(None, 1, {"cluster": b"x" * 1_000_000}, models)
        assert all(store.learned_model(*each) == model for each, model in models.items())
        assert store.learners() == (1, {"cluster": b"x" * 1_000_000})

    def test_learners_and_shards_do_not_touch_each_other(self, store: StateStore) -> None:
        """Learning changes no shard, and a shard's commit no learner."""
        before = started(store)
        store.commit_learners(None, 1, {"cluster": b"one"}, {("cluster", 0): b"model"})
        assert held(store) == before
        now = learned(store)
        store.commit(full_commit("t", {}))
        assert learned(store) == now

    @pytest.mark.parametrize("draws", [(), (b'{"dimension":"k"}',), (b'{"a":[1.5,2e-7]}', b"{}")])
    def test_draws_are_remembered(self, store: StateStore, draws: Sequence[bytes]) -> None:
        """Whoever publishes an entry that another worker has left publishes its draws, too."""
        store.acquire(0, "t", START, {})
        put(store, "t", {}, entry=replace(entry_of(1), draws=draws))
        (entry,) = store.header(0).entries
        assert [orjson.loads(draw) for draw in entry.draws] == [orjson.loads(draw) for draw in draws]

    # Shards and fleets

    def test_shards_do_not_touch_each_other(self, store: StateStore) -> None:
        """Owner, position, commits, rows, segments and outbox of a shard are its own."""
        first = started(store)
        assert held(store, 1) == NOTHING
        assert held(store, 10) == NOTHING
        store.acquire(1, "u", {"purchases": 0}, {})
        with pytest.raises(StaleOwner):
            put(store, "t", {}, shard=1)
        put(store, "u", {"purchases": Range(0, 1)}, shard=1, rows=[("kept", b"other")], entry=entry_of(1))
        store.acknowledge(1, ["1-t"])
        assert held(store) == first
        assert rows_of(store, 1) == {"kept": b"other"}
        assert not store.header(1).entries
        assert store.header(1).commits == 1

    def test_a_fleet_claims_the_store_once(self, store: StateStore) -> None:
        """The first fleet claims the store, and may say so again at every start."""
        assert store.partitions() is None
        store.register(4, "segmenter")
        store.register(4, "segmenter")
        assert store.partitions() == 4

    def test_another_partition_count_is_refused(self, store: StateStore) -> None:
        """Topics with other partitions would put customers elsewhere: refused, naming the stored number."""
        store.register(4, "segmenter")
        for partitions in (3, 5, 40):
            with pytest.raises(FleetMismatch, match=r"\b4\b"):
                store.register(partitions, "segmenter")
        assert store.partitions() == 4
        store.register(4, "segmenter")

    def test_another_group_is_refused(self, store: StateStore) -> None:
        """Two fleets cannot share a store: the second is refused, naming the first."""
        store.register(4, "größe 1")
        with pytest.raises(FleetMismatch, match="größe 1"):
            store.register(4, "b")
        with pytest.raises(FleetMismatch):
            store.register(5, "b")
        store.register(4, "größe 1")
        assert store.partitions() == 4

    def test_another_kafka_cluster_is_refused(self, store: StateStore) -> None:
        """Offsets of one cluster mean other records on another; a cluster that is not known is not compared."""
        store.register(4, "segmenter")
        store.register(4, "segmenter", "north")
        with pytest.raises(FleetMismatch):
            store.register(4, "segmenter", "south")
        store.register(4, "segmenter", "north")
        store.register(4, "segmenter")
