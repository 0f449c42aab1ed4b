"""What readers of a topic do with a fetch: what they have already is trimmed, a gap is noticed, and some must wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from models.batch import Record
from models.events import Role
from streams.commit import Range
from streams.errors import LostBatch


def unread(what: str, expected: int, covered: Range, records: Sequence[Record]) -> Sequence[Record]:
    """The records of a fetch at the offset that is expected next, or after it. Raises LostBatch if some are missing."""
    if covered.start > expected:
        raise LostBatch(f"{what} was expected at offset {expected} and came at {covered.start}")
    if covered.start < expected:
        records = [record for record in records if record.offset >= expected]
    return records


class Fetch(NamedTuple):
    """Part of a topic: what it covers, and its records."""

    role: Role
    covered: Range
    records: Sequence[Record]


class Seam:
    """Where a shard that is rebuilt was before: what is newer waits until everything up to there has been folded.

    Else a record that came late would now be folded before records that were told without it.
    """

    def __init__(self, offsets: Mapping[Role, int], until: Mapping[Role, int]) -> None:
        #: Where each topic was of which something below has not been folded yet.
        self.until = {role: end for role, end in until.items() if offsets.get(role, 0) < end}
        self._ends = dict(until) if self.until else {}
        self._admitted = dict(offsets)
        self._held: list[Fetch] = []

    @property
    def open(self) -> bool:
        """Whether there is anything yet to fold below it."""
        return bool(self.until)

    def below(self, fetch: Fetch) -> Fetch | None:
        """What may be folded now of a fetch; the rest is held back."""
        role, (start, end), records = fetch
        cut = self._ends.get(role)
        if cut is None or end <= cut:
            self._admitted[role] = end
            return fetch
        if start < cut:
            self._admitted[role] = cut
            self._held.append(Fetch(role, Range(cut, end), [each for each in records if each.offset >= cut]))
            return Fetch(role, Range(start, cut), [each for each in records if each.offset < cut])
        self._held.append(fetch)
        return None

    def waits(self, role: Role) -> bool:
        """Whether all of a topic that may be folded now has been handed on."""
        cut = self._ends.get(role)
        return cut is not None and self._admitted.get(role, 0) >= cut

    def held(self, role: Role) -> int:
        """Records of a topic that are held back."""
        return sum(len(fetch.records) for fetch in self._held if fetch.role == role)

    def folded(self, ranges: Mapping[Role, Range]) -> list[Fetch]:
        """Take notice of what has been folded. Returns what was held back, once nothing is left below."""
        if not self.until:
            return []
        for role, covered in ranges.items():
            if covered.end >= self.until.get(role, covered.end + 1):
                del self.until[role]
        if self.until:
            return []
        self._ends = {}
        released, self._held = self._held, []
        return released
