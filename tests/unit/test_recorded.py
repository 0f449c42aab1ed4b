"""Recorded events: NDJSON files, plain or gzipped or standard input, several merged by time."""

import gzip
import io
import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from models.instants import NEVER
from streams.errors import ConfigurationError
from streams.recorded import STDIN, RecordedEvent, read_recorded, recorded_event
from tests.unit.build import Event, at, erasure, profile, purchase, refund, signup, survey, tick


def lines(events: Iterable[Event]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def write(folder: Path, name: str, content: bytes) -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


def ids(events: Iterable[RecordedEvent]) -> list[str]:
    return [json.loads(event.value)["event_id"] for event in events]


@pytest.mark.parametrize(
    ("event", "role"),
    [
        (purchase("a", "1", at(0)), "purchases"),
        (refund("a", "1", at(0)), "purchases"),
        (signup("a", "1", at(0)), "signups"),
        (profile("a", "1", at(0)), "signups"),
        (survey("a", "1", at(0)), "signups"),
        (erasure("a", "1", at(0)), "erasures"),
        ({**purchase("a", "1", at(0)), "kind": "sale"}, "purchases"),
        ({**purchase("a", "1", at(0)), "kind": None}, "purchases"),
        ({**purchase("a", "1", at(0)), "kind": ["signup"]}, "purchases"),
    ],
)
def test_an_event_goes_to_its_topic(event: Event, role: str) -> None:
    """The kind decides the topic; what has none that is known goes where purchases go, to be refused there."""
    value = json.dumps(event).encode()
    assert recorded_event(value, "file", 7) == RecordedEvent(value, role, False, b"a", at(0), "file", 7)  # type: ignore[arg-type]


def test_a_tick_is_for_everyone() -> None:
    """A tick has no key and is known as one."""
    event = recorded_event(json.dumps(tick(at(3))).encode(), "file", 1)
    assert (event.is_tick, event.key, event.role, event.occurred_at) == (True, None, "purchases", at(3))


@pytest.mark.parametrize("value", [b"", b"{", b"\xff", b"[1]", b"null", b"17", b'"text"', b"{}"])
def test_what_is_no_event_is_still_a_record(value: bytes) -> None:
    """Anything on a line becomes a record of the purchases, without key and instant."""
    assert recorded_event(value, "file", 2) == RecordedEvent(value, "purchases", False, None, NEVER, "file", 2)


@pytest.mark.parametrize("customer", [None, 17, ["a"], {}])
def test_a_customer_that_is_no_text_is_no_key(customer: Any) -> None:
    """Only a text can be a key."""
    assert (
        recorded_event(json.dumps({**purchase("a", "1", at(0)), "customer_id": customer}).encode(), "f", 1).key is None
    )


def test_keys_are_utf8() -> None:
    """The key is the customer_id in UTF-8, as a producer would send it."""
    assert recorded_event(json.dumps(purchase("żółw", "1", at(0))).encode(), "f", 1).key == "żółw".encode()


@pytest.mark.parametrize("occurred_at", [None, 17, "", "yesterday", "2024-02-30T00:00:00Z", "2024-01-01"])
def test_an_instant_that_cannot_be_read_is_never(occurred_at: Any) -> None:
    """An event without a readable instant is placed first; it will be refused."""
    value = json.dumps({**purchase("a", "1", at(0)), "occurred_at": occurred_at}).encode()
    assert recorded_event(value, "file", 1).occurred_at == NEVER


def test_an_instant_with_a_line_feed_is_never() -> None:
    """A line feed at the end of an instant makes it unreadable, and nothing worse."""
    value = json.dumps({**purchase("a", "1", at(0)), "occurred_at": "2024-01-01T00:00:00.120000Z\n"}).encode()
    assert recorded_event(value, "file", 1).occurred_at == NEVER


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_is_read_in_its_order(tmp_path: Path, compressed: bool) -> None:
    """Lines keep their order, even against time; empty lines are skipped and counted, a last line needs no end."""
    content = b"\n" + lines([purchase("a", "1", at(5)), purchase("a", "2", at(3))]) + b"  \r\n"
    content += lines([purchase("a", "3", at(9))]).rstrip(b"\n") + b"\r\n" + lines([signup("b", "4", at(1))]).rstrip()
    path = write(tmp_path, "events.ndjson", gzip.compress(content) if compressed else content)
    events = list(read_recorded([path]))
    assert ids(events) == ["1", "2", "3", "4"]
    assert [(event.source, event.line) for event in events] == [("events.ndjson", line) for line in (2, 3, 5, 6)]
    assert [event.occurred_at for event in events] == [at(5), at(3), at(9), at(1)]


def test_a_name_does_not_make_a_file_compressed(tmp_path: Path) -> None:
    """Compression is found by content, not by name."""
    plain = write(tmp_path, "plain.gz", lines([purchase("a", "1", at(0))]))
    packed = write(tmp_path, "packed.ndjson", gzip.compress(lines([purchase("a", "2", at(1))])))
    assert ids(read_recorded([plain, packed])) == ["1", "2"]


def test_files_are_merged_by_time(tmp_path: Path) -> None:
    """The earliest next event of all files comes first; at one instant the file named first."""
    one = write(tmp_path, "one", lines([signup("a", "s0", at(0)), signup("a", "s5", at(5)), signup("a", "s6", at(6))]))
    two = write(
        tmp_path, "two", lines([purchase("a", "p0", at(0)), purchase("a", "p3", at(3)), purchase("a", "p5", at(5))])
    )
    assert ids(read_recorded([one, two])) == ["s0", "p0", "p3", "s5", "p5", "s6"]
    assert ids(read_recorded([two, one])) == ["p0", "s0", "p3", "p5", "s5", "s6"]


def test_a_bad_line_disturbs_no_other(tmp_path: Path) -> None:
    """A line that is no event comes where it stands in its file, before what the other files have then."""
    one = write(tmp_path, "one", lines([purchase("a", "1", at(1))]) + b"garbage\n" + lines([purchase("a", "4", at(4))]))
    two = write(tmp_path, "two", lines([purchase("a", "2", at(2)), purchase("a", "3", at(3))]))
    events = list(read_recorded([one, two]))
    assert [event.value[:7] == b"garbage" for event in events] == [False, True, False, False, False]
    assert ids(event for event in events if event.value != b"garbage") == ["1", "2", "3", "4"]


@pytest.mark.parametrize("content", [b"", b"\n\n", gzip.compress(b"", mtime=0)])
def test_an_empty_file_has_no_events(tmp_path: Path, content: bytes) -> None:
    """A file without lines is no error."""
    assert list(read_recorded([write(tmp_path, "empty", content)])) == []


def test_no_files_have_no_events() -> None:
    """Nothing named is nothing read."""
    assert list(read_recorded([])) == []


def test_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A dash is standard input, which is read but not closed, and merges like a file."""
    stream = io.BytesIO(lines([purchase("a", "1", at(1)), purchase("a", "3", at(3))]))
    monkeypatch.setattr("streams.recorded.sys.stdin", SimpleNamespace(buffer=stream))
    path = write(tmp_path, "file", lines([purchase("a", "2", at(2))]))
    events = list(read_recorded([STDIN, path]))
    assert ids(events) == ["1", "2", "3"]
    assert [event.source for event in events] == ["standard input", "file", "standard input"]
    assert not stream.closed


def test_a_missing_file_is_a_wrong_setting(tmp_path: Path) -> None:
    """A file that is not there, or is a folder, is refused with what to name instead."""
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(ConfigurationError, match=r"cannot read .*: .*; name an NDJSON file, or - for input"):
            list(read_recorded([str(path)]))


def test_a_damaged_file_is_told_after_its_good_lines(tmp_path: Path) -> None:
    """A gzip file that ends too early, or whose content is wrong, ends the reading with an error, not in silence."""
    whole = gzip.compress(lines(purchase("a", str(i * 7919 % 10_007), at(i)) for i in range(3000)))
    middle = len(whole) // 2
    for name, content in (
        ("short", whole[:middle]),
        ("checksum", whole[:-8] + bytes(4) + whole[-4:]),
        ("header", whole[:2] + b"\xff" + whole[3:]),
    ):
        path = write(tmp_path, name, content)
        with pytest.raises(ConfigurationError, match="to its end"):
            list(read_recorded([path]))


def test_a_damaged_middle_is_told_too(tmp_path: Path) -> None:
    """Compressed data that cannot be unpacked is a file that cannot be read to its end."""
    whole = bytearray(gzip.compress(lines(purchase("a", str(i * 7919 % 10_007), at(i)) for i in range(3000))))
    whole[200:260] = bytes(60)
    with pytest.raises(ConfigurationError, match="to its end"):
        list(read_recorded([write(tmp_path, "middle", bytes(whole))]))
