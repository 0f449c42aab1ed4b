"""EmbeddedStack: the broker with its topics, and Redis, started and stopped together."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Self

from streams.embedded.broker import EmbeddedBroker
from streams.embedded.redis import EmbeddedRedis
from streams.settings import Settings


class EmbeddedStack:
    """A context manager. ``settings`` names the topics to create."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.broker = EmbeddedBroker()
        self.redis = EmbeddedRedis()
        self._running = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            starting.enter_context(self.redis)
            starting.enter_context(self.broker)
            settings = self._settings
            self.broker.create_topics([*settings.topics.values(), *settings.output_topics])
            self._running = starting.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    def environment(self) -> dict[str, str]:
        """The variables with which a worker finds this stack."""
        return {"SEGMENTER_BROKER": self.broker.address, "SEGMENTER_REDIS": self.redis.url}
