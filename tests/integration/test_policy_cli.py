"""``segmenter policy`` against a real Redis, filled by the processor that workers run; no Kafka is needed."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from click.testing import CliRunner

from models.events import ROLE_OF_KIND, ROLES
from models.instants import FOREVER
from models.partitioner import partition_of
from models.policy import Policy, parse_policy
from streams.activations import Activations
from streams.cli import cli
from streams.commit import Range
from streams.errors import ServiceUnavailable
from streams.generator import Population, generate
from streams.processor import BatchProcessor, Clock, Shard
from streams.store.redis import RedisStore
from tests.support.commands import segmenter
from tests.support.real_redis import RealRedis
from tests.unit.build import Rec, record

SHARDS = 3
OLD = """version = 1
[attributes]
keep = ["country"]
[dimensions.lifecycle]
engine = "lifecycle"
[dimensions.region]
engine = "attribute"
of = "country"
groups = { us = ["US"], dach = ["DE", "AT", "CH"] }
"""
NEW = """version = 2
[attributes]
keep = ["country"]
[dimensions.lifecycle]
engine = "lifecycle"
lapse_after = "50d"
[dimensions.region]
engine = "attribute"
of = "country"
groups = { us = ["US"], dach = ["DE", "AT", "CH"] }
[dimensions.spend]
engine = "bands"
of = "average_order"
bands = { low = 0, high = 20 }
profiles = { high = { title = "Big baskets", channel = "phone" } }
"""


class Scene(NamedTuple):
    """A Redis with the customers of three shards under OLD, their processors, and both policies as files."""

    settings: dict[str, str]
    store: RedisStore
    client: redis.Redis
    processors: list[BatchProcessor]
    old: Path
    new: Path

    def dump(self) -> dict[bytes, Any]:
        """Everything that Redis holds."""
        return {key: self.client.hgetall(key) for key in self.client.scan_iter()}


@pytest.fixture(scope="module")
def server() -> Iterator[RealRedis]:
    try:
        with RealRedis(aof=False) as running:
            yield running
    except ServiceUnavailable as unavailable:
        pytest.skip(str(unavailable))


@pytest.fixture
def scene(server: RealRedis, tmp_path: Path) -> Iterator[Scene]:
    settings = {"SEGMENTER_REDIS": server.url, "SEGMENTER_CLOCK": "event"}
    old, new = tmp_path / "old.toml", tmp_path / "new.toml"
    old.write_text(OLD)
    new.write_text(NEW)
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        store = RedisStore(server.url, "segmenter")
        yield Scene(settings, store, client, filled(store, parse_policy(OLD)), old, new)
        store.close()


def filled(store: RedisStore, policy: Policy) -> list[BatchProcessor]:
    """Processors that have folded half a year of customers, each shard's in one batch."""
    store.register(SHARDS, "segmenter")
    records: list[list[tuple[str, Rec]]] = [[] for _ in range(SHARDS)]
    for event in generate(Population(customers=120, days=180, seed=4)):
        home = records[partition_of(event["customer_id"].encode(), SHARDS)]
        home.append((ROLE_OF_KIND[event["kind"]], record(event, len(home))))
    processors = []
    for number, mine in enumerate(records):
        shard = Shard(number, SHARDS, {role: role for role in ROLES})
        processor = BatchProcessor(shard, Activations(store, policy), store, Clock.EVENT)
        processor.load(dict.fromkeys(ROLES, 0), {})
        for role in ROLES:
            batch, refused = processor.read(role, [each for other, each in mine if other == role], FOREVER)
            assert not refused
            processor.commit(processor.fold(batch, (), {role: Range(0, len(mine))}))
        processors.append(processor)
    return processors


