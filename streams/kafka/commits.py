"""What a commit to Kafka says beside its offset, in its metadata: ``<told until> <partitions before>``."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from models.instants import NEVER

_METADATA: Final = re.compile(r"(-?[0-9]{1,19})(?: ([0-9]{1,9}))?")


class Told(NamedTuple):
    """The instant before which every deadline had been published when the commit was made; see LogRange."""

    until: int = NEVER
    lineage: str = ""

    def text(self) -> str:
        """As it is committed."""
        return f"{self.until} {self.lineage}".rstrip()

    @classmethod
    def parse(cls, metadata: str | None) -> Told:
        """What somebody has committed; nothing if it was not us."""
        found = _METADATA.fullmatch(metadata or "")
        return cls(int(found[1]), found[2] or "") if found else cls()
