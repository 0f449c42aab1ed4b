"""Learning survives crashes, and labels bear the version that is in force: workers as processes, brokers, a Redis."""

import json
import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from models.clusters import ClusterModel
from models.instants import format_instant, parse
from models.policy import default_policy_text, parse_policy
from streams.embedded.stack import EmbeddedStack
from streams.generator import Population, generate
from streams.recorded import recorded_event
from streams.replay import Replay
from streams.settings import Settings
from streams.store.memory import MemoryStore
from streams.store.redis import RedisStore
from streams.trainer import Trainer
from tests.support.commands import Worker, eventually, output_of
from tests.support.fleet import fleet
from tests.support.real_kafka import RealKafka
from tests.support.real_redis import RealRedis, RedisUnavailable
from tests.support.samples import DAY, recorded, values
from tests.support.stored import stored
from tests.support.together import Told, telling
from tests.support.topics import Topics, distinct, undecided

SAMPLES = "cluster-samples"
DAYS, SHARDS = 160, 2
#: A few hundred draws of two dimensions, of which one is twice there.
LOG = [
    *values(recorded(DAYS, SHARDS, sample=200)),
    *values(recorded(9, SHARDS, dimension="größe")),
    *values(recorded(9, SHARDS, dimension="größe")),
]


def _undisturbed() -> MemoryStore:
    """What one trainer in this process makes of the log."""
    store = MemoryStore()
    trainer = Trainer(store)
    trainer.load()
    trainer.learn(0, len(LOG), LOG)
    return store


def learning_survives(settings: Mapping[str, str], topics: Topics, store: RedisStore, folder: Path, kills: int) -> None:
    """A worker that is killed while it reads a log learns from it as one that was never disturbed."""
    rng, parts = random.Random(1), iter(zip(range(0, len(LOG), 33), range(33, len(LOG) + 33, 33), strict=True))
    interrupted = 0
    # Without events no shard's time begins, and so none of them draws anything itself.
    with Worker(folder, {**settings, "SEGMENTER_CLOCK": "event"}) as worker:
        for _ in range(kills):
            start, end = next(parts)
            dies_at = rng.randrange(start + 1, end - 1)
            for at in range(start, end):
                topics.send(SAMPLES, LOG[at], b"cluster", 0)
                topics.flush()
                if at == start:
                    eventually(lambda at=at: (store.learners()[0] or 0) > at, 60, f"it has learned {at} draws")
                elif at == dies_at:
                    worker.kill()
                    interrupted += (store.learners()[0] or 0) <= at
            worker.start()
        for part in parts:
            for value in LOG[slice(*part)]:
                topics.send(SAMPLES, value, b"cluster", 0)
        topics.flush()
        eventually(lambda: store.learners()[0] == len(LOG), 60, "everything is learned")
        assert interrupted > kills // 3, "it was never killed while it learned"
        wanted = _undisturbed()
        assert dict(store.learners()[1]) == dict(wanted.learners()[1])
        for day in range(DAYS + 2):
            assert store.learned_model("cluster", day * DAY) == wanted.learned_model("cluster", day * DAY)
        assert "Traceback" not in worker.log
        code, _ = worker.terminate(15)
        assert code == 0, worker.log


def on_the_embedded_broker(folder: Path) -> None:
    """Whose topics have four partitions, of which the others stay empty; ten times it is killed on Kafka itself."""
    with EmbeddedStack(Settings()) as stack, Topics(stack.broker.address) as topics:
        settings = {**stack.environment(), "SEGMENTER_SESSION_TIMEOUT": "3"}
        learning_survives(settings, topics, RedisStore(stack.redis.url, "segmenter"), folder, kills=3)


#: The default policy, learning each day from few.
DAILY = (
    default_policy_text()
    .replace('every = "7d"', 'every = "1d"')
    .replace('settle = "10m"', 'settle = "1m"')
    .replace("clusters = 5\n", "clusters = 3\n")
    .replace("sample = 1000 ", "sample = 150 ")
)


