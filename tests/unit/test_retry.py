"""Dead letters that are retried: which, where to, once; and the pace of produce --speed."""

import base64
import json
from contextlib import nullcontext
from typing import Any

import click
import pytest

from models.changes import DeadLetter
from models.instants import NEVER, SECOND
from models.partitioner import partition_of
from streams.commands.produce import _Speed, due_after
from streams.errors import ConfigurationError
from streams.kafka.topics import require_lasting
from streams.retry import (
    RETRY_OF,
    TOO_LARGE,
    Place,
    Raw,
    Wanted,
    code_counts,
    original,
    partition_for,
    retried,
    waiting,
)
from streams.settings import Settings


def letter(**more: Any) -> DeadLetter:
    return {
        "code": "wrong_partition",
        "reason": "the key belongs elsewhere",
        "topic": "purchases",
        "partition": 1,
        "offset": 7,
        "timestamp": 1_700_000_000_000,
        "key": "ann",
        "value": "{}",
        "headers": [("trace", "t-1"), ("empty", None)],
        "encoding": "utf-8",
        **more,
    }  # type: ignore[typeddict-item]


def stored(*letters: DeadLetter) -> list[tuple[bytes | None, bytes | None]]:
    return [(None, json.dumps(each).encode()) for each in letters]


PLACE = Place("purchases", 1, 7)


def test_marked_letters_do_not_wait() -> None:
    """A mark is a record without a value whose key is the place; of a letter that is there twice, one waits."""
    records = stored(letter(), letter(), letter(offset=8), letter(topic="signups"))
    assert set(waiting(records)) == {PLACE, Place("purchases", 1, 8), Place("signups", 1, 7)}
    marked = [*records, (b"purchases/1@7", None), (b"whatever", None), (None, None)]
    assert set(waiting(marked)) == {Place("purchases", 1, 8), Place("signups", 1, 7)}


@pytest.mark.parametrize(
    ("wanted", "is_in"),
    [
        (Wanted(), True),
        (Wanted(codes=frozenset({"wrong_partition"})), True),
        (Wanted(codes=frozenset({"wrong_key"})), False),
        (Wanted(topic="signups"), False),
        (Wanted(partition=1, offset=7), True),
        (Wanted(partition=0), False),
        (Wanted(offset=8), False),
        (Wanted(since=1_700_000_000 * SECOND), True),
        (Wanted(since=1_700_000_000 * SECOND + 1), False),
        (Wanted(until=1_700_000_000 * SECOND), False),
    ],
)
def test_the_filters(wanted: Wanted, is_in: bool) -> None:
    """All of them must hold; the end of the time does not belong to it."""
    assert (letter() in wanted) is is_in


def test_the_record_is_as_it_was() -> None:
    """Text or bytes; and it says whose retry it is, once, whatever it was before."""
    assert original(letter()) == Raw(b"ann", b"{}", [("trace", b"t-1"), ("empty", None)])
    encoded = [base64.b64encode(part).decode() for part in (b"\xff", b"\x00", b"\x01")]
    binary = letter(key=encoded[0], value=encoded[1], headers=[("raw", encoded[2])], encoding="base64")
    assert original(binary) == Raw(b"\xff", b"\x00", [("raw", b"\x01")])
    assert original(letter(value=None)) == Raw(b"ann", None, [("trace", b"t-1"), ("empty", None)])
    assert original(letter(key=None, value=None, headers=[], reason=f"too long {TOO_LARGE}")) is None
    again = retried(Raw(b"ann", b"{}", [(RETRY_OF, b"purchases/0@1"), ("trace", None)]), PLACE)
    assert again == Raw(b"ann", b"{}", [("trace", None), (RETRY_OF, b"purchases/1@7")])


def test_the_partition_is_the_keys() -> None:
    """Without a key it is the one where the record was."""
    assert partition_for(Raw(b"ann", b"", []), PLACE, {"purchases": 4}) == partition_of(b"ann", 4)
    assert partition_for(Raw(None, b"", []), PLACE, {"purchases": 4}) == 1


def test_codes_are_counted() -> None:
    """For the last line of the command."""
    assert code_counts([letter(), letter(), letter(code="a")]) == {"a": 1, "wrong_partition": 2}


@pytest.mark.parametrize(("cluster", "lasting"), [("mockCluster158c99938c14", False), ("MkU3OEVBNTcwNTJENDM2Q", True)])
def test_a_kafka_without_transactions_is_refused(cluster: str, lasting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded broker has none, whatever it answers: what is undone there stays."""
    monkeypatch.setattr("streams.kafka.topics.cluster_id", lambda settings: cluster)
    with nullcontext() if lasting else pytest.raises(ConfigurationError, match="no transactions; to retry"):
        require_lasting(Settings(), "to retry")


# produce --speed


@pytest.mark.parametrize(
    ("first", "instant", "speed", "seconds"),
    [
        (0, 3600 * SECOND, 3600.0, 1.0),
        (5 * SECOND, 5 * SECOND, 1.0, 0.0),
        (0, SECOND, 0.5, 2.0),
        (9 * SECOND, SECOND, 1.0, 0.0),
        (NEVER, SECOND, 1.0, 0.0),
        (0, NEVER, 1.0, 0.0),
    ],
    ids=["an-hour-in-a-second", "the-first", "slower", "earlier", "no-first", "no-instant"],
)
def test_when_an_event_is_due(first: int, instant: int, speed: float, seconds: float) -> None:
    """Recorded time, divided by the speed."""
    assert due_after(first, instant, speed) == seconds


@pytest.mark.parametrize(("said", "speed"), [("3600x", 3600.0), ("1x", 1.0), ("0.5", 0.5)])
def test_a_speed(said: str, speed: float) -> None:
    """With or without its x."""
    assert _Speed().convert(said, None, None) == speed


@pytest.mark.parametrize("said", ["", "x", "0", "-1x", "inf", "nan", "fast", "1xx"])
def test_no_speed(said: str) -> None:
    """A sentence says how to write one."""
    with pytest.raises(click.BadParameter, match="3600x"):
        _Speed().convert(said, None, None)
