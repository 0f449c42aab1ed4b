"""A TCP proxy in a thread of the test's process, which can be as bad as a network can be.

The only maintained proxies for faults are servers written in other languages; this one needs nothing, and can be
told to point elsewhere.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from streams.embedded.server import LOOPBACK, free_ports

_PIECE = 65_536
_RESET = struct.pack("ii", 1, 0)

T = TypeVar("T")


class Proxy:
    """Passes connections to ``target`` (host:port) on, and does to them what its methods say.

    A context manager; its address stays the same until it is closed. The target may be given later, for a
    server whose port is not known yet. All methods may be called from any thread, and return once
    what they do is done.
    """

    def __init__(self, target: str = "") -> None:
        self.target = target
        (self._port,) = free_ports(1)
        #: Seconds by which each piece of data is late, in each direction.
        self.delay = 0.0
        #: Bytes a second that one direction of one connection passes; 0 for as many as come.
        self.bandwidth = 0
        #: Connections taken so far.
        self.accepted = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._listener: socket.socket | None = None
        self._connections: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def address(self) -> str:
        """Where it listens, host:port."""
        return f"{LOOPBACK}:{self._port}"

    def cut(self) -> int:
        """Cut every connection, as with a reset; new ones are served. Returns how many there were."""
        return self._do(self._cut)

    def refuse(self) -> None:
        """Cut every connection and refuse new ones."""
        self._do(self._deafen)

    def black_hole(self) -> None:
        """Take connections and lose nothing, but let nothing through."""
        self._do(self._hold)

    def switch(self, target: str) -> None:
        """Point to another server, and cut the connections to the one before."""
        self.target = target
        self.cut()

    def heal(self) -> None:
        """Listen and let pass again, as fast as it comes."""
        self.delay, self.bandwidth = 0.0, 0
        self._do(self._listen)

    def _do(self, what: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return asyncio.run_coroutine_threadsafe(what(), self._loop).result(10)

    async def _listen(self) -> None:
        self._flowing.set()
        if self._listener is None:
            self._listener = socket.create_server((LOOPBACK, self._port))
            self._listener.setblocking(False)
            self._loop.add_reader(self._listener, self._take, self._listener)

    def _take(self, listener: socket.socket) -> None:
        """Accept a connection. (One that an asyncio.Server takes while it is closed stays open, unanswered.)"""
        with contextlib.suppress(BlockingIOError):
            connection, _ = listener.accept()
            self.accepted += 1
            task = self._loop.create_task(self._serve(connection))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _hold(self) -> None:
        self._flowing.clear()

    async def _deafen(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        await self._cut()

    async def _cut(self) -> int:
        cut = list(self._connections)
        await asyncio.sleep(0)  # each has begun, and closes what it was given
        for connection in cut:
            connection.cancel()
        await asyncio.gather(*cut, return_exceptions=True)
        return len(cut)

    async def _serve(self, connection: socket.socket) -> None:
        """One connection, until either end closes it or it is cut."""
        ends = []
        try:
            reader, writer = await asyncio.open_connection(sock=connection)
            ends.append(writer)
            await self._flowing.wait()
            host, _, port = self.target.rpartition(":")
            server_reader, server_writer = await asyncio.open_connection(host, int(port))
            ends.append(server_writer)
            both = [
                asyncio.ensure_future(self._pass(reader, server_writer)),
                asyncio.ensure_future(self._pass(server_reader, writer)),
            ]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in both:
                    each.cancel()
                await asyncio.gather(*both, return_exceptions=True)
            for end in ends:
                end.close()  # one end has closed: so does the other, after what was said
            for end in ends:
                await end.wait_closed()
        except (OSError, asyncio.CancelledError):  # cut, or a target that is not there
            for end in ends:
                _reset(end)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(_PIECE):
                await self._flowing.wait()
                if self.bandwidth:
                    await asyncio.sleep(len(data) / self.bandwidth)
                if self.delay:
                    await asyncio.sleep(self.delay)
                sink.write(data)
                await sink.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close at once, without what was written and has not left yet."""
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
