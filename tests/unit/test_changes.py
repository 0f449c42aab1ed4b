"""The output topics' wire forms: identities, CloudEvents headers, snapshots, dead letters."""

import base64
import json
from collections.abc import Sequence
from itertools import product
from typing import Any

import orjson
import pytest

from models.batch import Refusal
from models.changes import (
    CHANGE,
    DEAD_LETTER,
    SNAPSHOT,
    SegmentChanged,
    change_id,
    dead_letter,
    headers_of,
)
from models.wire import Wire
from tests.unit.build import Event, Feeder, Rec, at, erasure, make_policy, purchase, refund, signup

TWO = make_policy(dimensions={"fast": ("10d", 2, "20d"), "slow": ("30d", 3, "90d")})


def some_changes() -> list[SegmentChanged]:
    """Changes with every cause that an event or time has."""
    feeder = Feeder()
    changes = [*feeder.feed(signup("a", "s", at(0)), purchase("b", "p0", at(0, 7)), refund("b", "r", at(1)))]
    changes += feeder.feed(purchase("b", "p1", at(100)), purchase("b", "late", at(2)), erasure("a", "x", at(101)))
    assert {change["cause"] for change in changes} == {"signup", "purchase", "time", "late_event", "erasure"}
    return changes


def test_changes_have_the_form_that_is_published() -> None:
    """Every change is a valid SegmentChanged with exactly its fields, and survives JSON."""
    for change in some_changes():
        assert CHANGE.validate_python(change, strict=True) == change
        assert set(change) == set(SegmentChanged.__annotations__)
        assert json.loads(orjson.dumps(change)) == change


def test_change_id_is_128_bits_and_repeatable() -> None:
    """The same move always has the same id, of 32 hexadecimal digits."""
    one = change_id("a", "lifecycle", "new", "lapsed", "deadline:7")
    assert one == change_id("a", "lifecycle", "new", "lapsed", "deadline:7")
    assert len(one) == 32
    assert int(one, 16) >= 0


def test_change_ids_differ_where_anything_differs() -> None:
    """Customer, dimension, from, to and source all count, also where their texts run into each other."""
    customers = ["a", "1:a", "a|lifecycle", "11:a|lifecycle", ""]
    sources = ["event:a", "event:", "deadline:7", "deadline:77", "event:deadline:7"]
    moves = list(product(customers, ["lifecycle", "value"], [None, "new", "lapsed"], [None, "new", "lapsed"], sources))
    # Without knowing where the customer_id ends, these two would be the same text.
    moves.append(("a", "d", "x", "y", "event:1|d|x|y|event:2"))
    moves.append(("a|d|x|y|event:1", "d", "x", "y", "event:2"))
    assert len({change_id(*move) for move in moves}) == len(moves)


def test_the_same_move_found_again_has_the_same_id() -> None:
    """Two shards fed the same events publish the same ids; a customer's different moves never share one."""
    one, other = some_changes(), some_changes()
    assert [change["change_id"] for change in one] == [change["change_id"] for change in other]
    assert len({change["change_id"] for change in one}) == len(one)


def snapshots_of(changes: Sequence[SegmentChanged]) -> dict[str, Any]:
    """The snapshots that follow changes, by customer."""
    found = Wire.of(changes).snapshots()
    return {customer: None if snapshot is None else orjson.loads(snapshot) for customer, snapshot in found}


def test_headers_are_cloudevents() -> None:
    """A change carries the required CloudEvents attributes as bytes, dated by its effective_at."""
    change = some_changes()[1]
    assert headers_of(change["change_id"], change["customer_id"].encode(), change["effective_at"]) == [
        ("ce_specversion", b"1.0"),
        ("ce_id", change["change_id"].encode()),
        ("ce_type", b"segment.changed.v1"),
        ("ce_source", b"segmenter"),
        ("ce_subject", b"b"),
        ("ce_time", b"2024-01-01T00:00:00.000007Z"),
        ("content-type", b"application/json"),
    ]


def test_snapshots_are_the_last_labels_of_each_customer() -> None:
    """A customer's snapshot is what the last change says; an erased customer's is a tombstone."""
    changes = some_changes()
    snapshots = snapshots_of(changes)
    assert set(snapshots) == {"a", "b"}
    assert snapshots["a"] is None
    last = [change for change in changes if change["customer_id"] == "b"][-1]
    assert snapshots["b"] == {
        "customer_id": "b",
        "sequence": last["sequence"],
        "segments": {"lifecycle": "regular"},
        "as_of": last["decided_at"],
        "policy_version": 1,
    }
    assert SNAPSHOT.validate_python(snapshots["b"], strict=True)
    assert snapshots_of([]) == {}


