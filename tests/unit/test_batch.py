"""EventBatch: raw records to columns, refusals with their code, and rounds."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import xxhash

from models.batch import EventBatch, Reader, Refusal, merge_order, read, rounds
from models.events import Kind, Role
from models.instants import FOREVER
from models.policy import Policy
from tests.unit.build import DAY, LATER, Event, Rec, at, erasure, make_policy, purchase, record, refund, signup, tick

POLICY = make_policy(rates={"EUR": "1.5"})
READER = Reader(POLICY, partition=0, partitions=1, latest=FOREVER)
GOOD = purchase("a", "e1", at(0), "12.34")


def read_events(*events: Event, role: Role = "purchases", reader: Reader = READER) -> tuple[EventBatch, list[Refusal]]:
    """The events as one fetch."""
    return read(role, [record(event, offset) for offset, event in enumerate(events)], reader)


def refusal_of(event: Event | bytes | None, role: Role = "purchases", **more: Any) -> Refusal:
    """The refusal of one record between two good ones, which must not be disturbed."""
    value = json.dumps(event).encode() if isinstance(event, dict) else event
    bad = Rec(value, **{"key": b"a", **more})
    neighbour = GOOD if role == "purchases" else signup("a", "e1", at(0))
    if role == "erasures":
        neighbour = erasure("a", "e1", at(0))
    first, last = record(neighbour, 7), record({**neighbour, "event_id": "e2"}, 9)
    batch, refusals = read(role, [first, bad._replace(offset=8), last], READER)
    assert batch.event_id == ["e1", "e2"]
    assert batch.offset.tolist() == [7, 9]
    assert batch.record == [first, last]
    (refusal,) = refusals
    assert refusal.role == role
    assert refusal.record == bad._replace(offset=8)
    assert refusal.reason
    return refusal


def without(name: str) -> Event:
    """A good purchase that lacks a field."""
    return {key: value for key, value in GOOD.items() if key != name}


def test_columns_say_what_the_events_say() -> None:
    """Each kind of event becomes one row: instants, minor units, hashed id, kept attributes, and the record itself."""
    events = [
        purchase("a", "e1", at(0), "12.34", country="DE", channel="online"),
        refund("b", "e2", at(1, 5), "2", currency="EUR"),
        tick(at(2)),
    ]
    records = [
        record(event, offset, 1_704_500_000_000 + offset) for offset, event in zip((3, 4, 8), events, strict=True)
    ]
    batch, refusals = read("purchases", records, READER)
    assert refusals == []
    assert len(batch) == 3
    assert batch.rank.tolist() == [1, 1, 1]
    assert batch.offset.tolist() == [3, 4, 8]
    assert batch.recorded_at.tolist() == [1_704_500_000_003_000, 1_704_500_000_004_000, 1_704_500_000_008_000]
    assert batch.occurred_at.tolist() == [at(0), at(1, 5), at(2)]
    assert batch.kind.tolist() == [Kind.PURCHASE, Kind.REFUND, Kind.TICK]
    assert batch.amount.tolist() == [1234, 300, 0]
    assert batch.customer == ["a", "b", ""]
    assert batch.event_id == ["e1", "e2", ""]
    assert batch.event_hash.tolist()[:2] == [xxhash.xxh3_64_intdigest(each) for each in (b"e1", b"e2")]
    assert batch.record == records
    assert batch.attributes == {"country": ["DE", None, None], "channel": ["online", None, None]}


def test_signups_and_erasures_need_not_say_their_kind() -> None:
    """On their own topics signups and erasures are what they are, with or without a kind."""
    for role, build, kind in (("signups", signup, Kind.SIGNUP), ("erasures", erasure, Kind.ERASURE)):
        event = build("a", "e1", at(0))
        batch, refusals = read(role, [record(event), record({**event, "kind": kind.name.lower()}, 1)], READER)  # type: ignore[arg-type]
        assert refusals == []
        assert batch.kind.tolist() == [kind, kind]
        assert batch.amount.tolist() == [0, 0]
        assert batch.rank.tolist() == [["signups", "purchases", "erasures"].index(role)] * 2


@pytest.mark.parametrize(
    "value",
    [
        b"", b"{", b"\xff\xfe", b"null", b"5", b'"text"', b"[]", b"not json", b'{"kind":"purchase"', b"\x00" * 8,
        json.dumps(GOOD).encode() + b"," + json.dumps(GOOD).encode(), json.dumps(GOOD).encode() + b"x",
        json.dumps(GOOD).replace('"a"', '"\\ud800"').encode(), b'{"a":' * 10_000,
    ],
)  # fmt: skip
@pytest.mark.parametrize("role", ["purchases", "signups", "erasures"])
def test_invalid_json(value: bytes, role: Role) -> None:
    """A value that is not one JSON object is refused as invalid_json."""
    refusal = refusal_of(value, role)
    assert refusal.code == "invalid_json"
    assert refusal.reason.startswith("the value is not a JSON object: ")


@pytest.mark.parametrize("name", ["event_id", "customer_id", "order_id", "occurred_at", "amount", "currency"])
def test_missing_field(name: str) -> None:
    """A required field that is absent or null is refused as missing_field, and named."""
    for event, what in ((without(name), "missing"), ({**GOOD, name: None}, "null")):
        refusal = refusal_of(event)
        assert (refusal.code, refusal.reason) == ("missing_field", f"{name}: is {what}, and required")


@pytest.mark.parametrize("name", ["event_id", "customer_id", "occurred_at"])
@pytest.mark.parametrize("role", ["signups", "erasures"])
def test_missing_field_of_signups_and_erasures(name: str, role: Role) -> None:
    """Signups and erasures need an id, a customer and an instant, and a tick its instant."""
    event = {key: value for key, value in signup("a", "e9", at(0)).items() if key not in ("kind", name)}
    refusal = refusal_of(event, role)
    assert (refusal.code, refusal.reason) == ("missing_field", f"{name}: is missing, and required")
    assert refusal_of({"kind": "tick"}).reason == "occurred_at: is missing, and required"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "sale"), ("event_id", ""), ("event_id", "x" * 257), ("event_id", 17), ("customer_id", ""),
        ("customer_id", "x" * 257), ("customer_id", "a\u0000b"), ("customer_id", 17), ("order_id", ""),
        ("occurred_at", "yesterday"), ("occurred_at", "2024-01-01T00:00:00"), ("occurred_at", 1_704_067_200),
        ("occurred_at", "2024-02-30T00:00:00Z"), ("occurred_at", "2024-01-01T00:00:00+24:00"),
        ("occurred_at", "2024-01-01T00:00:00Z\n"), ("amount", "-1.00"), ("amount", -1), ("amount", "+1"),
        ("amount", "1e3"), ("amount", "1,00"), ("amount", ""), ("amount", " 1"), ("amount", "1."), ("amount", ".5"),
        ("amount", "NaN"), ("amount", "12345678901234"), ("amount", 1e20), ("amount", 0.1 + 0.2), ("amount", True),
        ("amount", "1.0000000"), ("amount", "١"), ("amount", {}), ("currency", "usd"), ("currency", "USDT"),
        ("currency", "US"), ("currency", 840), ("country", ""), ("country", 49), ("country", "x" * 257),
        ("attributes", {"a": []}), ("attributes", {"a": {"b": 1}}),
    ],
)  # fmt: skip
def test_invalid_field(name: str, value: Any) -> None:
    """A field of the wrong type, shape or length is refused as invalid_field, and the reason begins with its name."""
    refusal = refusal_of({**GOOD, name: value})
    assert refusal.code == "invalid_field"
    assert refusal.reason.startswith(name)
    assert ": " in refusal.reason


@pytest.mark.parametrize("attributes", [[], "x", 5])
@pytest.mark.parametrize("role", ["purchases", "signups"])
def test_attributes_must_be_an_object(attributes: Any, role: Role) -> None:
    """Attributes that are no object are a wrong field of a value that is JSON."""
    event = GOOD if role == "purchases" else signup("a", "e9", at(0))
    refusal = refusal_of({**event, "attributes": attributes}, role)
    assert refusal.code == "invalid_field"
    assert refusal.reason.startswith("attributes: ")


def test_a_kind_belongs_on_its_topic() -> None:
    """A purchase on the signups topic, or a signup among the purchases, is refused for its kind."""
    assert refusal_of(GOOD, "signups").reason == "kind: must be 'signup'"
    assert refusal_of(signup("a", "e9", at(0)), "erasures").reason == "kind: must be 'erasure'"
    assert refusal_of({**GOOD, "kind": "signup"}).code == "invalid_field"
    assert refusal_of({**GOOD, "kind": "signup"}).reason.startswith("kind: ")


@pytest.mark.parametrize("event", [without("kind"), {**GOOD, "kind": None}])
def test_missing_kind(event: Event) -> None:
    """On the purchases topic the kind is required like any other field."""
    refusal = refusal_of(event)
    assert refusal.code == "missing_field"
    assert refusal.reason.startswith("kind: ")


@pytest.mark.parametrize("key", [None, b"", b"b", b"A", b"a ", b"\xff"])
def test_wrong_key(key: bytes | None) -> None:
    """A key that is not the customer_id in UTF-8, or no key, is refused as wrong_key."""
    assert refusal_of(GOOD, key=key).code == "wrong_key"
    assert refusal_of(signup("a", "e9", at(0)), "signups", key=key).code == "wrong_key"


def test_keys_are_utf8() -> None:
    """A customer_id beyond ASCII is keyed by its UTF-8 bytes."""
    batch, refusals = read_events(purchase("żółw-客户", "e1", at(0)))
    assert refusals == []
    assert batch.customer == ["żółw-客户"]


def test_wrong_partition() -> None:
    """A record that Kafka's own partitioner would have put elsewhere is refused; the reason says where it belongs."""
    event = purchase("foobar", "e1", at(0))  # murmur2: 0x50E4B44E & 0x7FFFFFFF = 1357151166 ≡ 2 of 4
    for partition in range(4):
        batch, refusals = read_events(event, reader=Reader(POLICY, partition, 4, FOREVER))
        if partition == 2:
            assert (len(batch), refusals) == (1, [])
        else:
            assert len(batch) == 0
            assert refusals[0].code == "wrong_partition"
            assert "partition 2 of 4" in refusals[0].reason
            assert "murmur2_random" in refusals[0].reason


