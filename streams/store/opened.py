"""Redis, reached: for workers and for commands that only read, which need neither Kafka nor Faust."""

from __future__ import annotations

from typing import TypeVar

from streams.errors import ServiceUnavailable, StoreUnavailable
from streams.settings import Settings
from streams.store.connect import Tls
from streams.store.redis import RedisStore
from streams.store.upkeep import RedisUpkeep

Store = TypeVar("Store", bound=RedisStore)


def open_store(settings: Settings) -> RedisStore:
    """Redis, reached. Raises ServiceUnavailable."""
    return _reached(RedisStore, settings)


def open_upkeep(settings: Settings) -> RedisUpkeep:
    """Redis, reached, for what operators do to a whole namespace. Raises ServiceUnavailable."""
    return _reached(RedisUpkeep, settings)


def _reached(kind: type[Store], settings: Settings) -> Store:
    tls = Tls(settings.redis_ca, settings.redis_certificate, settings.redis_key)
    store = kind(settings.redis.get_secret_value(), settings.namespace, tls=tls)
    try:
        store.ping()
    except StoreUnavailable as error:
        raise ServiceUnavailable(f"{error}; check SEGMENTER_REDIS and that Redis is running") from None
    return store
