"""The worker as a Faust application and a Faust worker: what starts, is watched, and stops together."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import Any

import faust
from yarl import URL

from models.errors import SegmenterError
from streams import memory, metrics
from streams.api import HttpServer
from streams.kafka.agents import declare_agents
from streams.kafka.transport import BatchTransport
from streams.security import Refusals, faust_credentials
from streams.settings import Settings
from streams.shards import Shards
from streams.watchdog import STALLED, Watchdog, end_process

log = logging.getLogger(__name__)

#: Seconds between looks after the shards.
_WATCH_EVERY = 0.5
#: Seconds for which what shards have given up may stay in memory.
_TIDY_EVERY = 15.0


class Worker(faust.Worker):
    """Faust's worker, with our logging, and a bound on how long stopping may take."""

    def __init__(self, app: SegmenterApp, *args: Any, **kwargs: Any) -> None:
        super().__init__(app, *args, **kwargs)
        self.spinner = None
        # Faust's command line turns its own web server on, on one port for every worker of a host. We have ours.
        app.conf.web_enabled = False

    def _setup_logging(self) -> None:
        set_up_logging(self.app.settings.log_level)

    def _on_sigint(self) -> None:
        self._on_sigterm()

    def _on_sigterm(self) -> None:
        self.app.watchdog.stop_within(self.app.settings.stop_within)
        super()._on_sigterm()


def set_up_logging(level: str) -> None:
    """Log to standard error; the libraries only say what went wrong."""
    logging.basicConfig(
        level=level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        force=True,
    )
    if level != "debug":
        for library in ("aiokafka", "faust", "mode", "kafka", "asyncio"):
            logging.getLogger(library).setLevel(logging.ERROR)
    else:
        # It writes out every request, the login with SASL PLAIN and its password among them.
        logging.getLogger("aiokafka.conn").setLevel(logging.INFO)


class SegmenterApp(faust.App):
    """Faust's App on the batching transport, which stops its shards before it stops its consumer."""

    def __init__(self, settings: Settings, shards: Shards, partitions: int, refusals: Refusals) -> None:
        self.settings = settings
        self.shards = shards
        self._partitions = partitions
        self._refusals = refusals
        memory.collect_seldom()
        self._assigned_once = False
        self.watchdog = Watchdog(shards.last_progress, settings.stall_after)
        self.http = HttpServer(
            settings.http_host,
            settings.http_port,
            idle_seconds=self.watchdog.idle_seconds,
            stall_after=settings.stall_after,
            ready=lambda: self._assigned_once and not self.rebalancing,
            token=settings.http_token.get_secret_value(),
            shards=shards.overview,
        )
        session = settings.session_timeout
        super().__init__(
            settings.group,
            broker_credentials=faust_credentials(settings),
            broker=[URL(f"kafka://{server.strip()}") for server in settings.broker.split(",")],
            store="memory://",
            Worker=Worker,
            web_enabled=False,
            web_bind="127.0.0.1",
            topic_allow_declare=False,
            topic_disable_leader=True,
            broker_commit_interval=1.0,
            broker_session_timeout=session,
            broker_heartbeat_interval=session / 6,
            broker_request_timeout=max(30.0, session + 5),
            broker_rebalance_timeout=max(30.0, session),
            # How soon added partitions are seen: until then, some customers' events go where they do not belong.
            consumer_metadata_max_age_ms=5_000,
            # A message is a whole fetch: 16 of them are plenty.
            stream_buffer_maxsize=16,
            stream_wait_empty=False,
            worker_redirect_stdouts=False,
        )
        declare_agents(self, shards, settings.topics, settings.samples_topic)

    def _new_transport(self) -> BatchTransport:
        return BatchTransport(self.conf.broker_consumer, self)

    async def on_first_start(self) -> None:
        """Faust would create a data directory here; everything kept is in Redis."""

    async def on_start(self) -> None:
        """Answer on HTTP, begin to watch, and let the shards know who fetches for them."""
        await super().on_start()
        self._refusals.listen()
        self.shards.attach(self.consumer, self._partitions)
        try:
            await self.http.start()
        except SegmenterError as error:
            self.fail(error)
        self.watchdog.start()
        self.add_future(self._keep_watch())
        self.add_future(self._keep_following())
        self.add_future(self._keep_tidy())
        log.info("worker of group %s, metrics at http://%s/metrics", self.settings.group, self.http.address)

    async def _keep_watch(self) -> None:
        while not self.should_stop:
            self.watchdog.beat()
            metrics.LAST_PROGRESS.set(time.time() - self.watchdog.idle_seconds())
            try:
                self._refusals.check()
                await self.consumer.check()
                self.shards.watch(joined=self._assigned_once and not self.rebalancing)
            except Exception as error:
                self.fail(error)
            await self.sleep(_WATCH_EVERY)

    async def _keep_following(self) -> None:
        # On its own: Redis may take its time to say that it is not there.
        while not self.should_stop:
            try:
                await self.shards.follow()
            except Exception as error:
                self.fail(error)
            await self.sleep(_WATCH_EVERY)

    async def _keep_tidy(self) -> None:
        while not self.should_stop:
            await self.sleep(_TIDY_EVERY)
            await asyncio.to_thread(memory.tidy)

    def on_rebalance_end(self) -> None:
        """The worker has its share of the partitions, which may be none."""
        super().on_rebalance_end()
        self._assigned_once = True

    def fail(self, error: BaseException) -> None:
        """End the worker: with a sentence if somebody can mend it, with a traceback if it is a bug."""
        if isinstance(error, SegmenterError):
            end_process(1, str(error))
        log.critical("this is a bug in segmenter", exc_info=error)
        end_process(STALLED, f"ended by a bug: {error!r}")

    async def on_stop(self) -> None:
        """Finish and publish what is under way, tell Kafka how far we are, then stop as Faust does."""
        await self.shards.stop(self.settings.stop_within / 2)
        if self._consumer is not None and self._consumer.started:
            await self._consumer.commit()
        await super().on_stop()
        await self.http.stop()
        self.watchdog.stop()
