"""Kafka's own partitioner: murmur2 of the key's bytes, a column of keys at a time.

``partition = (murmur2(key) & 0x7fffffff) % partitions``, as in org.apache.kafka.common.utils.Utils.murmur2 and
BuiltInPartitioner.partitionForKey. librdkafka's default differs; producers built on it must set
``partitioner=murmur2_random``, or a customer's purchases and signups land on different shards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SEED = np.uint32(0x9747B28C)
_M = np.uint32(0x5BD1E995)


def _hash_block(block: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """murmur2 of equally long keys; ``block`` has one row of bytes a key."""
    count, length = block.shape
    words = length // 4
    h = np.full(count, _SEED ^ np.uint32(length), dtype=np.uint32)
    head = np.ascontiguousarray(block[:, : words * 4]).view("<u4")
    for i in range(words):
        k = head[:, i] * _M
        k ^= k >> np.uint32(24)
        h = h * _M ^ k * _M
    tail = block[:, words * 4 :]
    for i in reversed(range(tail.shape[1])):
        h ^= tail[:, i].astype(np.uint32) << np.uint32(8 * i)
    if tail.shape[1]:
        h *= _M
    h ^= h >> np.uint32(13)
    h *= _M
    h ^= h >> np.uint32(15)
    return h


def _block(keys: Sequence[bytes], length: int) -> NDArray[np.uint8]:
    """Equally long keys as the rows of a matrix."""
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), length)


def partitions_of(keys: Sequence[bytes], partitions: int) -> NDArray[np.int64]:
    """The partition of each key among ``partitions``."""
    lengths = list(map(len, keys))
    different = set(lengths)
    if len(different) == 1:
        hashes = _hash_block(_block(keys, lengths[0]))
    else:
        hashes = np.empty(len(keys), dtype=np.uint32)
        for length in different:
            at = [i for i, each in enumerate(lengths) if each == length]
            hashes[at] = _hash_block(_block([keys[i] for i in at], length))
    return (hashes & np.uint32(0x7FFFFFFF)).astype(np.int64) % partitions


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of one key."""
    return int(partitions_of([key], partitions)[0])
