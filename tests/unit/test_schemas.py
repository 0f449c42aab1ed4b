"""The JSON Schemas: the committed files are the code's, and what the code accepts and produces is valid."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator

from models.batch import Refusal
from models.changes import DeadLetter, SegmentChanged, dead_letter
from models.events import ROLE_OF_KIND, Role
from models.instants import FOREVER
from models.records import Reader, read
from models.schemas import schemas
from models.wire import Wire
from streams.commit import OutboxEntry
from streams.generator import Population, generate
from tests.unit.build import (
    LATER,
    Event,
    Feeder,
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
    tick,
)

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "schemas"
SCHEMAS = schemas()
READER = Reader(make_policy(rates={"EUR": "1.08"}, skew="36500d"), 0, 1, FOREVER)


def errors(topic: str, value: Any) -> list[str]:
    """What a validator finds wrong with a value, as it is on the wire."""
    return [
        error.message for error in Draft202012Validator(SCHEMAS[topic]).iter_errors(json.loads(orjson.dumps(value)))
    ]


def accepted(role: Role, event: Mapping[str, Any]) -> bool:
    """Whether the code can use the event."""
    batch, refusals = read(role, [record(event)], READER)
    assert len(batch) + len(refusals) == 1
    return not refusals


def test_the_committed_files_are_what_the_code_generates() -> None:
    """Run ``segmenter schemas`` after a change of the wire forms."""
    files = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in FOLDER.iterdir()}
    assert files == {f"{topic}.schema.json": schema for topic, schema in SCHEMAS.items()}


@pytest.mark.parametrize("topic", SCHEMAS)
def test_every_schema_is_one(topic: str) -> None:
    """Valid by its own meta-schema, with a title and, for what a person reads, descriptions."""
    schema = SCHEMAS[topic]
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"]
    assert "description" in json.dumps(schema)


def test_every_title_names_the_topic() -> None:
    """Whoever has only the file knows what it is for."""
    assert {topic: topic in schema["title"] for topic, schema in SCHEMAS.items()} == dict.fromkeys(SCHEMAS, True)


def test_every_topic_has_a_schema() -> None:
    """Three that are read, three that are written."""
    assert set(SCHEMAS) == {
        "purchases", "signups", "erasures", "segment-changes", "customer-segments", "dead-letters",
    }  # fmt: skip


GOOD: list[Event] = [
    purchase("a", "1", at(0)),
    purchase("a", "1", at(0, 123456), "0"),
    purchase("a", "1", at(0), "99999999.99", currency="EUR"),
    purchase("a", "1", at(0), 12.5),
    purchase("a", "1", at(0), 7),
    purchase("a", "1", at(0), country=None, channel=None, category=None, attributes=None),
    purchase("a", "1", at(0), country="DE", attributes={"a": 1, "b": 1.5, "c": True, "d": None, "e": "x"}),
    purchase("ä" * 256, "x" * 256, at(0), order_id="o" * 256),
    purchase("a", "1", at(0), something="else"),
    refund("a", "2", at(0)),
    tick(at(0)),
    {**tick(at(0)), "event_id": "9"},
    signup("a", "3", at(0)),
    signup("a", "3", at(0), country="DE", channel="web", attributes={"x": "y"}),
    {"event_id": "3", "customer_id": "a", "occurred_at": "2024-01-01T00:00:00.123456789+05:30"},
    profile("a", "5", at(0)),
    profile("a", "5", at(0), country="DE", channel=None, attributes={"income": 42_000, "hobby": "gym", "x": None}),
    *(survey("a", "6", at(0), score) for score in (0, 5, 4.35, 100, 100.0, "0", "4.5", "99.99", "100.00")),
    survey("a", "6", at(0), something="else"),
    erasure("a", "4", at(0)),
]


@pytest.mark.parametrize("event", GOOD, ids=lambda event: event.get("kind", "-"))
def test_what_the_code_accepts_is_valid(event: Event) -> None:
    """An event that a worker uses passes its topic's schema."""
    role = ROLE_OF_KIND[event.get("kind", "signup")]
    assert accepted(role, event)
    assert errors(role, event) == []


def test_generated_events_are_valid() -> None:
    """The generator is a producer like any other."""
    kinds = set()
    for event in generate(Population(customers=30, seed=5, refund_share=0.3, profile_share=0.5)):
        role = ROLE_OF_KIND[event["kind"]]
        assert errors(role, event) == []
        assert accepted(role, event)
        kinds.add(event["kind"])
    assert kinds == {"signup", "purchase", "refund", "survey", "profile"}


def without(event: Event, field: str) -> Event:
    return {name: value for name, value in event.items() if name != field}


