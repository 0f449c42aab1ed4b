"""``demo``: broker, Redis, topics, one worker and generated customers, in about a minute."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from models.changes import SegmentChanged
from models.money import Converter
from streams.clusters import clusterings
from streams.commands.inspect import latest_activation, stored_policy
from streams.commands.produce import produce_events
from streams.commands.show import table
from streams.commands.subscribe import read_topic, sentence, without_repeats
from streams.customers import segment_sizes
from streams.embedded.server import LOOPBACK, OwnedProcess, free_ports
from streams.embedded.stack import EmbeddedStack
from streams.errors import ServiceUnavailable
from streams.generator import Population, generate
from streams.recorded import recorded_event
from streams.replay import replay
from streams.security import client_options
from streams.settings import Settings, load_settings
from streams.store.redis import RedisStore

_READY_WITHIN: Final = 30.0
_CAUGHT_UP_WITHIN: Final = 240.0


@click.command()
@click.option("--customers", type=click.IntRange(1, 100_000), default=2000, show_default=True, help="how many")
@click.option("--days", type=click.IntRange(120, 900), default=540, show_default=True, help="of their lives")
@click.option("--seed", type=int, default=1, show_default=True, help="the same seed gives the same events")
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=15.0, show_default=True, help="to play them in")
def demo(customers: int, days: int, seed: int, seconds: float) -> None:
    """See it work: everything in one process tree, on generated customers.

    Starts a broker, a Redis and one worker on loopback, lets customers sign up, buy and fall silent in accelerated
    time, and shows the segment changes that come out. Nothing is left behind.
    """
    events = list(generate(Population(customers=customers, days=days, acquisition_days=days // 2, seed=seed)))
    click.echo(f"{len(events)} events of {customers} generated customers over {days} days (seed {seed})")
    with ExitStack() as running:
        base = load_settings()
        stack = running.enter_context(EmbeddedStack(base))
        settings = base.model_copy(update={"broker": stack.broker.address})
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="segmenter-demo-")))
        worker, http = _start_worker(stack, folder, running)
        click.echo(f"broker {stack.broker.address}, redis {stack.redis.address}, metrics http://{http}/metrics")
        store = RedisStore(stack.redis.url, settings.namespace)
        running.callback(store.close)
        began = time.monotonic()
        changes = _play(events, settings, store, len(events) / seconds)
        elapsed = time.monotonic() - began
        worker.stop()
        _report(changes, store, events, elapsed)


def _start_worker(stack: EmbeddedStack, folder: Path, running: ExitStack) -> tuple[OwnedProcess, str]:
    """A worker as a process of its own, ready. Raises ServiceUnavailable."""
    (port,) = free_ports(1)
    options = {
        "--broker": stack.broker.address,
        "--redis": stack.redis.url,
        "--clock": "event",
        "--http-port": str(port),
        "--log-level": "warning",
    }
    command = [sys.executable, "-m", "streams.cli", "worker", *(part for pair in options.items() for part in pair)]
    log = folder / "worker.log"
    worker = running.enter_context(OwnedProcess(command, log))
    deadline = time.monotonic() + _READY_WITHIN
    while time.monotonic() < deadline and worker.running:
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/readyz", timeout=1):
                return worker, f"{LOOPBACK}:{port}"
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise ServiceUnavailable(f"the worker did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _play(events: list[dict[str, Any]], settings: Settings, store: RedisStore, rate: float) -> list[dict[str, Any]]:
    """Produce the events while subscribing to the changes; returns the changes once everything is processed."""
    changes: list[dict[str, Any]] = []
    progress = {"produced": 0}
    failure: list[BaseException] = []
    recorded = [recorded_event(orjson.dumps(event), "generator", line) for line, event in enumerate(events, start=1)]

    def produce() -> None:
        try:
            for progress["produced"] in produce_events(recorded, settings, rate=rate):
                pass
        except BaseException as error:
            failure.append(error)

    def subscribe() -> None:
        topic = settings.changes_topic
        for change in without_repeats(read_topic(settings, topic, from_beginning=True, follow=True)):
            changes.append(change)

    producer = threading.Thread(target=produce, daemon=True)
    threading.Thread(target=subscribe, daemon=True).start()
    producer.start()
    for _ in _shown(producer, len(events), progress, changes):
        if failure:
            raise failure[0]
    deadline = time.monotonic() + _CAUGHT_UP_WITHIN
    while not _caught_up(settings, store) or len(changes) < _published(settings):
        if time.monotonic() > deadline:
            raise ServiceUnavailable("the worker did not catch up; see the settings of the demo's worker")
        time.sleep(0.1)
    return changes


def _shown(
    producer: threading.Thread, total: int, progress: dict[str, int], changes: list[dict[str, Any]]
) -> Iterator[None]:
    """Live progress while the producer runs: a bar on a terminal, a line every few seconds elsewhere."""
    console = Console()
    last = time.monotonic()
    columns = (
        TextColumn("{task.fields[at]}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} events → {task.fields[changes]:,} changes, {task.fields[lapsed]:,} lapses"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, at="", changes=0, lapsed=0)
        while producer.is_alive():
            yield
            time.sleep(0.1)
            lapsed = sum(change["to"] == "lapsed" for change in list(changes))
            at = changes[-1]["effective_at"][:10] if changes else "starting"
            bar.update(task, completed=progress["produced"], at=at, changes=len(changes), lapsed=lapsed)
            if not console.is_terminal and time.monotonic() - last > 3:
                last = time.monotonic()
                click.echo(f"{at}  {progress['produced']} events → {len(changes)} changes, {lapsed} of them lapses")
    yield


def _ends(settings: Settings, topic: str) -> dict[int, int]:
    from confluent_kafka import Consumer, TopicPartition

    from streams.kafka.topics import partitions_by_topic

    count = partitions_by_topic(settings, [topic])[topic]
    consumer = Consumer({**client_options(settings), "group.id": "segmenter-demo"})
    try:
        return {
            partition: consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)[1]
            for partition in range(count)
        }
    finally:
        consumer.close()


def _published(settings: Settings) -> int:
    return sum(_ends(settings, settings.changes_topic).values())


def _caught_up(settings: Settings, store: RedisStore) -> bool:
    for role, topic in settings.topics.items():
        for partition, end in _ends(settings, topic).items():
            header = store.header(partition)
            if header.offsets.get(role, 0) < end or header.entries:
                return False
    return True


def _replayed(events: list[dict[str, Any]]) -> tuple[list[SegmentChanged], float]:
    """The same events through the same processor in this process, and how many a second that was."""
    began = time.perf_counter()
    changes = replay(events, until=events[-1]["occurred_at"])
    return changes, len(events) / (time.perf_counter() - began)


def _show_clusters(store: RedisStore) -> None:
    """The groups that nobody defined, as the worker has learned them meanwhile."""
    activation = latest_activation(store)
    for each in clusterings(store, store.partitions() or 0, stored_policy(store, activation), activation):
        if each.model is None:
            click.echo(f"{each.dimension}: {each.missing}\n")
            continue
        columns = ["cluster", "which is", "customers %", "revenue %"]
        rows = [
            (
                *(cluster.label, f"{cluster.title}: {cluster.description}"),
                *("–" if share is None else f"{100 * share:.1f}" for share in (cluster.share, cluster.revenue_share)),
            )
            for cluster in each.clusters
        ]
        title = f"clusters that were learned: version {each.model.version}, from {each.model.samples} samples"
        table(title, columns, rows, numbers=columns[2:])


def _report(changes: list[dict[str, Any]], store: RedisStore, events: list[dict[str, Any]], elapsed: float) -> None:
    sizes, currency = segment_sizes(store, store.partitions() or 0)
    money = Converter(currency or "USD", {})
    table(
        "segments now",
        ["segment", "customers", f"revenue ({currency})"],
        [(name, size.customers, money.text(size.revenue)) for name, size in sizes.items() if size.customers],
        numbers=["customers", f"revenue ({currency})"],
    )
    _show_clusters(store)
    moves = Counter((change["dimension"], change["cause"]) for change in changes)
    rows = [(*move, count) for move, count in sorted(moves.items())]
    table("changes", ["dimension", "cause", "changes"], rows, numbers=["changes"])
    click.echo("some changes, with their causes:")
    shown = {(change["dimension"], change["cause"]): change for change in changes}
    for _, change in sorted(shown.items()):
        click.echo(f"  {sentence(change)}")
    replayed, rate = _replayed(events)
    same = {change["change_id"] for change in changes} == {change["change_id"] for change in replayed}
    click.echo(
        f"\n{len(events)} events became {len(changes)} changes in {elapsed:.1f} s of accelerated time.\n"
        f"Replayed in process, the same events give {'the same' if same else 'OTHER'} changes, "
        f"at {rate:,.0f} events a second."
    )
    if not same:
        raise ServiceUnavailable("the worker's changes differ from the replay's; please report this with the seed")
    click.echo(
        "\nNext:\n"
        "  segmenter stack                        keep a broker and a Redis running, and try the rest by hand\n"
        "  segmenter replay FILE --changes OUT    what would your own events have caused?\n"
        "  segmenter clusters --plot FILE.png     draw the clusters that were learned\n"
        "  segmenter worker --help                every setting of a worker\n"
        "  README.md                              topics, an example change, operating it"
    )
