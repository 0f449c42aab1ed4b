"""The commands that read and write topics and Redis, each run as a process, on the scene that conftest.py sets."""

import base64
import csv
import gzip
import io
import json
import shlex
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from models.partitioner import partition_of
from streams.embedded.stack import EmbeddedStack
from streams.errors import ServiceUnavailable
from streams.replay import replay
from streams.settings import Settings
from tests.integration.conftest import BAD, ERASED, Bad, Scene
from tests.support.commands import SEGMENTER, Running, environment, eventually, output_of, segmenter
from tests.support.topics import CHANGES, DEAD_LETTERS, SNAPSHOTS, Topics, distinct, moves, out_of_order


def _lines(*arguments: str, settings: dict[str, str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output_of(*arguments, settings=settings).splitlines()]


def _refused(*arguments: str, settings: dict[str, str]) -> str:
    """What a command that must fail says."""
    done = segmenter(*arguments, settings=settings)
    assert done.returncode != 0
    said = done.stderr.decode()
    assert "Traceback" not in said
    assert done.stdout == b""
    return said


# --- changes ----------------------------------------------------------------------------------------------------


def test_changes_from_the_beginning(scene: Scene) -> None:
    """Every change once, in order per customer, as a replay of the same events gives them."""
    found = _lines("changes", "--from-beginning", "--json", settings=scene.settings)
    assert moves(found) == moves(replay(scene.events))
    assert len({change["change_id"] for change in found}) == len(found)
    assert next(out_of_order(found), None) is None


def test_changes_shows_nothing_old(scene: Scene) -> None:
    """Without --from-beginning it ends at once, having shown nothing."""
    assert output_of("changes", settings=scene.settings) == ""


def test_changes_of_one_segment(scene: Scene) -> None:
    """--segment keeps the moves into and out of it, and nothing else."""
    found = _lines("changes", "--from-beginning", "--segment", "lifecycle:lapsed", "--json", settings=scene.settings)
    wanted = [change for change in replay(scene.events) if "lapsed" in (change["from"], change["to"])]
    assert moves(found) == moves(wanted)
    assert {change["to"] for change in found} > {"lapsed"}


def test_changes_for_people(scene: Scene) -> None:
    """A line for each change, with when, who, the move and its cause."""
    lines = output_of("changes", "--from-beginning", settings=scene.settings).splitlines()
    changes = distinct(scene.topics.changes())
    assert len(lines) == len(changes)
    for change in changes[:20]:
        words = (change["effective_at"], change["customer_id"], f"{change['from'] or '–'} → {change['to'] or '–'}")
        assert any(all(word in line for word in (*words, change["cause"])) for line in lines)


def test_changes_refuses_a_segment_without_a_dimension(scene: Scene) -> None:
    """The sentence shows how to write it."""
    assert "lifecycle:lapsed" in _refused("changes", "--segment", "lapsed", settings=scene.settings)


def test_changes_without_its_topic(scene: Scene) -> None:
    """A missing broker is one sentence."""
    settings = {**scene.settings, "SEGMENTER_BROKER": "127.0.0.1:9", "SEGMENTER_START_WITHIN": "1"}
    assert "Kafka at 127.0.0.1:9 did not answer" in _refused("changes", settings=settings)


# --- dead letters -----------------------------------------------------------------------------------------------


def _original(letter: dict[str, Any]) -> tuple[object, ...]:
    """Topic, partition and the record's own bytes."""

    def read(text: str | None) -> bytes | None:
        if text is None:
            return None
        return base64.b64decode(text, validate=True) if letter["encoding"] == "base64" else text.encode()

    headers = tuple((name, read(value)) for name, value in letter["headers"])
    return letter["topic"], letter["partition"], read(letter["key"]), read(letter["value"]), headers


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: f"{bad.code}-{bad.topic}")
def test_a_dead_letter_is_the_record_as_it_was(bad: Bad, scene: Scene) -> None:
    """The original bytes, headers, topic, partition, offset and timestamp, with a code and a sentence."""
    (letter,) = [
        letter
        for letter in scene.topics.dead_letters()
        if _original(letter) == (bad.topic, bad.partition, bad.key, bad.value, bad.headers)
    ]
    assert letter["code"] == bad.code
    assert len(letter["reason"]) > 15
    (record,) = [
        record
        for record in scene.topics.read(bad.topic)
        if (record.partition, record.offset) == (bad.partition, letter["offset"])
    ]
    assert (record.key, record.value, record.timestamp) == (bad.key, bad.value, letter["timestamp"])


