"""EventBatch: raw records to columns, refusals with their code, and rounds."""

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pytest
import xxhash

from models import records as records_module
from models.batch import EventBatch, Refusal, Texts, merge_order, rounds
from models.events import Kind, Role
from models.instants import FOREVER
from models.policy import Policy
from models.records import Reader, read
from tests.unit.build import (
    DAY,
    LATER,
    Event,
    Rec,
    at,
    erasure,
    make_policy,
    profile,
    purchase,
    record,
    refund,
    signup,
    survey,
    texts_of,
    tick,
)

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
    assert texts_of(batch) == {"country": ["DE", None, None], "channel": ["online", None, None]}


def test_signups_profiles_and_surveys_share_a_topic() -> None:
    """Each kind of a customer's own words is a row of one batch; only a survey has a score, in hundredths."""
    policy = make_policy(keep=["channel", "family"], numbers=["income"])
    batch, refusals = read_events(
        signup("a", "e1", at(0), channel="web"),
        profile("b", "e2", at(1), channel="store", attributes={"family": "single", "income": 42_000}),
        survey("c", "e3", at(2), "4.5"),
        role="signups", reader=Reader(policy, 0, 1, FOREVER),
    )  # fmt: skip
    assert refusals == []
    assert batch.kind.tolist() == [Kind.SIGNUP, Kind.PROFILE, Kind.SURVEY]
    assert batch.rank.tolist() == [0, 0, 0]
    assert batch.customer == ["a", "b", "c"]
    assert batch.occurred_at.tolist() == [at(0), at(1), at(2)]
    assert batch.score.tolist() == [0, 0, 450]
    assert texts_of(batch) == {"channel": ["web", "store", None], "family": [None, "single", None]}
    np.testing.assert_array_equal(batch.numbers["income"], [np.nan, 42_000, np.nan])


@pytest.mark.parametrize(
    ("score", "hundredths"),
    [(0, 0), (5, 500), (100, 10_000), (4.35, 435), (0.07, 7), (57.29, 5729), (1e2, 10_000), ("0", 0), ("100", 10_000),
     ("100.00", 10_000), ("99.99", 9999), ("4.5", 450), ("05", 500)],
)  # fmt: skip
def test_scores_are_exact(score: Any, hundredths: int) -> None:
    """A number or a decimal text from 0 to 100 is the score its digits say."""
    batch, refusals = read_events(survey("a", "e1", at(0), score), role="signups")
    assert (batch.score.tolist(), batch.score.dtype, refusals) == ([hundredths], np.dtype(np.int64), [])


@pytest.mark.parametrize(
    "score",
    [
        -1,
        101,
        100.01,
        0.001,
        4.333,
        True,
        [],
        "",
        " 5",
        "5 ",
        "-5",
        "+5",
        "5.",
        ".5",
        "100.5",
        "101",
        "NaN",
        "1e1",
        "٥",
    ],
)
def test_scores_out_of_range_are_refused(score: Any) -> None:
    """A score that is no number from 0 to 100 with at most 2 decimals is refused, and named."""
    refusal = refusal_of(survey("a", "e9", at(0), score), "signups")
    assert refusal.code == "invalid_field"
    assert refusal.reason.startswith("score: ")


@pytest.mark.parametrize("build", [signup, profile, survey])
@pytest.mark.parametrize("name", ["event_id", "customer_id", "occurred_at"])
def test_missing_field_of_each_kind_on_signups(build: Any, name: str) -> None:
    """A refusal names the field, not the kind that was looked for, as among the purchases."""
    event = build("a", "e9", at(0))
    lacking = {key: value for key, value in event.items() if key != name}
    for bad, what in ((lacking, "missing"), ({**event, name: None}, "null")):
        refusal = refusal_of(bad, "signups")
        assert (refusal.code, refusal.reason) == ("missing_field", f"{name}: is {what}, and required")
    refusal = refusal_of({**event, name: 17}, "signups")
    assert (refusal.code, refusal.reason) == ("invalid_field", f"{name}: must be a valid string")


