"""What every reader of a topic does with a fetch: what it has already is trimmed, and a gap is noticed."""

from __future__ import annotations

from collections.abc import Sequence

from models.batch import Record
from streams.commit import Range
from streams.errors import LostBatch


def unread(what: str, expected: int, covered: Range, records: Sequence[Record]) -> Sequence[Record]:
    """The records of a fetch at the offset that is expected next, or after it. Raises LostBatch if some are missing."""
    if covered.start > expected:
        raise LostBatch(f"{what} was expected at offset {expected} and came at {covered.start}")
    if covered.start < expected:
        records = [record for record in records if record.offset >= expected]
    return records