def test_dead_letters(scene: Scene) -> None:
    """--json gives each record of the topic; without it a table with code, place and reason."""
    letters = _lines("dead-letters", "--json", settings=scene.settings)
    assert Counter(letter["code"] for letter in letters) == Counter(bad.code for bad in BAD)
    table = output_of("dead-letters", settings=scene.settings)
    assert f"{len(BAD)} dead letters" in table
    for letter in letters:
        place = f"{letter['topic']}/{letter['partition']}@{letter['offset']}"
        assert any(letter["code"] in line and place in line for line in table.splitlines())


# --- customers --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(scene: Scene) -> list[dict[str, Any]]:
    """Every customer."""
    return _lines("export", settings=scene.settings)


def test_customer(scene: Scene, exported: list[dict[str, Any]]) -> None:
    """What is known about a customer, as in the export, and why they are where they are."""
    found = json.loads(output_of("customer", "c000002", settings=scene.settings))
    reasons = found.pop("reasons")
    assert found in exported
    assert reasons.keys() == found["segments"].keys()
    assert f"{found['orders']} order" in reasons["lifecycle"]
    bought = [e for e in scene.events if e.get("customer_id") == "c000002" and e["kind"] == "purchase"]
    assert found["orders"] == len(bought)
    assert Decimal(found["gross"]) == sum(Decimal(event["amount"]) for event in bought)
    assert "'nobody'" in _refused("customer", "nobody", settings=scene.settings)


def test_export_as_csv_and_ndjson(scene: Scene, exported: list[dict[str, Any]], tmp_path: Path) -> None:
    """Both forms say the same, which is what a replay of the events says."""
    events, customers, table = tmp_path / "events.ndjson", tmp_path / "customers.ndjson", tmp_path / "customers.csv"
    events.write_text("".join(json.dumps(event) + "\n" for event in scene.events))
    output_of("replay", str(events), "--customers", str(customers), settings=scene.settings)
    replayed = [json.loads(line) for line in customers.read_text().splitlines()]
    assert sorted(exported, key=lambda row: row["customer_id"]) == replayed
    output_of("export", "--format", "csv", "--out", str(table), settings=scene.settings)
    rows = list(csv.DictReader(io.StringIO(table.read_text(), newline="")))
    for row, customer in zip(rows, exported, strict=True):
        nested = {"attributes": customer["attributes"], "segments": customer["segments"]}
        plain = {name: value for name, value in customer.items() if name not in nested}
        flat = {f"{name}.{part}": value for name, parts in nested.items() for part, value in parts.items()}
        given = {name: "" if value is None else str(value) for name, value in (plain | flat).items()}
        assert {name: value for name, value in row.items() if value or name in given} == given


def test_segments_for_people(scene: Scene) -> None:
    """A table that agrees with --json."""
    table = output_of("segments", settings=scene.settings)
    for row in _lines("segments", "--json", settings=scene.settings):
        assert any(
            {row["segment"], str(row["customers"]), row["revenue"]} <= set(line.split()) for line in table.splitlines()
        )


def test_an_empty_namespace_is_said_to_be_empty(scene: Scene) -> None:
    """Reading a namespace that nobody has written says so."""
    settings = {**scene.settings, "SEGMENTER_NAMESPACE": "another"}
    assert "holds nothing under namespace 'another'" in _refused("export", settings=settings)


