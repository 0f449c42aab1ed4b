"""Any sequence of operations leaves MemoryStore and a real Redis alike, and a refused one leaves both as they were."""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from models.counts import Count
from models.errors import SegmenterError
from models.events import ROLES, Role
from models.population import Summary
from streams.commit import OutboxEntry, Range
from streams.ports import StateStore
from streams.store.memory import MemoryStore
from streams.store.redis import RedisStore
from tests.contract.store_contract import (
    LAYOUT,
    OTHER_LAYOUT,
    Held,
    a_summary,
    activation_of,
    commit_of,
    entry_of,
    held,
)
from tests.support.real_redis import RealRedis

SHARDS = (0, 1)
CUSTOMERS = ("a", "A", "a:0", "zoë", "客户", "\u0000")
SEGMENTS = ("lifecycle:new", "lifecycle:lapsed", "größe:groß")

shards = st.sampled_from(SHARDS)
roles = st.sampled_from(ROLES)
customers = st.sampled_from(CUSTOMERS)
#: Mostly whoever owns the shard (None), else one of three workers.
tokens = st.none() | st.sampled_from(["t", "u", "v"])
positions = st.dictionaries(roles, st.integers(0, 5), max_size=3)
#: How far a range's start is from where it should be: mostly nothing.
shifts = st.sampled_from([0, 0, 0, 0, 0, 0, -1, 1, 7])
#: How far a commit's number is from what it should be, alike; what was sent twice is one behind.
late = st.sampled_from([0, 0, 0, 0, 0, 0, 0, 0, -1, 1])
ranges = st.dictionaries(roles, st.tuples(shifts, st.integers(0, 3)), max_size=3)
counts = st.builds(Count, st.integers(0, 2**40), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40))
entries = st.none() | st.builds(entry_of, st.integers(1, 12), st.sampled_from(["t", "u"]))
entry_ids = st.builds("{}-{}".format, st.integers(1, 12), st.sampled_from(["t", "u"]))
instants = st.integers(0, 9)
populations = st.builds(a_summary, st.integers(0, 3))
summaries = st.none() | st.builds(lambda instant, summary: (instant, summary.json), instants, populations)
values = st.tuples(st.sampled_from(["country", "channel"]), st.text(max_size=5).filter(lambda text: text.isprintable()))


def fleet_of(store: StateStore) -> Any:
    """What the store shows of activations and of the population, in a form that can be compared."""
    latest, population = store.latest_activation(), store.population()
    found = [[store.summary(shard, instant) for instant in range(10)] for shard in SHARDS]
    offset, learners = store.learners()
    return (
        (offset, dict(learners), [store.learned_model("k", instant) for instant in range(10)]),
        [store.activation(number) for number in range(1, latest + 1)],
        [store.policy_text(version) for version in range(1, 4)],
        population and (population[0], population[1].json),
        [list(store.summarised(shard)) for shard in SHARDS],
        [[each and each.json for each in shard] for shard in found],
    )


