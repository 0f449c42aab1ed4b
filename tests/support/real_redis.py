"""A real Redis server for tests, to be killed and restarted at will: the embedded one, with its data on disk.

A kill loses nothing that a client was told is written, but for what Redis itself allows with ``everysec``: while a
sync is under way it may hold later writes back for up to two seconds. A test that kills under heavy writing and must
not lose any passes ``config={"appendfsync": "always"}``.
"""

from collections.abc import Mapping

from streams.embedded.redis import EmbeddedRedis, find_redis_server
from streams.errors import ServiceUnavailable as RedisUnavailable

__all__ = ["RealRedis", "RedisUnavailable", "find_redis_server"]


class RealRedis(EmbeddedRedis):
    """EmbeddedRedis with its append-only file on."""

    def __init__(
        self, *, aof: bool = True, password: str | None = None, config: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(aof=aof, password=password, config=config)