def test_a_tick_needs_no_key_and_belongs_on_every_partition() -> None:
    """Ticks are accepted wherever they are found, with any key or none."""
    for partition in range(4):
        batch, refusals = read(
            "purchases", [Rec(json.dumps(tick(at(0))).encode(), b"x")], Reader(POLICY, partition, 4, FOREVER)
        )
        assert (batch.kind.tolist(), refusals) == ([Kind.TICK], [])


@pytest.mark.parametrize("event", [GOOD, tick(at(0))])
def test_occurred_ahead(event: Event) -> None:
    """An event as far ahead of its record as the allowed skew is accepted, a millisecond more is refused."""
    latest_allowed = at(0) // 1000 - 300_000
    batch, refusals = read("purchases", [record(event, timestamp=latest_allowed)], READER)
    assert (len(batch), refusals) == (1, [])
    refusal = refusal_of(event, timestamp=latest_allowed - 1)
    assert refusal.code == "occurred_ahead"
    assert "2023-12-31T23:54:59.999000Z" in refusal.reason


def test_recorded_ahead() -> None:
    """A record stamped after the latest instant allowed is refused, one stamped at it is accepted."""
    reader = Reader(POLICY, 0, 1, latest=LATER * 1000)
    batch, refusals = read("purchases", [record(GOOD, 0, LATER), record(GOOD, 1, LATER + 1)], reader)
    assert batch.offset.tolist() == [0]
    assert [(refusal.code, refusal.record.offset) for refusal in refusals] == [("recorded_ahead", 1)]


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"currency": "SEK"}, "unknown_currency"),
        ({"amount": "1.005"}, "too_many_decimals"),
        ({"amount": 1.005}, "too_many_decimals"),
        ({"amount": "9999999999999.99", "currency": "EUR"}, "amount_too_large"),
    ],
)
def test_unusable_amounts(more: Event, code: str) -> None:
    """An amount that cannot be counted in the base currency is refused for the reason that money gives."""
    assert refusal_of({**GOOD, **more}).code == code