def labels_bear_the_version_in_force(folder: Path) -> None:
    """While two workers label customers, versions follow each other: each change is of the one that it names.

    It is the one that the shard had at the time, the label follows from it and from what the change says about the
    customer, and a replay of the same events finds the same changes.
    """
    events: list[Mapping[str, Any]] = [*generate(Population(customers=500, days=40, seed=11))]
    last = max(parse(event["occurred_at"]) for event in events)
    events.append({"kind": "tick", "occurred_at": format_instant(last + DAY)})
    policy = folder / "daily.toml"
    policy.write_text(DAILY)
    with EmbeddedStack(Settings()) as stack, Topics(stack.broker.address) as topics, stored(stack.redis.url) as state:
        settings = {
            **stack.environment(),
            "SEGMENTER_POLICY": str(policy),
            "SEGMENTER_CLOCK": "event",
            "SEGMENTER_SESSION_TIMEOUT": "3",
            "SEGMENTER_BATCH_SIZE": "50",
        }
        with Worker(folder, settings, "one") as one, Worker(folder, settings, "other") as other:
            one.ready()
            other.ready()
            topics.put(events)
            eventually(lambda: state.settled(topics), 120, "the events are folded")
            told = distinct(topics.changes())
            assert "cutoffs_missing" not in one.log + other.log
        found = [change for change in told if change["dimension"] == "cluster"]
        models = _models(RedisStore(stack.redis.url, "segmenter"), found)
        assert len(models) > 20
        assert {change["cause"] for change in found} >= {"purchase", "time", "model"}
        assert {change["model_version"] for change in told if change["dimension"] != "cluster"} == {None}
        for change in found:
            model = models[change["population_as_of"]]
            assert change["model_version"] == model.version, change
            assert change["effective_at"] >= format_instant(model.as_of + 60_000_000), change
            assert change["to"] == _nearest(model, change), change
        replayed = Replay(parse_policy(DAILY), 4)
        for _ in replayed.feed(recorded_event(json.dumps(each).encode(), "events", n) for n, each in enumerate(events)):
            pass
        assert undecided(told) == undecided(replayed.finish().changes)


def _models(store: RedisStore, changes: Iterable[Mapping[str, Any]]) -> dict[str, ClusterModel]:
    """The models in force at the changes, by the instant as of which they were taken."""
    instants = {change["population_as_of"] for change in changes}
    return {as_of: ClusterModel.parse(store.learned_model("cluster", parse(as_of)) or b"") for as_of in instants}


def _nearest(model: ClusterModel, change: Mapping[str, Any]) -> str:
    """The cluster of a customer, by the published numbers and no code of the project's."""
    rfm = change["rfm"]
    values = [rfm["recency_days"], rfm["frequency"], float(rfm["monetary"])]
    logs = [math.copysign(math.log1p(abs(value)), value) for value in values]
    point = [(log - mean) / scale for log, mean, scale in zip(logs, model.mean, model.scale, strict=True)]
    apart = [math.dist(point, centre) for centre in model.centres]
    return f"c{apart.index(min(apart)) + 1}"


STORIES = (on_the_embedded_broker, labels_bear_the_version_in_force)

told = telling(STORIES, at_once=2)


@pytest.mark.slow
@pytest.mark.parametrize("story", [story.__name__ for story in STORIES])
def test_learning(story: str, told: Told) -> None:
    """The story comes out as it says it does."""
    told[story].result()


@pytest.mark.kafka
@pytest.mark.slow
def test_learning_on_kafka(kafka: RealKafka, tmp_path: Path) -> None:
    """The worker that learns is killed ten times, and the learners are those of one that was never disturbed."""
    names = fleet("learning")
    try:
        with RealRedis() as redis, Topics(kafka.address, prefix="learning.") as topics:
            settings = {"SEGMENTER_BROKER": kafka.address, "SEGMENTER_REDIS": redis.url, **names}
            output_of("topics", "create", settings=settings)
            learning_survives(settings, topics, RedisStore(redis.url, "learning"), tmp_path, kills=10)
    except RedisUnavailable as unavailable:
        pytest.skip(str(unavailable))
