"""The agents: what was fetched of each input topic goes to its shard, and of the samples to who learns from them."""

from __future__ import annotations

from typing import Any, Literal

import faust
from faust.types.streams import StreamT
from mode.supervisors import CrashingSupervisor

from models.events import Role
from streams.shards import Shards


class Fetches(faust.Schema):
    """Passes what the batching transport delivers through, undecoded."""

    def loads_key(self, app: Any, message: Any, **_: Any) -> None:
        """Nothing: a fetch has many keys."""

    def loads_value(self, app: Any, message: Any, **_: Any) -> Any:
        """The fetch itself."""
        return message.value


def declare_agents(app: faust.App, shards: Shards, topics: dict[Role, str], samples_topic: str) -> None:
    """One agent for each topic that is read. An agent that fails ends the worker: a restart loses nothing."""

    def agent(role: Role | Literal["samples"]) -> Any:
        name = samples_topic if role == "samples" else topics[role]
        topic = app.topic(name, schema=Fetches(), allow_empty=False)
        return app.agent(topic, name=role, supervisor_strategy=CrashingSupervisor)

    @agent("purchases")
    async def purchases(fetches: StreamT[Any]) -> None:
        async for fetch in fetches:
            shards.fetched(fetch)

    @agent("signups")
    async def signups(fetches: StreamT[Any]) -> None:
        async for fetch in fetches:
            shards.fetched(fetch)

    @agent("erasures")
    async def erasures(fetches: StreamT[Any]) -> None:
        async for fetch in fetches:
            shards.fetched(fetch)

    @agent("samples")
    async def samples(fetches: StreamT[Any]) -> None:
        async for fetch in fetches:
            shards.fetched(fetch)
