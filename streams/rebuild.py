"""A rebuild of a fleet's state from Kafka: which shards are rewound, and how far their workers have read again.

The workers do the work: a shard that is rewound has no owner, and whoever is assigned it reads it from the beginning.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from streams.commit import ShardHeader
from streams.ports import Upkeep

#: Seconds over which the rate is measured.
_WINDOW: Final = 30.0


class Done(NamedTuple):
    """How much is done: records read of those to read, over all shards, and how many shards are not rewound yet."""

    read: int
    records: int
    waiting: int

    @property
    def complete(self) -> bool:
        """Whether every shard is where it was."""
        return not self.waiting and self.read >= self.records


def done(store: Upkeep, partitions: int, name: str) -> Done:
    """How far the rebuild of that name is. Raises StoreUnavailable."""
    headers = [store.header(shard) for shard in range(partitions)]
    read = sum(_read(header) for header in headers)
    records = sum(sum(header.silence.offsets.values()) for header in headers)
    return Done(read, records, sum(header.silence.rebuild != name for header in headers))


def _read(header: ShardHeader) -> int:
    return sum(min(header.offsets.get(role, 0), told) for role, told in header.silence.offsets.items())


def rewind(store: Upkeep, partitions: int, name: str) -> list[int]:
    """Rewind every shard that has not been yet; returns those of which not all is told that is due."""
    policies = (each for each in range(store.latest_activation(), 0, -1) if store.activation(each).cause == "policy")
    policy = next(policies, 0)
    return [shard for shard in range(partitions) if not store.rewind(shard, name, policy)]


class Estimate:
    """The rate at which something is done, and how long the rest takes. Instants are seconds of any steady clock."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def saw(self, now: float, done: int) -> None:
        """So much is done now."""
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()  # it has begun again
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > _WINDOW:
            self._seen.popleft()

    @property
    def rate(self) -> float:
        """How much is done in a second; 0 while that is not known."""
        if len(self._seen) < 2:
            return 0.0
        (began, first), (now, last) = self._seen[0], self._seen[-1]
        return (last - first) / (now - began) if now > began else 0.0

    def left(self, rest: int) -> float | None:
        """Seconds until the rest is done, None if nothing tells."""
        return rest / self.rate if self.rate > 0 else None


def sentence(found: Done, estimate: Estimate) -> str:
    """How far it is, for people."""
    share = 100 * found.read // found.records if found.records else 100
    left = estimate.left(found.records - found.read)
    rest = "" if left is None else f", {estimate.rate:,.0f} a second, about {_duration(left)} left"
    return f"{share} %: {found.read:,} of {found.records:,} records read again{rest}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