def test_a_survey_needs_its_score() -> None:
    """A survey without one is refused for it."""
    event = {key: value for key, value in survey("a", "e9", at(0)).items() if key != "score"}
    refusal = refusal_of(event, "signups")
    assert (refusal.code, refusal.reason) == ("missing_field", "score: is missing, and required")


@pytest.mark.parametrize(
    "kind", ["purchase", "erasure", "tick", "Signup", "", "\x00", None, 5, True, [], {}, ["profile"]]
)
def test_unknown_kind_on_signups(kind: Any) -> None:
    """A kind, if there is one, must be one of three."""
    refusal = refusal_of({**signup("a", "e9", at(0)), "kind": kind}, "signups")
    assert refusal.code == "invalid_field"
    assert refusal.reason == "kind: is unknown here; it must be signup, profile or survey"


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
    refusal = refusal_of(GOOD, "signups")
    assert refusal.code == "invalid_field"
    assert refusal.reason == "kind: is unknown here; it must be signup, profile or survey"
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


def test_the_broker_is_never_ahead() -> None:
    """What a broker has stamped is accepted even by a worker whose own clock is far behind."""
    reader = Reader(POLICY, 0, 1, latest=0)
    batch, refusals = read("purchases", [record(GOOD)._replace(timestamp_type=1)], reader)
    assert (len(batch), refusals) == (1, [])


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
    assert texts_of(batch) == {"loyalty": [None], "note": [None], "category": ["home"]}


def test_optional_fields_may_be_null() -> None:
    """An optional field that is null is as good as absent."""
    nulls = dict.fromkeys(("country", "channel", "category", "attributes"))
    batch, refusals = read_events({**GOOD, **nulls}, {**GOOD, "attributes": {"country": None}})
    assert refusals == []
    assert texts_of(batch) == {"country": [None, None], "channel": [None, None]}
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
    assert texts_of(batch) == {
        "country": ["DE", "FR"],
        "vip": ["true", "false"],
        "age": ["41", str(10**30)],
        "score": ["1.5", None],
        "mood": [None, None],
    }


def test_a_score_is_no_attribute() -> None:
    """Of an event's own fields only country, channel and category are attributes."""
    policy = make_policy(keep=["country", "score"], numbers=["points"])
    batch, _ = read_events(survey("a", "e1", at(0), 5, points=7), role="signups", reader=Reader(policy, 0, 1, FOREVER))
    assert texts_of(batch) == {"country": [None], "score": [None]}
    np.testing.assert_array_equal(batch.numbers["points"], [np.nan])


def test_texts_that_are_tallied_are_read() -> None:
    """What a dominant dimension counts is there, kept or not, and once."""
    dominant = """
    [dimensions.{name}]
    engine = "dominant"
    of = "{of}"
    groups = {{ home = ["home"] }}
    """
    more = "".join(
        dominant.format(name=name, of=of) for name, of in (("a", "category"), ("b", "channel"), ("c", "mood"))
    )
    policy = make_policy(keep=["mood", "channel"], more=more)
    event = purchase("a", "e1", at(0), category="home", channel="store", country="DE", attributes={"mood": "good"})
    batch, _ = read_events(event, reader=Reader(policy, 0, 1, FOREVER))
    assert texts_of(batch) == {"mood": ["good"], "channel": ["store"], "category": ["home"]}


NUMERIC = make_policy(numbers=["income", "birth_year"])


