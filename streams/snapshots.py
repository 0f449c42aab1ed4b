"""Snapshots put right: what a worker that slept has sent too late is followed by what the store holds.

Changes may come late and twice, for their ids say so. Of snapshots the last one counts, and compaction keeps no other.
A worker that is stopped in the middle of publishing and wakes once another has its shard sends what it still had; it
finds out when its entries are gone from the outbox, because the other has published them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import NamedTuple

import orjson

from models.instants import format_instant
from models.rows import unpack
from streams.commit import OutboxEntry
from streams.customers import described
from streams.ports import Publisher, StateStore

log = logging.getLogger(__name__)


class Stored(NamedTuple):
    """A customer's snapshot, None if nothing is known, and the number of the last change in it, else 0."""

    sequence: int
    value: bytes | None


def stored_snapshots(store: StateStore, shard: int, customers: Collection[str]) -> dict[str, Stored]:
    """The snapshots as the store has them now. Raises StateError, StoreUnavailable."""
    rows = [(customer, row) for customer in customers if (row := store.row(shard, customer)) is not None]
    header = store.header(shard)
    found = dict.fromkeys(customers, Stored(0, None))
    if not rows or header.time is None:
        return found
    version, as_of = store.activation(header.activation).policy_version, format_instant(header.time)
    for group in unpack(rows, header.layouts):
        sequences = group.head["sequence"].tolist()
        for known, sequence in zip(described(group, header.values), sequences, strict=True):
            # Whoever has no change yet has no snapshot either.
            if sequence:
                snapshot = {
                    "customer_id": known["customer_id"],
                    "sequence": sequence,
                    "segments": known["segments"],
                    "as_of": as_of,
                    "policy_version": version,
                }
                found[known["customer_id"]] = Stored(sequence, orjson.dumps(snapshot))
    return found


async def put_right(store: StateStore, publisher: Publisher, shard: int, entries: Collection[OutboxEntry]) -> None:
    """Publish the stored snapshots of everybody in ``entries``, until what was published is what is stored.

    Raises StateError, StoreUnavailable.
    """
    customers = {name for entry in entries for name in (*entry.wire.customers, *entry.forgotten)}
    published: dict[str, int] = {}
    while True:
        present = await asyncio.to_thread(stored_snapshots, store, shard, customers)
        differing = {name: each for name, each in present.items() if published.get(name) != each.sequence}
        if not differing:
            return
        log.info(
            "shard %d: another worker has published what this one had; snapshots of %d customers are published as they "
            "are stored",
            *(shard, len(differing)),
            extra={"action": "snapshots_put_right", "shard": shard},
        )
        await publisher.publish_snapshots({name: each.value for name, each in differing.items()})
        published |= {name: each.sequence for name, each in differing.items()}
