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
from models.partitioner import partition_of
from models.rows import unpack
from streams.commit import OutboxEntry
from streams.customers import described
from streams.errors import StoreUnavailable
from streams.ports import Publisher, StateStore
from streams.silence import is_silent

log = logging.getLogger(__name__)


class Stored(NamedTuple):
    """A customer's snapshot, None if nothing is known, and the number of the last change in it, else 0."""

    sequence: int
    value: bytes | None


def stored_snapshots(store: StateStore, shard: int, customers: Collection[str]) -> dict[str, Stored]:
    """The snapshots as the store has them now. Raises StateError, StoreUnavailable."""
    rows = store.rows_of(shard, list(customers))
    header = store.header(shard)
    if header.time is None or is_silent(header.silence, header.offsets, header.time):
        # Whoever is not there may yet come, and what is there is of the past.
        raise StoreUnavailable(f"shard {shard} is being built again; its snapshots are looked at later")
    found = dict.fromkeys(customers, Stored(0, None))
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


def _present(store: StateStore, shard: int, customers: Collection[str]) -> dict[str, Stored]:
    """The same, wherever the customers are now: a worker may sleep through a repartition."""
    partitions = store.partitions()
    homes: dict[int, list[str]] = {}
    for customer in customers:
        home = shard if partitions is None else partition_of(customer.encode(), partitions)
        homes.setdefault(home, []).append(customer)
    found: dict[str, Stored] = {}
    for home, names in homes.items():
        found |= stored_snapshots(store, home, names)
    return found


async def put_right(store: StateStore, publisher: Publisher, shard: int, entries: Collection[OutboxEntry]) -> None:
    """Publish the stored snapshots of everybody in ``entries``, until what was published is what is stored.

    Raises StateError, StoreUnavailable.
    """
    customers = {name for entry in entries for name in (*entry.wire.customers, *entry.forgotten)}
    published: dict[str, int] = {}
    while True:
        present = await asyncio.to_thread(_present, store, shard, customers)
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