def test_erasure_leaves_nothing(scene: Scene) -> None:
    """After an erasure: changes to null, a tombstone on customer-segments, and no trace of the customer in Redis."""
    last = [change for change in distinct(scene.topics.changes()) if change["customer_id"] == ERASED][-1]
    assert (last["to"], last["cause"], last["event_id"]) == (None, "erasure", "x-1")
    assert set(last["segments"]) >= {"lifecycle", "rfm", "region"}
    assert set(last["segments"].values()) == {None}
    snapshots = [record for record in scene.topics.read(SNAPSHOTS) if record.key == ERASED.encode()]
    assert snapshots[-1].value is None
    assert all(record.value is not None for record in snapshots[:-1])
    assert ERASED in _refused("customer", ERASED, settings=scene.settings)
    client = scene.state.client
    assert not [key for key in client.keys("*") if ERASED in str(client.hgetall(key))]


def test_snapshots_are_the_last_word(scene: Scene) -> None:
    """customer-segments holds for each customer the labels after their last change."""
    last = {change["customer_id"]: change for change in distinct(scene.topics.changes())}
    snapshots = {record.key: record.value for record in scene.topics.read(SNAPSHOTS)}
    assert snapshots.keys() == {customer.encode() for customer in last}
    for customer, change in last.items():
        value = snapshots[customer.encode()]
        if customer != ERASED:
            snapshot = json.loads(value or b"null")
            assert (snapshot["segments"], snapshot["sequence"]) == (change["segments"], change["sequence"])


def test_changes_lie_where_their_customers_events_lie(scene: Scene) -> None:
    """Keyed by customer and partitioned like the input, with CloudEvents headers that agree with the value."""
    for record in scene.topics.read(CHANGES):
        change = json.loads(record.value or b"null")
        key = change["customer_id"].encode()
        assert (record.key, record.partition) == (key, partition_of(key, 4))
        assert dict(record.headers) == {
            "ce_specversion": b"1.0",
            "ce_id": change["change_id"].encode(),
            "ce_type": b"segment.changed.v1",
            "ce_source": b"segmenter",
            "ce_subject": key,
            "ce_time": change["effective_at"].encode(),
            "content-type": b"application/json",
        }


# --- produce and follow -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other() -> Iterator[tuple[dict[str, str], Topics]]:
    """A broker that no worker reads from."""
    try:
        with EmbeddedStack(Settings()) as stack, Topics(stack.broker.address) as topics:
            yield stack.environment(), topics
    except ServiceUnavailable as unavailable:
        pytest.skip(str(unavailable))


def _events(kind: str, numbers: range) -> bytes:
    lines = []
    for number in numbers:
        event = {
            "event_id": f"{kind}-{number}",
            "kind": kind,
            "customer_id": f"c-{number % 7}",
            "occurred_at": f"2024-01-01T00:00:{number:02d}Z",
        }
        if kind == "purchase":
            event |= {"order_id": f"o-{number}", "amount": "1.00", "currency": "USD"}
        lines.append(json.dumps(event))
    return "\n".join(lines).encode() + b"\n"


def test_produce(other: tuple[dict[str, str], Topics], tmp_path: Path) -> None:
    """Standard input and .gz files, merged by time, keyed, in order; at the end a tick on every partition."""
    settings, topics = other
    signups = tmp_path / "signups.ndjson.gz"
    signups.write_bytes(gzip.compress(_events("signup", range(0, 60, 2))))
    arguments = ("produce", str(signups), "-", "--until", "2024-02-01T00:00:00Z")
    said = output_of(*arguments, settings=settings, stdin=_events("purchase", range(1, 60, 2)))
    assert "60 events" in said
    for topic, kind in (("signups", "signup"), ("purchases", "purchase")):
        records = topics.read(topic)
        events = [(record, json.loads(record.value or b"null")) for record in records]
        mine = [(record, event) for record, event in events if event["kind"] == kind]
        assert len(mine) == 30
        assert all(record.key == event["customer_id"].encode() for record, event in mine)
        assert all(record.partition == partition_of(record.key or b"", 4) for record, _ in mine)
        for partition in range(4):
            there = [event["occurred_at"] for record, event in mine if record.partition == partition]
            assert there == sorted(there)
    ticks = [(r.partition, json.loads(r.value or b"null")) for r in topics.read("purchases") if r.key is None]
    tick = {"kind": "tick", "occurred_at": "2024-02-01T00:00:00Z"}
    assert sorted(ticks, key=lambda tick: tick[0]) == [(partition, tick) for partition in range(4)]


