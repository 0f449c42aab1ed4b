"""Aside: where what waits for Redis is done, in the event loop or in a thread.

To have something done in a thread, and to hear of it, takes several times longer than Redis takes for a few customers:
threads wait for each other's turn. So what is small is done in the event loop, as long as Redis answers promptly.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Final, ParamSpec, TypeVar

from streams.ports import StateStore

P = ParamSpec("P")
T = TypeVar("T")

#: So few customers or messages are written in so little time that only Redis itself can make it last.
_FEW: Final = 150
#: Seconds within which Redis answers when nothing is wrong.
_PROMPT: Final = 0.05


class Aside:
    """Of one worker: a server that makes one shard wait would make all of them wait."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        #: Not before Redis has been reached once: to connect may take long.
        self._prompt = False

    async def do(self, size: int, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``call`` returns; ``size`` is how many customers or messages it is about."""
        if size > _FEW:
            return await asyncio.to_thread(call, *args, **kwargs)
        timed = partial(self._timed, partial(call, *args, **kwargs))
        if self._prompt:
            try:
                with self._store.hurried() as soon:
                    if soon:
                        return timed()
            finally:
                await asyncio.sleep(0)  # the others' turn, as if it had been waited for
        return await asyncio.to_thread(timed)

    def _timed(self, call: Callable[[], T]) -> T:
        began = time.perf_counter()
        try:
            return call()
        finally:
            self._prompt = time.perf_counter() - began < _PROMPT