@pytest.mark.parametrize(
    ("value", "number"),
    [(42_000, 42_000.0), (1.5, 1.5), (-3, -3.0), (0, 0.0), ("1980", 1980.0), ("-0.25", -0.25), ("1e3", 1000.0),
     (1e15, 1e15), (-(10**15), -1e15), ("1E+15", 1e15), ("007", 7.0), (None, None), ("", None)],
)  # fmt: skip
@pytest.mark.parametrize("build", [signup, profile, purchase, refund])
def test_numbers(build: Any, value: Any, number: float | None) -> None:
    """A number, or a text that is one, is kept as a number, from any event that carries attributes."""
    role: Role = "signups" if build in (signup, profile) else "purchases"
    events = [build("a", "e1", at(0)), build("a", "e2", at(0), attributes={"income": value, "x": "y"})]
    batch, refusals = read_events(*events, role=role, reader=Reader(NUMERIC, 0, 1, FOREVER))
    assert refusals == []
    assert list(batch.numbers) == ["income", "birth_year"]
    np.testing.assert_array_equal(batch.numbers["income"], [np.nan, np.nan if number is None else number])
    np.testing.assert_array_equal(batch.numbers["birth_year"], [np.nan, np.nan])
    assert batch.numbers["income"].dtype == np.float64


def test_there_is_one_zero() -> None:
    """Equal numbers are the same bits, so that the order of events cannot show."""
    events = [profile("a", f"e{i}", at(0), attributes={"income": zero}) for i, zero in enumerate((-0.0, "-0", 0))]
    batch, _ = read_events(*events, role="signups", reader=Reader(NUMERIC, 0, 1, FOREVER))
    assert not np.signbit(batch.numbers["income"]).any()


@pytest.mark.parametrize(
    "value",
    ["abc", "1,5", " 1", "1 ", "1_000", "0x10", "nan", "inf", "-Infinity", "1e400", "٣", "+5", ".5", "5.", "1e16",
     "1\n", True, False, 1e15 + 1, -(10**15) - 1, 10**400, float("nan"), float("inf"), float("-inf")],
)  # fmt: skip
def test_what_is_no_number_is_refused_where_one_is_kept(value: Any) -> None:
    """It is refused by name where the policy wants a number, and is a text or nothing where it does not."""
    event = signup("a", "e1", at(0), attributes={"income": value})
    good = signup("a", "e2", at(0), attributes={"income": 5})
    batch, (refusal,) = read_events(event, good, role="signups", reader=Reader(NUMERIC, 0, 1, FOREVER))
    assert refusal.code == "invalid_field"
    assert refusal.reason.startswith("attributes.income: must be a number")
    assert batch.event_id == ["e2"]
    assert batch.numbers["income"].tolist() == [5]
    batch, refusals = read_events(event, good, role="signups")
    assert (len(batch), refusals) == (2, [])


def test_no_event_has_the_hash_of_an_empty_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """0 marks an empty place among the remembered ids, so an id that hashes to 0 is told apart from it."""
    monkeypatch.setattr("models.hashes.xxhash.xxh3_64_intdigest", lambda _: 0)
    batch, _ = read_events(GOOD)
    assert batch.event_hash.tolist() == [1]


def test_no_records_are_an_empty_batch() -> None:
    """A fetch of nothing is an empty batch with all its columns."""
    for role in ("signups", "purchases", "erasures"):
        batch, refusals = read(role, [], READER)
        assert (len(batch), refusals) == (0, [])
        assert texts_of(batch) == {"country": [], "channel": []}
        batch, refusals = read(role, [], Reader(NUMERIC, 0, 1, FOREVER))
        assert [column.tolist() for column in batch.numbers.values()] == [[], []]


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


def test_purchases_do_not_pay_for_what_is_refused_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """What any producer may send now and then is left out; the rest of its fetch is not looked at one by one."""
    monkeypatch.setattr(records_module, "_read_one_by_one", None)
    bad = [each for each in all_bad_records() if b"02-30" not in (each.value or b"")]
    good = [record(purchase("a", f"g{i}", at(i), "1", country=f"ż{i}"), i) for i in range(len(bad) + 1)]
    mixed = [good[0], *chain.from_iterable(zip(bad, good[1:], strict=True))]
    batch, refusals = read("purchases", mixed, Reader(POLICY, 0, 1, LATER * 1000))
    assert batch.record == good
    assert [refusal.record for refusal in refusals] == bad
    batch, refusals = read("purchases", bad, Reader(POLICY, 0, 1, LATER * 1000))
    assert (len(batch), [refusal.record for refusal in refusals]) == (0, bad)


