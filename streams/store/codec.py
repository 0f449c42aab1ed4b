"""How a shard's parts are written in Redis, where they are not the packed rows of models/rows.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import orjson

from models.counts import Count
from models.errors import StateError
from models.events import Role
from models.instants import NEVER
from models.rows import Layout
from streams.commit import OutboxEntry, ShardHeader, Silence


def encode_count(count: Count) -> bytes:
    """A segment's size as JSON."""
    return orjson.dumps({"customers": count.customers, "revenue_minor": count.revenue, "orders": count.orders})


def decode_count(stored: bytes) -> Count:
    """A segment's size from JSON. Raises StateError if it is damaged."""
    try:
        count = orjson.loads(stored)
        return Count(int(count["customers"]), int(count["revenue_minor"]), int(count.get("orders", 0)))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
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
    silent: dict[Role, int] = {}
    layouts: dict[int, Layout] = {}
    for key, value in fields.items():
        part, _, name = key.decode().partition(":")
        if part == "offset":
            offsets[cast(Role, name)] = int(value)
        elif part == "backfill":
            backfill[cast(Role, name)] = int(value)
        elif part == "silent":
            silent[cast(Role, name)] = int(value)
        elif part == "layout":
            layouts[int(name)] = Layout.parse(value)
    time, settled, owner = fields.get(b"time"), fields.get(b"settled"), fields.get(b"owner")
    summarised = fields.get(b"summarised")
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
        None if settled is None else int(settled),
        int(fields.get(b"activation", 0)),
        int(fields.get(b"since", NEVER)),
        None if summarised is None else int(summarised),
        Silence(
            silent,
            int(fields.get(b"silent_until", NEVER)),
            int(fields.get(b"silent_activation", 0)),
            int(fields.get(b"silent_summarised", NEVER)),
            fields.get(b"rebuild", b"").decode(),
        ),
        fields.get(b"lineage", b"").decode(),
    )