SCORES = ("-1", "101", "100.01", "4.333", "5.", ".5", "", " 5", "1e1", -1, 101, 100.5, True, [], None)
AMOUNTS = ("-1", "1e3", "1.", ".5", "", "1.0000001", -1, True, [])
BAD: list[tuple[Role, Any]] = [
    *(("purchases", without(purchase("a", "1", at(0)), field)) for field in purchase("a", "1", at(0))),
    *(("signups", without(signup("a", "1", at(0)), field)) for field in ("event_id", "customer_id", "occurred_at")),
    *(("erasures", without(erasure("a", "1", at(0)), field)) for field in ("event_id", "customer_id", "occurred_at")),
    *(("purchases", {**purchase("a", "1", at(0)), field: None}) for field in purchase("a", "1", at(0))),
    ("purchases", signup("a", "1", at(0))),
    ("signups", purchase("a", "1", at(0))),
    ("erasures", signup("a", "1", at(0))),
    ("purchases", {"kind": "tick"}),
    ("purchases", {"kind": "gift", "occurred_at": "2024-01-01T00:00:00Z"}),
    *(("purchases", purchase("a", "1", at(0), amount)) for amount in AMOUNTS),
    *(("purchases", purchase("a", "1", at(0), currency=code)) for code in ("usd", "US", "EURO", "")),
    *(("signups", {**signup("a", "1", at(0)), "occurred_at": when}) for when in (
        "2024-01-01", "2024-01-01T00:00:00", "2024-01-01 00:00:00Z", "yesterday", 0,
    )),
    *(("signups", without(build("a", "1", at(0)), field))
      for build in (profile, survey) for field in ("event_id", "customer_id", "occurred_at")),
    ("signups", without(survey("a", "1", at(0)), "score")),
    *(("signups", survey("a", "1", at(0), score)) for score in SCORES),
    *(("signups", {**profile("a", "1", at(0)), "kind": kind}) for kind in ("tick", "erasure", "", None, 5, ["signup"])),
    ("signups", profile("a", "1", at(0), attributes=[])),
    ("signups", profile("a", "1", at(0), country="")),
    ("purchases", profile("a", "1", at(0))),
    ("purchases", survey("a", "1", at(0))),
    ("erasures", profile("a", "1", at(0))),
    ("purchases", purchase("", "1", at(0))),
    ("purchases", purchase("a" * 257, "1", at(0))),
    ("purchases", purchase("a", "", at(0))),
    ("purchases", purchase("a", "1", at(0), country="")),
    ("purchases", purchase("a", "1", at(0), attributes=[])),
    ("purchases", purchase("a", "1", at(0), attributes={"x": {}})),
    ("signups", []),
    ("signups", "text"),
    ("signups", None),
]  # fmt: skip


@pytest.mark.parametrize(("role", "event"), BAD)
def test_what_the_schema_refuses_the_code_refuses(role: Role, event: Any) -> None:
    """A producer that validates by the schema is told the same as a worker would."""
    assert errors(role, event)
    value = orjson.dumps(event)
    batch, refusals = read(role, [Rec(value, b"a")], READER)
    assert len(batch) == 0
    assert len(refusals) == 1


def changes() -> list[SegmentChanged]:
    """Changes by every cause there is."""
    feeder = Feeder(make_policy(dimensions={"lifecycle": ("30d", 3, "90d"), "fast": ("1d", 2, "7d")}), backfill_until=3)
    found = feeder.feed(
        signup("a", "1", at(0)), purchase("b", "2", at(0, 1)), refund("r", "3", at(0)), purchase("b", "4", at(10)),
        erasure("b", "5", at(20)), purchase("c", "6", at(200)), purchase("d", "7", at(5)), signup("é", "8", at(200)),
    )  # fmt: skip
    return found + feeder.advance(at(400))


def test_changes_are_valid() -> None:
    """Every change that the code publishes passes the schema of its topic."""
    found = changes()
    assert {change["cause"] for change in found} == {"signup", "purchase", "time", "erasure", "late_event"}
    assert {change["backfill"] for change in found} == {True, False}
    for value in OutboxEntry("1-t", found, ()).values:
        assert errors("segment-changes", orjson.loads(value)) == []


def test_snapshots_are_valid() -> None:
    """Every snapshot that is no tombstone passes the schema of its topic."""
    snapshots = dict(Wire.of(changes()).snapshots())
    assert snapshots["b"] is None
    for snapshot in snapshots.values():
        assert snapshot is None or errors("customer-segments", orjson.loads(snapshot)) == []


def letters() -> list[DeadLetter]:
    """Dead letters of every form: text, bytes that are none, absent parts, headers."""
    records = [
        Rec(b"nonsense", b"a", 0, LATER),
        Rec(None, b"a", 1, LATER),
        Rec(b"", None, 2, LATER),
        Rec(b"\xff\x00", b"\xfe", 3, LATER, (("h", b"\xfd"), ("n", None))),
        Rec("ä".encode(), "ö".encode(), 4, LATER, (("h", b"x"), ("h", b""), ("n", None))),
        record(purchase("a", "1", at(0), currency="XXX"), 5),
        record(purchase("a", "1", at(0)), 6)._replace(key=b"b"),
    ]
    _, refusals = read("purchases", records, READER)
    assert len(refusals) == len(records)
    return [dead_letter(refusal, "purchases", 3) for refusal in refusals]


def test_dead_letters_are_valid() -> None:
    """Whatever the record was."""
    found = letters()
    assert {letter["encoding"] for letter in found} == {"utf-8", "base64"}
    for letter in found:
        assert errors("dead-letters", letter) == []


def test_a_stored_entry_is_valid_after_it_was_read_again() -> None:
    """What an earlier owner left in the outbox is published in the same form."""
    entry = OutboxEntry("5-t", changes(), letters())
    again = OutboxEntry.decode("5-t", entry.encode())
    assert again.values == entry.values
    for change in again.changes:
        assert errors("segment-changes", change) == []
    for letter in again.dead_letters:
        assert errors("dead-letters", letter) == []


@pytest.mark.parametrize(
    "field", ["change_id", "customer_id", "sequence", "dimension", "from", "to", "backfill", "rfm"]
)
def test_a_change_has_all_its_fields(field: str) -> None:
    """A consumer may rely on each: one that is missing is invalid."""
    change = dict(changes()[0])
    del change[field]
    assert errors("segment-changes", change)


def test_a_refusal_is_no_change() -> None:
    """The topics' schemas tell their values apart."""
    letter = dead_letter(Refusal("purchases", Rec(b"x"), "code", "reason"), "purchases", 0)
    assert errors("segment-changes", letter)
    assert errors("dead-letters", changes()[0])
    assert errors("customer-segments", letter)