def same(one: EventBatch, other: EventBatch) -> None:
    """Both batches have the same columns, of the same types."""
    for name in ("rank", "offset", "recorded_at", "occurred_at", "kind", "amount", "score", "event_hash"):
        left, right = getattr(one, name), getattr(other, name)
        assert left.dtype == right.dtype, name
        assert left.tolist() == right.tolist(), name
    for name in ("customer", "event_id", "record"):
        assert getattr(one, name) == getattr(other, name), name
    assert texts_of(one) == texts_of(other)
    assert list(one.numbers) == list(other.numbers)
    for name, column in one.numbers.items():
        assert column.dtype == other.numbers[name].dtype, name
        np.testing.assert_array_equal(column, other.numbers[name])


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
        "signups": [
            *(signup(c, f"s-{c}", at(0, 1), attributes={"country": c, "income": 7}) for c in "abc"),
            profile("a", "f", at(1), attributes={"income": "1.5"}),
            survey("a", "v", at(2), 4.35),
        ],
        "erasures": [erasure(c, f"x-{c}", at(0, 1)) for c in "abc"],
    }
    records = [record(event, offset) for offset, event in enumerate(builders[role])]
    reader = Reader(make_policy(rates={"EUR": "1.5"}, numbers=["income"]), 0, 1, FOREVER)
    fast, none = read(role, records, reader)
    slow, refusals = read(role, [*records, Rec(b"{", b"a", len(records))], reader)
    assert none == []
    assert [refusal.code for refusal in refusals] == ["invalid_json"]
    same(fast, slow)
    misplaced, refusals = read(role, [Rec(records[0].value, b"?", 99), *records], reader)
    assert [refusal.code for refusal in refusals] == ["wrong_key"]
    same(fast, misplaced)
    inconvertible, refusals = read(
        role, [record({**builders[role][0], "occurred_at": "2024-02-30T00:00:00Z"}), *records], reader
    )
    assert [refusal.code for refusal in refusals] == ["invalid_field"]
    same(fast, inconvertible)


def test_take_and_concat_are_rows() -> None:
    """take() gives the rows asked for, in that order; concat() puts batches behind each other."""
    events = (purchase(c, f"e-{c}", at(i), str(i), country=c, attributes={"income": i}) for i, c in enumerate("abcd"))
    whole, _ = read_events(*events, reader=Reader(make_policy(numbers=["income"]), 0, 1, FOREVER))
    part = whole.take(np.array([2, 0]))
    assert part.customer == ["c", "a"]
    assert part.amount.tolist() == [200, 0]
    assert texts_of(part) == {"country": ["c", "a"], "channel": [None, None]}
    assert part.numbers["income"].tolist() == [2, 0]
    same(EventBatch.concat([whole.take(np.array([0, 1])), whole.take(np.array([2, 3]))]), whole)
    assert EventBatch.concat([whole]) is whole


def test_texts_are_met_in_the_order_of_their_rows() -> None:
    """A nearly full dictionary takes those that come first: the order is that of the rows, in columns of any length."""
    column = [None if i % 7 == 0 else f"t{i * 7919 % 5003}" for i in range(20_000)]
    texts = Texts.of(column).take(np.arange(len(column))[::-1])
    met = texts.met()
    assert met.distinct == list(dict.fromkeys(column[::-1]))
    assert met.column() == texts.column() == column[::-1]


def test_a_part_of_a_column_does_not_keep_all_of_its_texts() -> None:
    """What waits in an inbox is taken and joined again and again."""
    kept = Texts.of([])
    for fetch in range(100):
        joined = Texts.concat([kept, Texts.of([f"{fetch}-{i}" for i in range(50)])])
        kept = joined.take(np.arange(len(joined.place) - 3, len(joined.place)))
    assert kept.column() == ["99-47", "99-48", "99-49"]
    assert len(kept.distinct) < 100


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
    assert texts_of(batch) == {}
    assert batch.numbers == {}
    assert batch.occurred_at.tolist() == [at(1) - DAY]
