"""The partitioner: Kafka's own murmur2, a column of keys at a time."""

import random
import warnings
from collections.abc import Callable

import numpy as np
import pytest

from models.partitioner import partition_of, partitions_of


def _kafka_python_murmur2() -> Callable[[bytes], int]:
    """kafka-python's murmur2; importing it calls what Python 3.11 deprecates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from kafka.partitioner.default import murmur2
    hashed: Callable[[bytes], int] = murmur2
    return hashed


murmur2 = _kafka_python_murmur2()

#: Keys and signed hashes of org.apache.kafka.common.utils.UtilsTest.testMurmur2.
JAVA = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


def keys() -> list[bytes]:
    """Keys of all lengths up to 70, many of each, any bytes; and customer ids as people have them."""
    rng = random.Random(11)
    found = [rng.randbytes(length) for length in range(71) for _ in range(20)]
    found += [bytes([value]) * length for value in (0, 127, 128, 255) for length in range(9)]
    found += [name.encode() for name in ("00001", "customer-17", "żółw", "客户", "🧾", "a" * 1024)]
    rng.shuffle(found)
    return found


@pytest.mark.parametrize(("key", "hashed"), JAVA.items())
def test_hashes_are_those_of_kafkas_own_tests(key: bytes, hashed: int) -> None:
    """Among 2^31 partitions the partition is the hash without its sign: it is Kafka's."""
    assert partition_of(key, 2**31) == hashed & 0x7FFFFFFF


@pytest.mark.parametrize("partitions", [1, 2, 3, 4, 12, 1000, 2**31])
def test_columns_agree_with_kafka_python(partitions: int) -> None:
    """Keys of mixed lengths, empty ones too, land where another implementation of Kafka's partitioner puts them."""
    every = keys()
    expected = [(murmur2(key) & 0x7FFFFFFF) % partitions for key in every]
    assert partitions_of(every, partitions).tolist() == expected


def test_one_key_alone_lands_where_it_lands_in_a_column() -> None:
    """A key's partition does not depend on the keys beside it."""
    every = keys()[:200]
    assert [partition_of(key, 8) for key in every] == partitions_of(every, 8).tolist()


def test_no_keys_have_no_partitions() -> None:
    """An empty column gives an empty column."""
    assert partitions_of([], 4).tolist() == []


def test_partitions_are_evenly_filled() -> None:
    """Ten thousand ids spread over eight partitions within a tenth of the mean."""
    sizes = np.bincount(partitions_of([f"c{i:06d}".encode() for i in range(10_000)], 8), minlength=8)
    assert sizes.sum() == 10_000
    assert abs(sizes - 1250).max() < 125
