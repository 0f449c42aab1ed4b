"""The names of Redis keys. All keys of a shard share a hash tag, so they lie on one node of a Redis Cluster."""

from __future__ import annotations

from typing import NamedTuple


class ShardKeys(NamedTuple):
    """One shard's keys; each is a hash (docs/STATE.md)."""

    shard: str
    customers: str
    outbox: str
    segments: str
    values: str
    population: str


def shard_keys(namespace: str, shard: int) -> ShardKeys:
    """The keys of a shard: ``{segmenter:7}:customers`` and its siblings."""
    return ShardKeys(*(f"{{{namespace}:{shard}}}:{part}" for part in ShardKeys._fields))


def fleet_key(namespace: str) -> str:
    """The hash that says which fleet the namespace belongs to."""
    return f"{namespace}:fleet"


def policy_key(namespace: str) -> str:
    """The hash of the activations, their policies, and the population as it was last summarised."""
    return f"{namespace}:policy"


def clusters_key(namespace: str) -> str:
    """The hash of the learners of cluster dimensions, the models they published, and what they have read."""
    return f"{namespace}:clusters"
