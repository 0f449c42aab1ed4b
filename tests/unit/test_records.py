"""PlainRecords: what a consumer gives of a fetch, straight from aiokafka's decoder."""

from typing import Any

import pytest
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from streams.kafka.records import PlainRecords, leave_records_plain

FIRST = 7


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put in its place here is taken back."""
    monkeypatch.setattr(fetcher, "PartitionRecords", fetcher.PartitionRecords)


def fetched(count: int, fetch_offset: int = FIRST, *, damaged: bool = False) -> Any:
    """A fetch of records that the broker has stored from FIRST on."""
    builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1 << 20)
    for offset in range(count):
        builder.append(offset, 1000 + offset, b"k%d" % offset, b"v%d" % offset, [("h", b"x")])
    stored = bytearray(builder.build())
    stored[0:8] = FIRST.to_bytes(8, "big")
    if damaged:
        stored[-1] ^= 1
    leave_records_plain()
    return fetcher.PartitionRecords(
        TopicPartition("t", 0), MemoryRecords(bytes(stored)), None, fetch_offset, None, None, True, 1
    )


def test_records_have_all_that_was_produced() -> None:
    """Offset, timestamp and who gave it, key, value, headers."""
    records = fetched(2)
    assert isinstance(records, PlainRecords)
    assert [
        (each.offset, each.timestamp, each.timestamp_type, each.key, each.value, list(each.headers)) for each in records
    ] == [
        (7, 1000, 0, b"k0", b"v0", [("h", b"x")]),
        (8, 1001, 0, b"k1", b"v1", [("h", b"x")]),
    ]
    assert records.next_fetch_offset == 9


def test_what_was_not_asked_for_is_left_out() -> None:
    """A broker gives whole batches, from before the offset on."""
    assert [each.offset for each in fetched(5, FIRST + 3)] == [10, 11]


def test_a_part_is_followed_by_the_rest() -> None:
    """Whoever stops in the middle goes on there."""
    records = fetched(4)
    assert next(iter(records)).offset == 7
    assert records.next_fetch_offset == 8
    assert [each.offset for each in records] == [8, 9, 10]


def test_a_damaged_batch_is_refused() -> None:
    """Its checksum is looked at, as aiokafka does."""
    with pytest.raises(CorruptRecordException):
        list(fetched(3, damaged=True))
