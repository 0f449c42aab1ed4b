"""Dead letters, retried: which of them, where to, and that each is retried once.

A retried record and a mark are written in one Kafka transaction. The mark lies on the topic of dead letters: a record
without a value whose key is the letter's place, ``topic/partition@offset``. So a crash half-way leaves nothing behind,
and whoever runs it again finds what was done. A record that is refused again is at another place, and its letter may
be retried in its turn.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson

from models.changes import DeadLetter
from models.instants import FOREVER, NEVER
from models.partitioner import partition_of

#: The header that says which letter a record is the retry of.
RETRY_OF: Final = "segmenter-retry-of"
#: How the reason of a letter ends whose record was too large to copy.
TOO_LARGE: Final = "(the value is too large to copy; read it at its topic and offset)"


class Place(NamedTuple):
    """Where a record lies."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}@{self.offset}"


class Raw(NamedTuple):
    """A record as its producer wrote it."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which letters to retry; what is None or empty does not matter. Instants are microseconds, of the records."""

    codes: frozenset[str] = frozenset()
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    since: int = NEVER
    until: int = FOREVER

    def __contains__(self, letter: DeadLetter) -> bool:
        return (
            (not self.codes or letter["code"] in self.codes)
            and self.topic in (None, letter["topic"])
            and self.partition in (None, letter["partition"])
            and self.offset in (None, letter["offset"])
            and self.since <= letter["timestamp"] * 1000 < self.until
        )


def place_of(letter: DeadLetter) -> Place:
    """Where the refused record lies."""
    return Place(letter["topic"], letter["partition"], letter["offset"])


def waiting(records: Iterable[tuple[bytes | None, bytes | None]]) -> dict[Place, DeadLetter]:
    """Letters that have not been retried, from the keys and values of the topic's records.

    A record that was refused twice, as after a crash, has one letter: the last.
    """
    letters: dict[Place, DeadLetter] = {}
    done: set[str] = set()
    for key, value in records:
        if value is None:
            done.add((key or b"").decode(errors="replace"))
        else:
            letter: DeadLetter = orjson.loads(value)
            letters[place_of(letter)] = letter
    return {place: letter for place, letter in letters.items() if str(place) not in done}


def original(letter: DeadLetter) -> Raw | None:
    """The refused record's bytes, None if they were too large to copy."""
    if letter["value"] is None and letter["reason"].endswith(TOO_LARGE):
        return None
    in_base64 = letter["encoding"] == "base64"

    def raw(text: str | None) -> bytes | None:
        if text is None:
            return None
        return base64.b64decode(text) if in_base64 else text.encode()

    return Raw(raw(letter["key"]), raw(letter["value"]), [(name, raw(text)) for name, text in letter["headers"]])


def retried(record: Raw, place: Place) -> Raw:
    """The record to produce again: as it was, with the place of the one it repeats in a header."""
    headers = [(name, value) for name, value in record.headers if name != RETRY_OF]
    return record._replace(headers=[*headers, (RETRY_OF, str(place).encode())])


def partition_for(record: Raw, place: Place, partitions: Mapping[str, int]) -> int:
    """Where Kafka's partitioner puts the record; one without a key stays where it was."""
    if record.key is None:
        return min(place.partition, partitions[place.topic] - 1)
    return partition_of(record.key, partitions[place.topic])


def code_counts(letters: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many letters there are of each code."""
    counts: dict[str, int] = {}
    for letter in letters:
        counts[letter["code"]] = counts.get(letter["code"], 0) + 1
    return dict(sorted(counts.items()))
