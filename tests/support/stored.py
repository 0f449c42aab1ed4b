"""What lies in Redis, read by its documented names and not with the project's own store."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import redis

from tests.support.topics import Topics

INPUTS = {"signups": "signups", "purchases": "purchases", "erasures": "erasures"}


class Stored:
    """A namespace's shards."""

    def __init__(self, client: redis.Redis, namespace: str, partitions: int) -> None:
        self.client = client
        self._namespace = namespace
        self._partitions = partitions

    def key(self, shard: int, part: str) -> str:
        """The key of a part of a shard."""
        return f"{{{self._namespace}:{shard}}}:{part}"

    def _hash(self, shard: int, part: str) -> dict[bytes, bytes]:
        return cast("dict[bytes, bytes]", self.client.hgetall(self.key(shard, part)))

    def offsets(self, shard: int) -> dict[str, int]:
        """The next offset to read of each role's topic."""
        fields = self._hash(shard, "shard")
        return {
            name.decode().removeprefix("offset:"): int(value)
            for name, value in fields.items()
            if name.startswith(b"offset:")
        }

    def owner(self, shard: int) -> str:
        """The token of the worker that may commit; empty before there was any."""
        return self._hash(shard, "shard").get(b"owner", b"").decode()

    def commits(self, shard: int) -> int:
        """How many commits the shard has seen."""
        return int(self._hash(shard, "shard").get(b"commits", 0))

    def published_to(self, commits: Mapping[int, int]) -> bool:
        """Whether everything is published that these commits of each shard, and those before them, have to say."""
        return all(
            int(entry.partition(b"-")[0]) > number
            for shard, number in commits.items()
            for entry in self._hash(shard, "outbox")
        )

    def unpublished(self) -> int:
        """Entries of every outbox."""
        return sum(len(self._hash(shard, "outbox")) for shard in range(self._partitions))

    def behind(self, topics: Topics) -> int:
        """Records of the input topics that are not yet in the state."""
        stored = [self.offsets(shard) for shard in range(self._partitions)]
        return sum(
            end - stored[shard].get(role, 0)
            for role, topic in INPUTS.items()
            for shard, end in topics.ends(topic).items()
        )

    def settled(self, topics: Topics) -> bool:
        """Everything produced is in the state, and everything to say has been said."""
        return self.behind(topics) == 0 and not self.overdue() and self.unpublished() == 0

    def overdue(self) -> bool:
        """Whether deadlines that time has passed are still to be applied: many are, in slices."""
        fields = [self._hash(shard, "shard") for shard in range(self._partitions)]
        return any(int(each.get(b"settled", 0)) < int(each.get(b"time", 0)) for each in fields)


@contextmanager
def stored(url: str, namespace: str = "segmenter", partitions: int = 4) -> Iterator[Stored]:
    """A namespace in the Redis at ``url``."""
    with redis.Redis.from_url(url) as client:
        yield Stored(client, namespace, partitions)
