"""Pace: how many customers time alone may move at once.

What live events cause is published after all that time has caused before. So while they come, time moves few customers
in a commit, and none before the broker has what was committed; it takes longer until the last of very many has lapsed.
"""

from __future__ import annotations

import time
from typing import Final

#: Seconds after the last folded record for which a shard counts as live.
_LIVE_FOR: Final = 1.0
#: Commits that may wait for the broker before time moves more customers, and how many customers it may move in one.
_ALONE: Final = (4, 1000)
_BESIDE_LIVE: Final = (0, 120)
#: Beside a backlog, time keeps up with it: a customer for so many records.
_RECORDS_A_CUSTOMER: Final = 5


class Pace:
    """Of one shard; ``batch_size`` is the most it folds into one commit."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._folded_at = -_LIVE_FOR

    @property
    def _now(self) -> tuple[int, int]:
        return _BESIDE_LIVE if time.monotonic() - self._folded_at < _LIVE_FOR else _ALONE

    def behind(self, pending: int) -> bool:
        """Whether time must wait for the broker, which has not acknowledged so many commits."""
        return pending > self._now[0]

    @property
    def slice(self) -> int:
        """Customers whom time may move in a commit of their own."""
        return min(self._batch_size, self._now[1])

    def beside(self, records: int) -> int:
        """Customers whom time may move in the commit of so many records, which is about to be made."""
        self._folded_at = time.monotonic()
        return max(self.slice, records // _RECORDS_A_CUSTOMER)
