"""Records as aiokafka's decoder makes them.

aiokafka wraps each in an object of its own that says once more which topic and partition it is of, in three calls of
Python a record; a fetch says so once (FetchedRecords).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import fetcher

from models.batch import Record


class PlainRecords(fetcher.PartitionRecords):
    """One partition's part of a fetch."""

    def __iter__(self) -> Iterator[Record]:
        records: Iterator[Record] = self._records_iterator
        return records

    def _consumer_record(self, tp: Any, record: Record) -> Record:
        return record


def leave_records_plain() -> None:
    """Let the consumers of this process give records as they were decoded."""
    fetcher.PartitionRecords = PlainRecords