def test_snapshots_hold_all_dimensions() -> None:
    """After moves in several dimensions the snapshot has the present label of each."""
    feeder = Feeder(TWO)
    snapshots = snapshots_of(feeder.feed(purchase("a", "p0", at(0)), purchase("a", "p1", at(1))))
    assert snapshots["a"] is not None
    assert snapshots["a"]["segments"] == {"fast": "regular", "slow": "new"}
    assert snapshots["a"]["sequence"] == 3
    assert snapshots_of(feeder.feed(erasure("a", "x", at(2)))) == {"a": None}


def test_a_customer_who_comes_back_after_an_erasure_has_a_snapshot() -> None:
    """Erased and signed up again in one commit, the customer is there."""
    changes = Feeder().feed(purchase("a", "p", at(0)), erasure("a", "x", at(1)), signup("a", "s", at(2)))
    snapshot = snapshots_of(changes)["a"]
    assert snapshot is not None
    assert (snapshot["segments"], snapshot["sequence"]) == ({"lifecycle": "new"}, 1)


def test_snapshots_are_the_same_however_the_changes_are_held() -> None:
    """What is written as text while a batch is folded says what its dictionaries say, an erased customer too."""
    feeder = Feeder(TWO)
    batches: list[list[Event]] = [
        [purchase("a", "p0", at(0)), purchase('a"ü', "p1", at(1)), signup("c", "s", at(1))],
        [purchase("a", "p2", at(50)), erasure("c", "x", at(51)), purchase("d", "p3", at(51)), refund("e", "r", at(51))],
        [erasure("d", "y", at(52)), signup("d", "s2", at(53)), erasure("a", "z", at(400))],
    ]
    for batch in batches:
        published = feeder.step(batch).outcome.published
        assert snapshots_of(published) == snapshots_of(list(published))


def refusal(record: Rec) -> Refusal:
    return Refusal("purchases", record, "invalid_json", "the value is not a JSON object: …")


def test_dead_letters_keep_the_record_as_it_was() -> None:
    """Text stays text: key, value and headers in their order, where the record was, and why it was refused."""
    record = Rec('{"ä":1}'.encode(), "kłucz".encode(), 17, 1234, [("trace", b"1"), ("none", None), ("trace", b"2")])
    letter = dead_letter(refusal(record), "customer-purchases", 3)
    assert letter == {
        "code": "invalid_json",
        "reason": "the value is not a JSON object: …",
        "topic": "customer-purchases",
        "partition": 3,
        "offset": 17,
        "timestamp": 1234,
        "key": "kłucz",
        "value": '{"ä":1}',
        "headers": [("trace", "1"), ("none", None), ("trace", "2")],
        "encoding": "utf-8",
    }
    assert DEAD_LETTER.validate_python(letter)


@pytest.mark.parametrize(
    "record",
    [
        Rec(b"\xff\xfe", b"key", 0, 0, [("h", b"text")]),
        Rec(b"value", b"\xc3", 0, 0, [("h", None)]),
        Rec(b"value", None, 0, 0, [("h", b"fine"), ("i", b"\x80")]),
        Rec(None, b"\xed\xa0\x80", 0, 0, []),
    ],
)
def test_dead_letters_that_are_not_text_are_base64(record: Rec) -> None:
    """If any part is not UTF-8, all parts are base64 and give the original bytes back; absent stays absent."""
    letter = orjson.loads(orjson.dumps(dead_letter(refusal(record), "t", 0)))
    assert letter["encoding"] == "base64"
    parts = [letter["key"], letter["value"], *(value for _, value in letter["headers"])]
    decoded = [None if part is None else base64.b64decode(part, validate=True) for part in parts]
    assert decoded == [record.key, record.value, *(value for _, value in record.headers)]
    assert [name for name, _ in letter["headers"]] == [name for name, _ in record.headers]


def test_dead_letters_of_nothing() -> None:
    """A record without key, value and headers is a letter without them."""
    letter = dead_letter(refusal(Rec(None)), "t", 0)
    assert (letter["key"], letter["value"], letter["headers"], letter["encoding"]) == (None, None, [], "utf-8")