def output_of(*arguments: str, settings: dict[str, str]) -> str:
    """What a command that must succeed writes to its standard output."""
    result = CliRunner().invoke(cli, arguments, env=settings, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def follow(processors: list[BatchProcessor]) -> Counter[tuple[str, ...]]:
    """What workers do when a policy is activated; the moves they make."""
    moves: Counter[tuple[str, ...]] = Counter()
    for processor in processors:
        processor.activations.refresh()
        step = processor.follow()
        assert step is not None
        processor.commit(step)
        processor.load({}, {})
        while (step := processor.advance(processor.time, 10)) is not None:
            processor.commit(step)
            moves.update(map(move, step.outcome.published))
    return moves


def move(change: Any) -> tuple[str, ...]:
    return change["customer_id"], change["dimension"], str(change["from"]), str(change["to"])


def test_what_diff_says_is_what_apply_does(scene: Scene, tmp_path: Path) -> None:
    """diff --live writes nothing to Redis, and predicts every move that follows."""
    out, before = tmp_path / "changes.ndjson", scene.dump()
    args = ("policy", "diff", str(scene.new), "--live")
    table = output_of(*args, "--changes", str(out), settings=scene.settings)
    found = json.loads(output_of(*args, "--json", settings=scene.settings))
    assert scene.dump() == before
    assert (found["active_version"], found["version"], found["customers"]) == (1, 2, 120)
    assert found["dimensions"]["region"]["moves"] == []
    assert f"{found['moving']} of 120 customers would move" in table
    said = output_of("policy", "apply", str(scene.new), "--wait", "0", settings=scene.settings)
    assert "policy version 2 is active (activation 2)" in said
    assert "0 of 3 shards with customers have taken it" in said
    predicted = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(predicted) > 100
    assert follow(scene.processors) == Counter(map(move, predicted))
    figures = [json.loads(line) for line in output_of("segments", "--json", settings=scene.settings).splitlines()]
    high = next(each for each in figures if each["segment"] == "high")
    assert (high["title"], high["channel"]) == ("Big baskets", "phone")
    moved = [each["customers"] for each in found["dimensions"]["spend"]["moves"] if each["to"] == "high"]
    assert [high["customers"]] == moved
    one = json.loads(output_of("customer", predicted[0]["customer_id"], settings=scene.settings))
    assert set(one["reasons"]) == {"lifecycle", "region", "spend"}


def test_apply_waits_for_the_shards(scene: Scene) -> None:
    """Until all have taken the policy; rollback goes back to the one before, and show tells of both."""

    def work() -> None:
        while scene.store.latest_activation() < 2:
            done.wait(0.05)
        follow(scene.processors)

    done = threading.Event()
    worker = threading.Thread(target=work)
    worker.start()
    said = output_of("policy", "apply", str(scene.new), "--wait", "60", "--fire", settings=scene.settings)
    worker.join()
    assert "campaigns may fire" in said
    assert said.endswith("3 of 3 shards with customers have taken it\n")
    assert output_of("policy", "apply", str(scene.new), settings=scene.settings) == (
        "policy version 2 is already active\n"
    )
    assert output_of("policy", "show", "--text", settings=scene.settings) == NEW
    back = output_of("policy", "rollback", "--wait", "0", settings=scene.settings)
    assert "policy version 1 is active (activation 3)" in back
    follow(scene.processors)
    shown = output_of("policy", "show", settings=scene.settings)
    assert shown.startswith("policy version 1, activation 3, since 20")
    assert "3 of 3 shards with customers have taken it" in shown
    figures = [json.loads(line) for line in output_of("segments", "--json", settings=scene.settings).splitlines()]
    assert {each["dimension"] for each in figures} == {"lifecycle", "region"}


def test_refusals_are_sentences(scene: Scene, tmp_path: Path) -> None:
    """With code 1, and nothing is activated."""
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(NEW.replace("50d", "soon"))
    for args, sentence in (
        (("check", str(wrong)), f"{wrong}:6: dimensions.lifecycle.lapse_after: must be a duration"),
        (("apply", str(wrong)), f"{wrong}:6: dimensions.lifecycle.lapse_after: must be a duration"),
        (("rollback",), "no other policy than version 1 was ever active"),
        (("show", "--namespace", "other"), "holds nothing under namespace 'other'"),
    ):
        done = segmenter("policy", *args, settings=scene.settings)
        assert (done.returncode, done.stdout) == (1, b"")
        assert sentence in done.stderr.decode()
        assert "Traceback" not in done.stderr.decode()
    assert scene.store.latest_activation() == 1
