"""Aside: what is small is done in the event loop while Redis answers promptly; everything else in a thread."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext

import pytest

from streams import aside as aside_module
from streams.aside import Aside
from streams.store.memory import MemoryStore


class Redis:
    """Answers after as many seconds as it is told, by a clock of its own, and says in which thread it was asked."""

    def __init__(self) -> None:
        self.now = 0.0
        self.takes = 0.001
        self.error: Exception | None = None

    def call(self, answer: str) -> tuple[str, bool]:
        """The answer, and whether it was waited for in the event loop."""
        self.now += self.takes
        if self.error is not None:
            raise self.error
        return answer, threading.current_thread() is threading.main_thread()


@pytest.fixture
def redis(monkeypatch: pytest.MonkeyPatch) -> Redis:
    made = Redis()
    monkeypatch.setattr(aside_module.time, "perf_counter", lambda: made.now)
    return made


def run(steps: Callable[[Aside], Awaitable[None]], store: MemoryStore | None = None) -> None:
    async def main() -> None:
        await steps(Aside(store or MemoryStore()))

    asyncio.run(main())


def test_small_calls_are_made_in_the_event_loop_once_redis_has_answered(redis: Redis) -> None:
    """The first has to connect."""

    async def steps(aside: Aside) -> None:
        assert await aside.do(1, redis.call, "first") == ("first", False)
        assert await aside.do(1, redis.call, "second") == ("second", True)

    run(steps)


def test_large_calls_are_always_made_in_a_thread(redis: Redis) -> None:
    """And how long they take says nothing about small ones."""

    async def steps(aside: Aside) -> None:
        await aside.do(1, redis.call, "")
        redis.takes = 1.0
        assert await aside.do(1000, redis.call, "large") == ("large", False)
        redis.takes = 0.001
        assert await aside.do(1, redis.call, "small") == ("small", True)

    run(steps)


def test_a_redis_that_makes_the_worker_wait_does_so_once(redis: Redis) -> None:
    """Then the event loop goes on beside it, until it answers promptly again."""

    async def steps(aside: Aside) -> None:
        await aside.do(1, redis.call, "")
        redis.takes = 3.0
        assert await aside.do(1, redis.call, "slow") == ("slow", True)
        assert await aside.do(1, redis.call, "slow") == ("slow", False)
        redis.takes = 0.001
        assert await aside.do(1, redis.call, "prompt") == ("prompt", False)
        assert await aside.do(1, redis.call, "prompt") == ("prompt", True)

    run(steps)


def test_a_store_that_knows_no_hurry_is_waited_for_in_a_thread(redis: Redis) -> None:
    """Such as a cluster, whose client looks for another server when one does not answer."""

    class Cluster(MemoryStore):
        def hurried(self) -> AbstractContextManager[bool]:
            return nullcontext(False)

    async def steps(aside: Aside) -> None:
        assert await aside.do(1, redis.call, "first") == ("first", False)
        assert await aside.do(1, redis.call, "second") == ("second", False)

    run(steps, Cluster())


def test_an_error_is_the_callers_and_its_time_counts(redis: Redis) -> None:
    """A Redis that does not answer in time is not waited for in the event loop again."""

    async def steps(aside: Aside) -> None:
        await aside.do(1, redis.call, "")
        redis.takes, redis.error = 3.0, ConnectionError("gone")
        with pytest.raises(ConnectionError, match="gone"):
            await aside.do(1, redis.call, "")
        redis.error = None
        assert await aside.do(1, redis.call, "") == ("", False)

    run(steps)


def test_others_have_their_turn_after_each_call(redis: Redis) -> None:
    """A shard with much to do in small steps does not hold up the event loop."""
    turns = []

    async def other() -> None:
        while True:
            turns.append(redis.now)
            await asyncio.sleep(0)

    async def steps(aside: Aside) -> None:
        await aside.do(1, redis.call, "")
        task = asyncio.create_task(other())
        for _ in range(5):
            await aside.do(1, redis.call, "")
        assert len(turns) >= 5
        task.cancel()

    run(steps)
