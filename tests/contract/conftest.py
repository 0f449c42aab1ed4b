"""What the contract tests share: real Redis servers, one for the whole session and others on demand."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis

from tests.support.real_redis import RealRedis, RedisUnavailable

pytest.register_assert_rewrite("tests.contract.store_contract")


def _started(servers: ExitStack, **options: Any) -> RealRedis:
    try:
        return servers.enter_context(RealRedis(**options))
    except RedisUnavailable as unavailable:
        pytest.skip(str(unavailable))


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RealRedis]:
    """A running Redis without a password, for tests that leave it as it is; its data is theirs alone."""
    with ExitStack() as servers:
        yield _started(servers, aof=False)


@pytest.fixture
def raw(redis_server: RealRedis) -> Iterator[redis.Redis]:
    """A plain client of the session's server, which is emptied first."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def start_redis() -> Iterator[Callable[..., RealRedis]]:
    """Starts servers with RealRedis's options, to be killed and reconfigured at will; they go after the test."""
    with ExitStack() as servers:
        yield lambda **options: _started(servers, **options)