@pytest.mark.parametrize("role", ["purchases", "signups", "erasures"])
def test_empty_value(role: Role) -> None:
    """A tombstone is refused as empty_value, and the reason says how to forget a customer."""
    refusal = refusal_of(None, role)
    assert refusal.code == "empty_value"
    assert "erasure" in refusal.reason


@pytest.mark.parametrize(
    ("amount", "cents"),
    [(0, 0), (5, 500), (5.5, 550), (0.01, 1), (0.07, 7), (19.99, 1999), (1e3, 100_000),
     (1234567890.12, 123_456_789_012), (1234567890123.45, 123_456_789_012_345), ("0.070", 7)],
)  # fmt: skip
def test_amounts_may_be_json_numbers(amount: Any, cents: int) -> None:
    """A JSON number is the amount its digits say, exactly."""
    batch, refusals = read_events({**GOOD, "amount": amount})
    assert (batch.amount.tolist(), refusals) == ([cents], [])


def test_unknown_fields_are_ignored() -> None:
    """Fields that no event has are accepted, kept by nobody, and do not become attributes."""
    more = {"loyalty": {"tier": 3}, "basket": [1, 2], "note": None, "category": "home"}
    policy = make_policy(keep=["loyalty", "note", "category"])
    batch, refusals = read_events({**GOOD, **more}, reader=Reader(policy, 0, 1, FOREVER))
    assert refusals == []
    assert batch.attributes == {"loyalty": [None], "note": [None], "category": ["home"]}