def test_produce_says_what_is_wrong(other: tuple[dict[str, str], Topics], tmp_path: Path) -> None:
    """A file that is missing or cut off is named in one sentence."""
    settings, _ = other
    assert "absent.ndjson" in _refused("produce", "absent.ndjson", settings=settings)
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(_events("signup", range(50)))[:-20])
    assert "cut.gz" in _refused("produce", str(cut), settings=settings)


def test_changes_follow(other: tuple[dict[str, str], Topics], scene: Scene, tmp_path: Path) -> None:
    """--follow shows each change as it comes, once, and nothing from before; Ctrl-C ends it."""
    settings, topics = other
    change, *_ = scene.topics.changes()

    def publish(name: str) -> None:
        for _ in range(2):
            topics.send(CHANGES, json.dumps({**change, "change_id": name}).encode(), change["customer_id"].encode())
        topics.flush()

    def shown_at_last() -> str:
        publish(next(names))
        return follow.log

    publish("before")
    with Running(tmp_path, settings, (*SEGMENTER, "changes", "--follow", "--json"), "follow") as follow:
        # Nothing says that it listens; what is published until it does is not shown.
        names = (f"after-{number}" for number in range(1000))
        eventually(shown_at_last, 20, "a change is shown")
        publish("last")
        eventually(lambda: "last" in follow.log, 5, "the next one is shown")
        shown = [json.loads(line) for line in follow.log.splitlines()]
        assert len({each["change_id"] for each in shown}) == len(shown)
        assert "before" not in follow.log
        follow.signal(signal.SIGINT)
        assert follow.exit_code(within=5) == 130
        assert "Traceback" not in follow.log


@pytest.mark.parametrize(
    "command",
    [
        ("changes", "--from-beginning", "--json"),
        ("export", "--format", "csv"),
        ("replay", "EVENTS", "--changes", "-"),
    ],
    ids=" ".join,
)
def test_a_reader_that_has_seen_enough(command: tuple[str, ...], scene: Scene, tmp_path: Path) -> None:
    """``segmenter … | head -1`` shows one line and no error."""
    events = tmp_path / "events.ndjson"
    events.write_text("".join(json.dumps(event) + "\n" for event in scene.events))
    words = [str(events) if word == "EVENTS" else word for word in (*SEGMENTER, *command)]
    kept = {name: value for name, value in environment(scene.settings).items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        ("sh", "-c", f"{shlex.join(words)} | head -1"), env=kept, capture_output=True, timeout=60, check=False
    )
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == b""


# --- stack ------------------------------------------------------------------------------------------------------


def test_stack(tmp_path: Path) -> None:
    """It prints two export lines, serves what they name, and ends soon after SIGTERM, Redis with it."""
    with Running(tmp_path, {}, (*SEGMENTER, "stack"), "stack") as stack:
        eventually(lambda: stack.log.count("\n") == 2, 30, "both addresses are printed")
        names = dict(line.removeprefix("export ").split("=", 1) for line in stack.log.splitlines())
        assert names.keys() == {"SEGMENTER_BROKER", "SEGMENTER_REDIS"}
        assert all(line.startswith("export ") for line in stack.log.splitlines())
        with Topics(names["SEGMENTER_BROKER"]) as topics:
            for topic in ("purchases", "signups", "erasures", CHANGES, SNAPSHOTS, DEAD_LETTERS):
                assert topics.ends(topic) == dict.fromkeys(range(4), 0)
        assert "holds nothing" in _refused("export", settings=names)
        code, seconds = stack.terminate(within=10)
        assert (code, seconds < 5) == (0, True), stack.log
        assert "Redis at" in _refused("export", settings=names)
