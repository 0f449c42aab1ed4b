"""More partitions: what was not folded is folded as a worker would have, customers move, and the fleet goes on."""

import json
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from models.events import ROLE_OF_KIND, ROLES
from models.instants import NEVER, SECOND
from models.learner import LearnerState
from models.partitioner import partition_of
from models.policy import Policy
from streams.activations import Activations
from streams.clock import CLOCK
from streams.commands.repartition import require_possible
from streams.customers import customers_of
from streams.errors import ConfigurationError, OffsetGap, StaleOwner
from streams.generator import Population, generate
from streams.kafka.commits import Told
from streams.processor import BatchProcessor, Clock, Shard
from streams.repartition import Commits, Drain, move, widen_learners
from streams.replay import replay
from streams.store.memory import MemoryStore
from tests.support.audited import TOPICS, ListLog
from tests.support.topics import moves
from tests.unit.build import Event, at, make_policy, purchase, tick
from tests.unit.fakes import FakePublisher
from tests.unit.test_processor_population import ABC, RFM

SAMPLES = "cluster-samples"
KIND = """
[dimensions.kind]
engine = "cluster"
clusters = 2
features = ["recency_days", "orders"]
"""


class Stage:
    """A fleet whose workers do what a drain does: fold each shard's topics to their end."""

    def __init__(self, policy: Policy | None = None, partitions: int = 2, clock: Clock = Clock.EVENT) -> None:
        self.policy, self.clock, self.partitions = policy or make_policy(), clock, partitions
        self.store, self.publisher = MemoryStore(), FakePublisher()
        self.log = ListLog(dict.fromkeys(TOPICS.values(), partitions), most=20)
        to_samples = SimpleNamespace(draw=lambda value: self.log.put(SAMPLES, None, value, 0))
        self.publisher.kafka = cast(Any, to_samples)

    def put(self, events: Iterable[Event], timestamp: int | None = None, partitions: int | None = None) -> None:
        """Produce events where producers put them that know of so many partitions; a tick goes to all."""
        count = partitions or self.partitions
        for event in events:
            topic, value, key = ROLE_OF_KIND[event["kind"]], json.dumps(event).encode(), event.get("customer_id")
            for place in range(count) if key is None else [partition_of(key.encode(), count)]:
                stamp = {} if timestamp is None else {"timestamp": timestamp // 1000}
                self.log.put(topic, key and key.encode(), value, place, **stamp)

    def drain(self, commits: Commits | None = None) -> None:
        """Bring every shard to the end of its topics."""
        activations = Activations(self.store, self.policy)
        drain = Drain(
            self.store, activations, self.log, self.publisher, self.clock, 50, commits or {}, SAMPLES
        )  # fmt: skip
        shards = [Shard(number, self.partitions, TOPICS) for number in range(self.partitions)]
        assert sorted(drain.every(shards)) == list(range(self.partitions))

    def move(self, partitions: int, token: str = "t") -> int:
        """Move customers to more shards."""
        for shard in range(partitions):
            self.store.claim(shard, token)
        old, self.partitions = self.partitions, partitions
        moved = sum(move(self.store, shard, old, partitions, token) for shard in range(old))
        widen_learners(self.store, old, partitions)
        return moved

    def customers(self) -> dict[str, Any]:
        """Every customer, and that each is where it belongs."""
        found = {}
        for shard in range(self.partitions):
            for customer in customers_of(self.store, shard):
                name = str(customer["customer_id"])
                assert partition_of(name.encode(), self.partitions) == shard
                assert name not in found
                found[name] = customer
        return found


def parts(seed: int, customers: int = 60, days: int = 200) -> tuple[list[Event], list[Event]]:
    """Two parts of a story, each of which ends with a tick, so that all shards are where the last event is."""
    events = list(generate(Population(customers=customers, days=days, seed=seed)))
    cut = len(events) * 2 // 3
    found = []
    for part in (events[:cut], events[cut:]):
        found.append([*part, {"kind": "tick", "occurred_at": part[-1]["occurred_at"]}])
    return found[0], found[1]


@pytest.mark.parametrize("more", ["", ABC + RFM, KIND], ids=["lifecycle", "population", "clusters"])
def test_a_fleet_that_grows_tells_what_a_replay_tells(more: str) -> None:
    """Each shard of several, 2 → 4 → 8: the same changes, the same customers, the same cut-offs and clusters."""
    policy = make_policy(more=more)
    first, second = parts(3, *((150, 60) if more == KIND else (60, 200)))
    stage = Stage(policy)
    stage.put(first)
    stage.drain()
    before = stage.customers()
    moved = stage.move(4)
    assert stage.customers() == before
    assert 0 < moved == sum(partition_of(name.encode(), 4) > 1 for name in before)
    assert stage.move(8) > 0
    assert stage.customers() == before
    stage.log._partitions.update(dict.fromkeys(TOPICS.values(), 8))
    stage.put(second)
    stage.drain()
    replayed = replay([*first, *second], policy=policy)
    assert moves(stage.publisher.changes) == moves(replayed)
    assert len(stage.publisher.once()) == len(stage.publisher.changes)
    assert not any(stage.store.header(shard).entries for shard in range(8))
    if more == KIND:
        offset, learners = stage.store.learners()
        learner = LearnerState.parse(learners["kind"])
        assert (learner.shards, offset) == (8, stage.log.bounds(SAMPLES, 0)[1])
        assert learner.version > 1
        assert not learner.pending


def test_shards_that_are_not_equally_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes to its end before the others is not waited for, and nobody waits for ever."""
    stage = Stage(make_policy(more=ABC))
    names = [f"c{i}" for i in range(40)]
    ahead, behind = ([n for n in names if partition_of(n.encode(), 2) == shard] for shard in (0, 1))
    stage.put(purchase(name, f"{name}-{day}", at(day)) for day in range(0, 70, 5) for name in ahead)
    stage.put(purchase(name, f"{name}-{day}", at(day)) for day in range(0, 30, 5) for name in behind)
    stage.drain()
    as_of = stage.store.activation(stage.store.latest_activation()).cutoffs.as_of
    assert at(14) < as_of <= at(30)
    stage.move(4)
    stage.log._partitions.update(dict.fromkeys(TOPICS.values(), 4))
    stage.put([tick(at(90))])
    stage.drain()
    assert stage.store.activation(stage.store.latest_activation()).cutoffs.as_of > at(80)
    assert len(stage.customers()) == 40


# What is history


@pytest.mark.parametrize("restored", [False, True])
def test_what_was_told_before_redis_came_back_older_is_history(*, restored: bool) -> None:
    """Below Kafka's commit, and before the instant that it names, nothing is news."""
    stage = Stage(partitions=1)
    stage.put([purchase("a", "1", at(0)), purchase("b", "2", at(91)), purchase("c", "3", at(200))])
    commits = {(topic, 0): (0, Told()) for topic in TOPICS.values()}
    if restored:
        commits = {(topic, 0): (2 if topic == "purchases" else 0, Told(at(150))) for topic in TOPICS.values()}
    stage.drain(commits)
    told = [(change["customer_id"], change["to"], change["backfill"]) for change in stage.publisher.changes]
    assert told == [
        ("a", "new", restored), ("a", "lapsed", restored), ("b", "new", restored), ("b", "lapsed", False),
        ("c", "new", False),
    ]  # fmt: skip


def test_a_shard_that_no_worker_ever_had_is_history() -> None:
    """As at a first start."""
    stage = Stage(partitions=1)
    stage.put([purchase("a", "1", at(0))])
    stage.drain()
    assert [change["backfill"] for change in stage.publisher.changes] == [True]


def test_what_kafka_has_deleted_is_no_empty_history() -> None:
    """A gap is told, as to a worker."""
    stage = Stage(partitions=1)
    stage.put([purchase("a", "1", at(0)), purchase("a", "2", at(1))])
    stage.drain()
    stage.log.first["purchases", 0] = 1
    stage.store._shard(0).offsets["purchases"] = 0
    with pytest.raises(OffsetGap, match="Kafka has deleted everything below 1"):
        stage.drain()


def test_a_record_from_the_future_does_not_move_time() -> None:
    """Under the ingestion clock a timestamp ahead of the present is refused, as a worker refuses it."""
    stage = Stage(partitions=1, clock=Clock.INGESTION)
    now = CLOCK.instant()
    for number, stamp in enumerate((now - 10 * SECOND, now + 86_400 * SECOND)):
        stage.put([purchase("a", f"e{number}", now - 60 * SECOND)], stamp)
    stage.drain()
    assert [letter["code"] for letter in stage.publisher.dead_letters] == ["recorded_ahead"]
    assert (stage.store.header(0).time or 0) <= now


def test_many_lapses_are_committed_in_parts() -> None:
    """So that no commit is larger than Redis takes."""
    stage = Stage(partitions=1)
    stage.put([purchase(f"c{i}", f"e{i}", at(0, i)) for i in range(120)])
    stage.put([tick(at(100))])
    stage.drain()
    assert sum(change["to"] == "lapsed" for change in stage.publisher.changes) == 120
    header = stage.store.header(0)
    assert header.settled == header.time
    assert header.commits > 4


# Moving


def test_what_a_rebuilt_shard_keeps_to_itself_stays_so() -> None:
    """Deadlines that were told before the rebuild are not told of customers that have moved since."""
    stage = Stage(partitions=1)
    stage.put([purchase(f"c{i}", f"e{i}", at(0)) for i in range(9)])
    stage.drain()
    processor = _processor(stage, 0)
    step = processor.advance(at(100))
    assert step is not None
    processor.commit(step)
    stage.store.acknowledge(0, [entry.id for entry in stage.store.header(0).entries])
    assert stage.store.rewind(0, "r", 1)
    stage.drain()
    stage.move(2)
    for shard in range(2):
        processor = _processor(stage, shard)
        assert processor.silent
        step = processor.advance(at(100))
        assert step is not None
        assert step.commit.entry is None
        assert len(step.commit.rows) > 0


def _processor(stage: Stage, shard: int) -> BatchProcessor:
    activations = Activations(stage.store, stage.policy)
    processor = BatchProcessor(Shard(shard, stage.partitions, TOPICS), activations, stage.store, stage.clock)
    processor.load(dict.fromkeys(ROLES, 0), {})
    return processor


def test_to_move_twice_is_to_move_once() -> None:
    """Whatever was interrupted is done again."""
    stage = Stage()
    stage.put(parts(5)[0])
    stage.drain()
    before = stage.customers()
    kept = stage.store.remove_rows
    stage.store.remove_rows = lambda *_: None  # type: ignore[method-assign]
    stage.move(4)  # nobody has left yet
    stage.store.remove_rows = kept  # type: ignore[method-assign]
    stage.partitions = 2
    stage.move(4, "again")
    assert stage.customers() == before
    header = stage.store.header(3)
    assert (header.lineage, dict(header.offsets)) == ("2", dict.fromkeys(ROLES, 0))


def test_whoever_was_forgotten_moves_nobody() -> None:
    """Another command has begun, or a worker has the shard already."""
    stage = Stage()
    stage.put(parts(5)[0])
    stage.drain()
    stage.move(4)
    rows = [row for part in stage.store.rows(0) for row in part]
    _processor(stage, 0)
    for write in (
        lambda: stage.store.spread(0, [2], "2", "t"),
        lambda: stage.store.put_rows(0, rows, "t"),
        lambda: stage.store.remove_rows(0, [rows[0][0]], "t"),
    ):
        with pytest.raises(StaleOwner):
            write()
    assert [row for part in stage.store.rows(0) for row in part] == rows


def test_records_that_lie_by_another_number_are_refused_or_used_once() -> None:
    """4 → 6 → 8: those that are where neither 4 nor 8 puts them are dead letters, and the others count once."""
    names = [f"c{i}" for i in range(60)]
    commits: Commits = {}
    stage = Stage(partitions=4)
    stage.put(purchase(name, f"{name}-1", at(0)) for name in names)
    stage.drain({(topic, p): (0, Told()) for topic in TOPICS.values() for p in range(4)})
    stage.log._partitions.update(dict.fromkeys(TOPICS.values(), 8))
    stage.put((purchase(name, f"{name}-2", at(1)) for name in names), partitions=6)
    stage.drain(commits)
    stage.move(8)
    stage.drain(commits)
    refused = {str(letter["key"]) for letter in stage.publisher.dead_letters}
    assert {letter["code"] for letter in stage.publisher.dead_letters} == {"wrong_partition"}
    assert 0 < len(refused) < len(names)
    assert len(stage.publisher.dead_letters) == len(refused)
    stage.put(purchase(name, f"{name}-2", at(1)) for name in sorted(refused))
    stage.drain(commits)
    assert {customer["orders"] for customer in stage.customers().values()} == {2}
    assert len(stage.customers()) == len(names)


# Which numbers


@pytest.mark.parametrize(
    ("wanted", "counts", "said"),
    [
        (6, (4, 4), ["6 is no multiple", "Take 8"]),
        (6, (6, 4), ["6 is no multiple", "Take 8", "a has 6 already", "dead-letters retry --code wrong_partition"]),
        (2, (4, 4), ["2 is no multiple", "Take 8"]),
        (8, (12, 4), ["a has 12 already", "takes none away", "Take 12"]),
        (8, (4, 2), ["b has 2", "recreated"]),
        (8, (4, 0), ["no topic b", "topics create"]),
    ],
)
def test_impossible_numbers(wanted: int, counts: Sequence[int], said: Sequence[str]) -> None:
    """The sentence says what can be done."""
    with pytest.raises(ConfigurationError) as told:
        require_possible(4, wanted, dict(zip("ab", counts, strict=True)))
    assert [part for part in said if part not in str(told.value)] == []


@pytest.mark.parametrize("counts", [(4, 4), (8, 8), (8, 4), (6, 4), (6, 6), (5, 7)])
def test_possible_numbers(counts: Sequence[int]) -> None:
    """Topics that were given any number meanwhile are given more."""
    require_possible(4, 8, dict(zip("ab", counts, strict=True)))


@pytest.mark.parametrize(
    ("text", "told"),
    [("", Told()), (None, Told()), ("5", Told(5)), ("5 4", Told(5, "4")), ("-4611686018427387904 4", Told(NEVER, "4")),
     ("of another tool", Told())],
)  # fmt: skip
def test_what_a_commit_says(text: str | None, told: Told) -> None:
    """Kafka's metadata, which anybody may write."""
    assert Told.parse(text) == told
    assert Told.parse(told.text()) == told