def test_optional_fields_may_be_null() -> None:
    """An optional field that is null is as good as absent."""
    nulls = dict.fromkeys(("country", "channel", "category", "attributes"))
    batch, refusals = read_events({**GOOD, **nulls}, {**GOOD, "attributes": {"country": None}})
    assert refusals == []
    assert batch.attributes == {"country": [None, None], "channel": [None, None]}
    batch, refusals = read_events({**signup("a", "e1", at(0)), **dict.fromkeys(nulls)}, role="signups")
    assert (len(batch), refusals) == (1, [])


def test_attributes_are_kept_as_text() -> None:
    """A kept attribute is a field of the event, or else one of its free attributes, as text; empty text is none."""
    policy = make_policy(keep=["country", "vip", "age", "score", "mood"])
    batch, refusals = read_events(
        {**GOOD, "country": "DE", "attributes": {"country": "FR", "vip": True, "age": 41, "score": 1.5, "mood": ""}},
        {**GOOD, "attributes": {"country": "FR", "vip": False, "age": 10**30, "other": "x"}},
        reader=Reader(policy, 0, 1, FOREVER),
    )
    assert refusals == []
    assert batch.attributes == {
        "country": ["DE", "FR"],
        "vip": ["true", "false"],
        "age": ["41", str(10**30)],
        "score": ["1.5", None],
        "mood": [None, None],
    }


def test_no_event_has_the_hash_of_an_empty_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """0 marks an empty place among the remembered ids, so an id that hashes to 0 is told apart from it."""
    monkeypatch.setattr("models.batch.xxhash.xxh3_64_intdigest", lambda _: 0)
    batch, _ = read_events(GOOD)
    assert batch.event_hash.tolist() == [1]


def test_no_records_are_an_empty_batch() -> None:
    """A fetch of nothing is an empty batch with all its columns."""
    for role in ("signups", "purchases", "erasures"):
        batch, refusals = read(role, [], READER)
        assert (len(batch), refusals) == (0, [])
        assert batch.attributes == {"country": [], "channel": []}


def all_bad_records() -> list[Rec]:
    """One record for each reason to refuse."""
    return [
        Rec(b"{", b"a"),
        Rec(json.dumps(without("amount")).encode(), b"a"),
        Rec(json.dumps({**GOOD, "amount": "-1"}).encode(), b"a"),
        Rec(json.dumps(GOOD).encode(), b"b"),
        Rec(json.dumps(GOOD).encode(), b"a", 0, 0),
        Rec(json.dumps(GOOD).encode(), b"a", 0, LATER + 1),
        Rec(json.dumps({**GOOD, "currency": "SEK"}).encode(), b"a"),
        Rec(json.dumps({**GOOD, "amount": "0.001"}).encode(), b"a"),
        Rec(json.dumps({**GOOD, "amount": "9999999999999", "currency": "EUR"}).encode(), b"a"),
        Rec(None, b"a"),
        Rec(json.dumps({**GOOD, "occurred_at": "2024-02-30T00:00:00Z"}).encode(), b"a"),
    ]


def test_each_bad_record_is_refused_for_its_own_reason() -> None:
    """In one fetch with a record for every reason, each gets its code, in order, and all good ones stay."""
    good = [purchase("a", f"g{i}", at(i), str(i), country="DE") for i in range(12)]
    records: list[Rec] = []
    for i, event in enumerate(good):
        records.append(record(event, len(records)))
        if i < len(all_bad_records()):
            records.append(all_bad_records()[i]._replace(offset=len(records)))
    batch, refusals = read("purchases", records, Reader(POLICY, 0, 1, LATER * 1000))
    assert batch.event_id == [f"g{i}" for i in range(12)]
    assert batch.amount.tolist() == [100 * i for i in range(12)]
    assert [refusal.code for refusal in refusals] == [
        "invalid_json", "missing_field", "invalid_field", "wrong_key", "occurred_ahead", "recorded_ahead",
        "unknown_currency", "too_many_decimals", "amount_too_large", "empty_value", "invalid_field",
    ]  # fmt: skip
    assert [refusal.record for refusal in refusals] == records[1:-1:2]