class TwoStores(RuleBasedStateMachine):
    """Does everything to both stores and compares all that can be seen after each step."""

    def __init__(self, memory: MemoryStore, real: RedisStore) -> None:
        super().__init__()
        self.stores: tuple[StateStore, StateStore] = (memory, real)
        self.held = self._look()

    def _look(self) -> list[Any]:
        """What both stores show, which must be the same."""
        expected, found = (
            [*(held(store, shard) for shard in SHARDS), store.partitions(), fleet_of(store)] for store in self.stores
        )
        assert found == expected
        for shard in SHARDS:
            rows = [[store.row(shard, customer) for customer in CUSTOMERS] for store in self.stores]
            assert rows[0] == rows[1]
        return expected

    def _both(self, operate: Callable[[StateStore], Any]) -> None:
        """Do it to both: both must succeed with the same answer, or refuse for the same reason and change nothing."""
        answers: list[Any] = []
        for store in self.stores:
            try:
                answers.append(operate(store))
            except SegmenterError as refused:
                answers.append(type(refused))
        assert answers[0] == answers[1]
        before, self.held = self.held, self._look()
        if isinstance(answers[0], type):
            assert self.held == before

    def _held(self, shard: int) -> Held:
        now = self.held[shard]
        assert isinstance(now, Held)
        return now

    @rule(partitions=st.integers(1, 2), group=st.sampled_from(["g", "größe"]))
    def register(self, partitions: int, group: str) -> None:
        self._both(lambda store: store.register(partitions, group))

    @rule(shard=shards, token=st.sampled_from(["t", "u", "v"]), offsets=positions, backfill=positions)
    def acquire(self, shard: int, token: str, offsets: dict[Role, int], backfill: dict[Role, int]) -> None:
        def operate(store: StateStore) -> Any:
            header = store.acquire(shard, token, offsets, backfill)
            return (header.offsets, header.backfill_until, header.owner, list(header.entries), header.values)

        self._both(operate)

    @rule(
        shard=shards,
        token=tokens,
        shift=late,
        ahead=st.sampled_from([0, 0, 0, 0, 1, -1]),
        settled=st.integers(-(2**62), 2**62),
        since=st.integers(-(2**62), 2**62),
        summary=summaries,
        forget=st.none() | instants,
        wanted=ranges,
        time=st.integers(-(2**62), 2**62),
        layout=st.sampled_from([LAYOUT, OTHER_LAYOUT]),
        rows=st.lists(st.tuples(customers, st.binary(max_size=8)), max_size=4),
        erased=st.lists(customers, max_size=3),
        segments=st.dictionaries(st.sampled_from(SEGMENTS), counts),
        fresh=st.lists(values, max_size=3),
        entry=entries,
    )
    def commit(
        self,
        shard: int,
        token: str | None,
        shift: int,
        ahead: int,
        wanted: dict[Role, tuple[int, int]],
        fresh: list[tuple[str, str]],
        entry: OutboxEntry | None,
        **parts: Any,
    ) -> None:
        header = self._held(shard).header
        known = {name: len(texts) for name, texts in header.values.items()}
        codes: dict[str, str] = {}
        for name, text in fresh:
            codes[f"{name}:{known.get(name, 0)}"] = text
            known[name] = known.get(name, 0) + 1
        starts = {role: header.offsets.get(role, 0) + off for role, (off, _) in wanted.items()}
        commit = commit_of(
            token or header.owner or "t",
            header.commits + 1 + shift,
            {role: Range(start, start + wanted[role][1]) for role, start in starts.items()},
            shard=shard,
            values=codes,
            entry=entry,
            activation=max(0, header.activation + ahead),
            **parts,
        )
        self._both(lambda store: store.commit(commit))

    @rule(
        shift=st.sampled_from([0, 0, 0, -1, 1, 5]),
        version=st.integers(1, 3),
        instant=instants,
        text=st.none() | st.text(max_size=9),
        population=st.none() | populations,
    )
    def activate(self, shift: int, version: int, instant: int, text: str | None, population: Summary | None) -> None:
        made = activation_of(max(1, self.stores[0].latest_activation() + 1 + shift), version, instant)
        self._both(lambda store: store.activate(made, text, population))

    @rule(
        shift=st.sampled_from([0, 0, 0, -1, 1]),
        end=st.integers(0, 9),
        learners=st.dictionaries(st.sampled_from(["k", "größe"]), st.binary(max_size=8)),
        models=st.dictionaries(st.tuples(st.just("k"), instants), st.binary(max_size=8)),
    )
    def commit_learners(
        self, shift: int, end: int, learners: dict[str, bytes], models: dict[tuple[str, int], bytes]
    ) -> None:
        offset = self.stores[0].learners()[0]
        start = offset if not shift else (offset or 0) + shift
        self._both(lambda store: store.commit_learners(start, end, learners, models))

    @rule(shard=shards, ids=st.lists(entry_ids, max_size=4))
    def acknowledge(self, shard: int, ids: list[str]) -> None:
        self._both(lambda store: store.acknowledge(shard, ids))


def test_both_stores_agree_on_any_sequence_of_operations(redis_server: RealRedis, raw: redis.Redis) -> None:
    """After every step both stores show the same; both refuse the same commits, and then nothing has changed."""
    with closing(RedisStore(redis_server.url, "segmenter")) as real:

        class Machine(TwoStores):
            def __init__(self) -> None:
                raw.flushdb()
                super().__init__(MemoryStore(), real)

        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=50,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            ),
        )
