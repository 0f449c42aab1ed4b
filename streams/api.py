"""The worker's HTTP: /metrics for Prometheus, /healthz (alive and progressing), /readyz (owns its shards), /shards.

What is not for machines that look after the worker is for whoever shows the token: ``Authorization: Bearer <token>``.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Final

import orjson
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from streams.errors import ConfigurationError

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: Nothing here takes a body or has long headers. Bytes.
_LARGEST_BODY: Final = 1024
_LONGEST_LINE: Final = 4096
#: Seconds: what a connection may stay open without a request, and what an unfinished answer may take at the end.
_KEPT_ALIVE: Final = 30.0
_TO_FINISH: Final = 2.0


class HttpServer:
    """Serves until ``stop``. ``idle_seconds`` tells how long ago the worker last made progress.

    ``shards`` gives what this worker owns, as JSON can show it. Without a ``token`` it is shown to nobody.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        idle_seconds: Callable[[], float],
        stall_after: float,
        ready: Callable[[], bool],
        token: str = "",
        shards: Callable[[], object] = list,
    ) -> None:
        self._host, self._port = host, port
        self._idle_seconds = idle_seconds
        self._stall_after = stall_after
        self._ready = ready
        self._token = token
        self._shards = shards
        self._runner: web.AppRunner | None = None
        self.address = ""

    async def start(self) -> None:
        """Listen. Raises ConfigurationError if the address cannot be had."""
        app = web.Application(client_max_size=_LARGEST_BODY)
        app.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/shards", self._for_bearer(self._show_shards)),
            ]
        )
        self._runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=_KEPT_ALIVE,
            shutdown_timeout=_TO_FINISH,
            max_line_size=_LONGEST_LINE,
            max_field_size=_LONGEST_LINE,
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {self._host}:{self._port} ({error.strerror}); "
                "set SEGMENTER_HTTP_PORT to a free port, or to 0 for any"
            ) from None
        host, port = self._runner.addresses[0][:2]
        self.address = f"{host}:{port}"

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _healthz(self, _: web.Request) -> web.Response:
        idle = self._idle_seconds()
        if idle > self._stall_after:
            return web.Response(status=503, text=f"no progress for {idle:.0f} s\n")
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        if not self._ready():
            return web.Response(status=503, text="not assigned yet\n")
        return web.Response(text="ready\n")

    async def _show_shards(self, _: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(self._shards()) + b"\n", content_type="application/json")

    def _for_bearer(self, handler: _Handler) -> _Handler:
        """Only for requests that show the token."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            if not self._token:
                sentence = (
                    f"{request.path} is closed; set SEGMENTER_HTTP_TOKEN for the worker, and show it as a bearer\n"
                )
                return web.Response(status=403, text=sentence)
            scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
            # In a time that does not tell how much of it was right.
            right = hmac.compare_digest(shown.strip().encode(errors="surrogateescape"), self._token.encode())
            if scheme.lower() != "bearer" or not right:
                return web.Response(
                    status=401,
                    text="show the worker's SEGMENTER_HTTP_TOKEN: Authorization: Bearer <token>\n",
                    headers={"WWW-Authenticate": 'Bearer realm="segmenter"'},
                )
            return await handler(request)

        return guarded
