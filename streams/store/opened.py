"""Redis, reached: for workers and for commands that only read, which need neither Kafka nor Faust."""

from __future__ import annotations

from streams.errors import ServiceUnavailable, StoreUnavailable
from streams.settings import Settings
from streams.store.redis import RedisStore


def open_store(settings: Settings) -> RedisStore:
    """Redis, reached. Raises ServiceUnavailable."""
    store = RedisStore(settings.redis.get_secret_value(), settings.namespace)
    try:
        store.ping()
    except StoreUnavailable as error:
        raise ServiceUnavailable(f"{error}; check SEGMENTER_REDIS and that Redis is running") from None
    return store
