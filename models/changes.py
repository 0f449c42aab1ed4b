"""The wire forms of the output topics: SegmentChanged, Snapshot, DeadLetter, and their CloudEvents headers."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Final, Literal

import xxhash
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from models.batch import Refusal
from models.events import CustomerId, Instant

Cause = Literal[
    "signup",
    "purchase",
    "refund",
    "profile",
    "survey",
    "time",
    "late_event",
    "erasure",
    "policy",
    "population",
    "model",
]
#: The headers that all changes have in common.
_SPECVERSION: Final = ("ce_specversion", b"1.0")
_TYPE: Final = ("ce_type", b"segment.changed.v1")
_SOURCE: Final = ("ce_source", b"segmenter")
#: That of every message this project publishes.
JSON_CONTENT: Final = ("content-type", b"application/json")

Segments = Annotated[dict[str, str | None], Field(description="dimension → label, null for none")]


class Rfm(TypedDict):
    """Recency, frequency, monetary as of the change's effective_at."""

    recency_days: Annotated[int | None, Field(description="whole days since the last purchase; null without one")]
    frequency: Annotated[int, Field(ge=0, description="purchases")]
    monetary: Annotated[str, Field(description="purchases less refunds, decimal")]
    currency: Annotated[str, Field(description="ISO 4217, the policy's base")]


# "from" is a Python keyword, hence the functional form.
SegmentChanged = TypedDict(
    "SegmentChanged",
    {
        "change_id": Annotated[str, Field(description="the same move found again has the same id: drop repeats")],
        "customer_id": CustomerId,
        "sequence": Annotated[int, Field(ge=1, description="orders one customer's changes")],
        "dimension": str,
        "from": str | None,
        "to": str | None,
        "title": Annotated[str | None, Field(description="of the segment moved into, from its profile or learned")],
        "channel": Annotated[str | None, Field(description="where to reach the segment moved into, from its profile")],
        "viable": Annotated[bool, Field(description="the segment moved into is large enough for a campaign")],
        "model_version": Annotated[int | None, Field(description="of the clusters; null in other dimensions")],
        "cause": Cause,
        "event_id": Annotated[str | None, Field(description="the event that caused it; null if none did")],
        "effective_at": Annotated[Instant, Field(description="the event's occurred_at, the deadline, the activation")],
        "decided_at": Annotated[Instant, Field(description="the shard's time at the record that decided it")],
        "policy_version": int,
        "population_as_of": Annotated[
            Instant | None, Field(description="when the cut-offs in force were taken; null before there are any")
        ],
        "backfill": Annotated[bool, Field(description="history being rebuilt: do not fire campaigns")],
        "rfm": Rfm,
        "segments": Segments,
    },
)
SegmentChanged.__doc__ = "A customer moved from one segment of a dimension to another."


class Snapshot(TypedDict):
    """All labels of one customer now. The value is empty (a tombstone) once the customer is erased."""

    customer_id: CustomerId
    sequence: Annotated[int, Field(ge=1, description="of the last change contained")]
    segments: Segments
    as_of: Instant
    policy_version: int


class DeadLetter(TypedDict):
    """A record that could not be used: where it was, what it was, and why."""

    code: Annotated[str, Field(description="stable")]
    reason: Annotated[str, Field(description="what to change")]
    topic: str
    partition: int
    offset: int
    timestamp: Annotated[int, Field(description="the record's Kafka timestamp, milliseconds since 1970")]
    key: str | None
    value: str | None
    headers: Annotated[list[tuple[str, str | None]], Field(description="in the record's order")]
    encoding: Annotated[
        Literal["utf-8", "base64"], Field(description="of key, value and header values: base64 if any is not UTF-8")
    ]


CHANGE: Final[TypeAdapter[Any]] = TypeAdapter(SegmentChanged)
SNAPSHOT: Final[TypeAdapter[Any]] = TypeAdapter(Snapshot)
DEAD_LETTER: Final[TypeAdapter[Any]] = TypeAdapter(DeadLetter)


def change_id(customer: str, dimension: str, before: str | None, after: str | None, source: str) -> str:
    """128 bits (XXH3) of what makes two moves the same one, as hexadecimal text."""
    # The length keeps a customer_id from running into what follows; the other parts are names of the policy.
    return change_id_of(f"{len(customer)}:{customer}|{dimension}|{before or ''}|{after or ''}|{source}")


def change_id_of(text: str) -> str:
    """The change_id of what ``change_id`` makes of its arguments."""
    return xxhash.xxh3_128_hexdigest(text.encode())


def headers_of(change_id: str, customer: bytes, effective_at: str) -> list[tuple[str, bytes]]:
    """CloudEvents 1.0, Kafka protocol binding, binary content mode; ``customer`` as UTF-8."""
    return [
        _SPECVERSION,
        ("ce_id", change_id.encode()),
        _TYPE,
        _SOURCE,
        ("ce_subject", customer),
        ("ce_time", effective_at.encode()),
        JSON_CONTENT,
    ]


def dead_letter(refusal: Refusal, topic: str, partition: int) -> DeadLetter:
    """The record as it was, with the reason it was refused."""
    record = refusal.record
    raw = [record.key, record.value, *(value for _, value in record.headers)]
    try:
        texts = [None if part is None else part.decode() for part in raw]
        encoding: Literal["utf-8", "base64"] = "utf-8"
    except UnicodeDecodeError:
        texts = [None if part is None else base64.b64encode(part).decode() for part in raw]
        encoding = "base64"
    return {
        "code": refusal.code,
        "reason": refusal.reason,
        "topic": topic,
        "partition": partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
        "key": texts[0],
        "value": texts[1],
        "headers": list(zip((name for name, _ in record.headers), texts[2:], strict=True)),
        "encoding": encoding,
    }
