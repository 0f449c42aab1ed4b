"""Recorded events: NDJSON files, plain, gzipped or standard input, several merged by ``occurred_at``."""

from __future__ import annotations

import gzip
import heapq
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from pydantic_core import from_json

from models.errors import InstantError
from models.events import ROLE_OF_KIND, Role
from models.instants import NEVER, parse
from streams.errors import ConfigurationError

STDIN: Final = "-"


class RecordedEvent(NamedTuple):
    """One line of a file, with as much of it as is needed to route it; the rest is validated later.

    ``occurred_at`` is an int64 instant in microseconds, NEVER where the line has none that can be read.
    """

    value: bytes
    role: Role
    is_tick: bool
    key: bytes | None
    occurred_at: int
    source: str
    line: int


def recorded_event(value: bytes, source: str, line: int) -> RecordedEvent:
    """Route one line. A line that is no event goes where purchases go, to become a dead letter there."""
    role: Role = "purchases"
    key, occurred_at, kind = None, NEVER, None
    try:
        # The parser that validates events later, so that a replay and a worker agree on what is JSON.
        event = from_json(value)
    except ValueError:
        event = None
    if isinstance(event, dict):
        kind = event.get("kind")
        if isinstance(kind, str):
            role = ROLE_OF_KIND.get(kind, role)
        customer, at = event.get("customer_id"), event.get("occurred_at")
        if isinstance(customer, str):
            key = customer.encode()
        if isinstance(at, str):
            try:
                occurred_at = parse(at)
            except InstantError:
                occurred_at = NEVER
    return RecordedEvent(value, role, kind == "tick", key, occurred_at, source, line)


def _open(path: str) -> BinaryIO:
    if path == STDIN:
        return sys.stdin.buffer
    try:
        raw = Path(path).open("rb")  # noqa: SIM115
        magic = raw.read(2)
        raw.seek(0)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}; name an NDJSON file, or - for input") from None
    return gzip.GzipFile(fileobj=raw) if magic == b"\x1f\x8b" else raw  # type: ignore[return-value]


def _read_file(path: str) -> Iterator[RecordedEvent]:
    name = "standard input" if path == STDIN else Path(path).name
    file = _open(path)
    try:
        for number, line in enumerate(file, start=1):
            value = line.strip()
            if value:
                yield recorded_event(value, name, number)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigurationError(f"cannot read {path} to its end: {error}") from None
    finally:
        if path != STDIN:
            raw = getattr(file, "fileobj", None)
            file.close()
            if raw is not None:
                raw.close()


def read_recorded(paths: Sequence[str]) -> Iterator[RecordedEvent]:
    """The events of all files; each file keeps its order, and the earliest next event comes first.

    Raises ConfigurationError for a file that cannot be read.
    """
    return heapq.merge(*(_read_file(path) for path in paths), key=lambda event: event.occurred_at)
