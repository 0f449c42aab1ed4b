"""The worker's HTTP: /metrics for Prometheus, /healthz (alive and progressing), /readyz (owns its shards)."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from streams.errors import ConfigurationError


class HttpServer:
    """Serves until ``stop``. ``idle_seconds`` tells how long ago the worker last made progress."""

    def __init__(
        self, host: str, port: int, *, idle_seconds: Callable[[], float], stall_after: float, ready: Callable[[], bool]
    ) -> None:
        self._host, self._port = host, port
        self._idle_seconds = idle_seconds
        self._stall_after = stall_after
        self._ready = ready
        self._runner: web.AppRunner | None = None
        self.address = ""

    async def start(self) -> None:
        """Listen. Raises ConfigurationError if the address cannot be had."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)
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
