"""The worker's HTTP: what Prometheus, Docker and Kubernetes ask it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from streams import metrics
from streams.api import HttpServer
from streams.errors import ConfigurationError

LOOPBACK = "127.0.0.1"


class Served:
    """A server on a free port of loopback, and a client for it."""

    def __init__(self) -> None:
        self.idle, self.ready = 0.0, False
        self.headers: dict[str, str] = {}
        self.server = self.serve("")

    def serve(self, token: str) -> HttpServer:
        """A server that asks for this token."""
        return HttpServer(
            LOOPBACK, 0, idle_seconds=lambda: self.idle, stall_after=60.0, ready=lambda: self.ready, token=token,
            shards=lambda: [{"shard": 3}],
        )  # fmt: skip

    async def get(self, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> tuple[int, str, str]:
        """Status, content type and text."""
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, f"http://{self.server.address}{path}", headers=headers) as answer,
        ):
            self.headers = dict(answer.headers)
            return answer.status, answer.headers["Content-Type"], await answer.text()


def run(scenario: Callable[[Served], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        served = Served()
        await served.server.start()
        try:
            await scenario(served)
        finally:
            await served.server.stop()

    asyncio.run(whole())


def test_metrics_are_exported() -> None:
    """In the form Prometheus reads, with the content type that says so."""

    async def scenario(served: Served) -> None:
        metrics.POLICY_VERSION.set(41)
        status, kind, text = await served.get("/metrics")
        assert status == 200
        assert kind.startswith("text/plain; version=")
        families = {family.name: family for family in text_string_to_metric_families(text)}
        assert families["segmenter_policy_version"].samples[0].value == 41
        assert families["segmenter_policy_version"].documentation == "Version of the policy in force."

    run(scenario)


def test_healthz_is_ok_while_there_is_progress() -> None:
    """Also before anything is assigned: a worker that waits for its turn is healthy."""

    async def scenario(served: Served) -> None:
        assert (await served.get("/healthz"))[::2] == (200, "ok\n")
        served.idle = 60.0
        assert (await served.get("/healthz"))[0] == 200

    run(scenario)


def test_healthz_fails_when_nothing_goes_on() -> None:
    """After SEGMENTER_STALL_AFTER; it says for how long."""

    async def scenario(served: Served) -> None:
        served.idle = 61.4
        assert (await served.get("/healthz"))[::2] == (503, "no progress for 61 s\n")
        served.idle = 0.0
        assert (await served.get("/healthz"))[0] == 200

    run(scenario)


def test_readyz_follows_the_assignment() -> None:
    """Not ready before the first assignment and while it changes."""

    async def scenario(served: Served) -> None:
        assert (await served.get("/readyz"))[::2] == (503, "not assigned yet\n")
        served.ready = True
        assert (await served.get("/readyz"))[::2] == (200, "ready\n")
        served.ready = False
        assert (await served.get("/readyz"))[0] == 503

    run(scenario)


def test_without_a_token_shards_are_shown_to_nobody() -> None:
    """It says which setting opens them."""

    async def scenario(served: Served) -> None:
        for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer x"}):
            status, _, text = await served.get("/shards", headers=headers)
            assert status == 403
            assert "SEGMENTER_HTTP_TOKEN" in text
        assert (await served.get("/metrics"))[0] == 200

    run(scenario)


def test_shards_are_shown_to_who_shows_the_token() -> None:
    """Who shows none or another is told how; health and metrics need none."""
    token = "geheim-token-4711"

    async def scenario(served: Served) -> None:
        await served.server.stop()
        served.server = served.serve(token)
        await served.server.start()
        wrong = (
            "",
            "Bearer",
            "Bearer ",
            f"Bearer {token}x",
            f"Bearer {token[:-1]}",
            f"Basic {token}",
            token,
            "Bearer ß",
        )
        for shown in wrong:
            status, _, text = await served.get("/shards", headers={"Authorization": shown} if shown else {})
            assert (status, served.headers["WWW-Authenticate"]) == (401, 'Bearer realm="segmenter"'), shown
            assert token not in text
        for scheme in ("Bearer", "bearer"):
            found = await served.get("/shards", headers={"Authorization": f"{scheme} {token}"})
            assert found[0] == 200
            assert found[1].startswith("application/json")
            assert found[2] == '[{"shard":3}]\n'
        for path in ("/metrics", "/healthz"):
            assert (await served.get(path))[0] == 200
        assert (await served.get("/shards", headers={"Authorization": "Bearer " + "x" * 9000}))[0] == 400

    run(scenario)


def test_nothing_else_is_served() -> None:
    """Other paths are not found, other methods not allowed; HEAD works for probes."""

    async def scenario(served: Served) -> None:
        assert (await served.get("/"))[0] == 404
        assert (await served.get("/healthz/x"))[0] == 404
        assert (await served.get("/metrics", "POST"))[0] == 405
        assert (await served.get("/readyz", "DELETE"))[0] == 405
        assert (await served.get("/healthz", "HEAD"))[0] == 200

    run(scenario)


def test_the_address_is_told() -> None:
    """Port 0 takes any free one, and the address says which."""

    async def scenario(served: Served) -> None:
        host, _, port = served.server.address.partition(":")
        assert host == LOOPBACK
        assert int(port) > 0

    run(scenario)


def test_an_address_that_is_taken_is_a_sentence() -> None:
    """It names the address and the setting."""

    async def scenario(served: Served) -> None:
        port = int(served.server.address.partition(":")[2])
        second = HttpServer(LOOPBACK, port, idle_seconds=lambda: 0.0, stall_after=60.0, ready=lambda: True)
        try:
            with pytest.raises(ConfigurationError) as told:
                await second.start()
        finally:
            await second.stop()
        assert str(told.value).startswith(f"cannot listen on {LOOPBACK}:{port} (")
        assert "SEGMENTER_HTTP_PORT" in str(told.value)

    run(scenario)


def test_stop_frees_the_port() -> None:
    """After stop nobody listens; stopping a server that never started is harmless."""

    async def scenario(served: Served) -> None:
        port = int(served.server.address.partition(":")[2])
        await served.server.stop()
        again = HttpServer(LOOPBACK, port, idle_seconds=lambda: 0.0, stall_after=60.0, ready=lambda: True)
        await again.start()
        assert again.address == f"{LOOPBACK}:{port}"
        await again.stop()
        await HttpServer(LOOPBACK, 0, idle_seconds=lambda: 0.0, stall_after=1.0, ready=lambda: True).stop()

    run(scenario)