def same(one: EventBatch, other: EventBatch) -> None:
    """Both batches have the same columns, of the same types."""
    for name in ("rank", "offset", "recorded_at", "occurred_at", "kind", "amount", "event_hash"):
        left, right = getattr(one, name), getattr(other, name)
        assert left.dtype == right.dtype, name
        assert left.tolist() == right.tolist(), name
    for name in ("customer", "event_id", "record", "attributes"):
        assert getattr(one, name) == getattr(other, name), name


@pytest.mark.parametrize("role", ["purchases", "signups", "erasures"])
def test_both_paths_give_the_same_columns(role: Role) -> None:
    """What is good is read the same, whether its fetch has something wrong in it or not."""
    amounts: Sequence[Any] = ["1", "12.34", "0.07", 5, 19.99, "9999999999999.99", "2.500", "1234567890123.45"]
    builders = {
        "purchases": [
            *(purchase("a", f"p{i}", at(i), amount, country="DE") for i, amount in enumerate(amounts)),
            refund("b", "r", at(3), "7", currency="EUR", attributes={"channel": "store"}),
            tick(at(4)),
        ],
        "signups": [signup(c, f"s-{c}", at(0, 1), attributes={"country": c}) for c in "abc"],
        "erasures": [erasure(c, f"x-{c}", at(0, 1)) for c in "abc"],
    }
    records = [record(event, offset) for offset, event in enumerate(builders[role])]
    fast, none = read(role, records, READER)
    slow, refusals = read(role, [*records, Rec(b"{", b"a", len(records))], READER)
    assert none == []
    assert [refusal.code for refusal in refusals] == ["invalid_json"]
    same(fast, slow)
    misplaced, refusals = read(role, [Rec(records[0].value, b"?", 99), *records], READER)
    assert [refusal.code for refusal in refusals] == ["wrong_key"]
    same(fast, misplaced)


def test_take_and_concat_are_rows() -> None:
    """take() gives the rows asked for, in that order; concat() puts batches behind each other."""
    whole, _ = read_events(*(purchase(c, f"e-{c}", at(i), str(i), country=c) for i, c in enumerate("abcd")))
    part = whole.take(np.array([2, 0]))
    assert part.customer == ["c", "a"]
    assert part.amount.tolist() == [200, 0]
    assert part.attributes == {"country": ["c", "a"], "channel": [None, None]}
    same(EventBatch.concat([whole.take(np.array([0, 1])), whole.take(np.array([2, 3]))]), whole)
    assert EventBatch.concat([whole]) is whole


def test_merge_order_is_instant_then_role_then_offset() -> None:
    """At one instant a signup comes first, an erasure last; a late record follows the one before it on its topic."""
    signups, _ = read_events(*(signup(c, f"s-{c}", at(day)) for c, day in (("a", 1), ("b", 3))), role="signups")
    bought, _ = read_events(*(purchase("a", f"p{i}", at(day)) for i, day in enumerate((1, 2, 0, 3))))
    erased, _ = read_events(erasure("a", "x", at(1)), role="erasures")
    batches = [signups, bought, erased]
    order = merge_order(batches, [batch.occurred_at for batch in batches])
    merged = EventBatch.concat(batches).take(order)
    assert merged.event_id == ["s-a", "p0", "x", "p1", "p2", "s-b", "p3"]


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([], []),
        ([5], [[0]]),
        ([5, 3, 9], [[0, 1, 2]]),
        ([5, 5, 5], [[0], [1], [2]]),
        ([5, 3, 5, 9, 3, 5], [[0, 1, 3], [2, 4], [5]]),
    ],
)
def test_rounds(rows: list[int], parts: list[list[int]]) -> None:
    """A round has each row at most once, in offset order; the nth occurrence of a row is in the nth round."""
    assert [part.tolist() for part in rounds(np.array(rows, dtype=np.int64))] == parts


def test_a_policy_decides_what_is_kept() -> None:
    """A policy that keeps no attributes has batches without any."""
    policy: Policy = make_policy(keep=[])
    batch, _ = read_events({**GOOD, "country": "DE"}, reader=Reader(policy, 0, 1, FOREVER))
    assert batch.attributes == {}
    assert batch.occurred_at.tolist() == [at(1) - DAY]
