"""How a shard's parts are written in Redis, where they are not the packed rows of models/rows.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import orjson

from models.errors import StateError
from models.events import Role
from models.rows import Layout
from streams.commit import Count, OutboxEntry, ShardHeader


def encode_count(count: Count) -> bytes:
    """A segment's size as JSON."""
    return orjson.dumps({"customers": count.customers, "revenue_minor": count.revenue})


def decode_count(stored: bytes) -> Count:
    """A segment's size from JSON. Raises StateError if it is damaged."""
    try:
        count = orjson.loads(stored)
        return Count(int(count["customers"]), int(count["revenue_minor"]))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        raise StateError(f"the stored segment size {stored[:60]!r} is damaged; restore the store") from None


def ordered_values(fields: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """``attribute:code`` → text, as one list of texts by code for each attribute. Raises StateError on a hole."""
    codes: dict[str, dict[int, str]] = {}
    for key, text in fields:
        attribute, _, code = key.rpartition(":")
        codes.setdefault(attribute, {})[int(code)] = text
    for attribute, texts in codes.items():
        if set(texts) != set(range(len(texts))):
            raise StateError(f"the stored dictionary of attribute {attribute!r} is damaged; restore the store")
    return {attribute: [texts[code] for code in range(len(texts))] for attribute, texts in codes.items()}


def decode_header(
    fields: Mapping[bytes, bytes], values: Mapping[bytes, bytes], outbox: Mapping[bytes, bytes]
) -> ShardHeader:
    """A shard's header from the fields of its hashes (docs/STATE.md). Raises StateError."""
    try:
        return _decode_header(fields, values, outbox)
    except ValueError as error:
        raise StateError(f"a shard's stored position or dictionary is damaged ({error}); restore the store") from None


def _decode_header(
    fields: Mapping[bytes, bytes], values: Mapping[bytes, bytes], outbox: Mapping[bytes, bytes]
) -> ShardHeader:
    offsets: dict[Role, int] = {}
    backfill: dict[Role, int] = {}
    layouts: dict[int, Layout] = {}
    for key, value in fields.items():
        part, _, name = key.decode().partition(":")
        if part == "offset":
            offsets[cast(Role, name)] = int(value)
        elif part == "backfill":
            backfill[cast(Role, name)] = int(value)
        elif part == "layout":
            layouts[int(name)] = Layout.parse(value)
    time, owner = fields.get(b"time"), fields.get(b"owner")
    entries = [OutboxEntry.decode(entry_id.decode(), stored) for entry_id, stored in outbox.items()]
    return ShardHeader(
        offsets,
        backfill,
        None if time is None else int(time),
        layouts,
        ordered_values((key.decode(), text.decode()) for key, text in values.items()),
        sorted(entries, key=lambda entry: entry.number),
        None if owner is None else owner.decode(),
        int(fields.get(b"commits", 0)),
    )
