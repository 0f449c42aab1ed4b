"""The policies that are compared: the lifecycle alone, and the default policy with all its dimensions.

Value and RFM need cut-offs, and clusters a model, which a fresh fleet has after a week; here they are in force from the
start, taken from the very customers that are measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from models.activation import Activation
from models.clustering import learn
from models.events import ROLES, Role
from models.instants import FOREVER, NEVER, SECOND
from models.policy import Policy, parse_policy
from models.population import Cutoffs, cutoffs_of, summary_of
from models.sampling import draw_of
from models.table import CustomerTable
from streams.activations import Activations
from streams.commit import Range
from streams.ports import StateStore
from streams.processor import BatchProcessor, Clock, Shard
from streams.store.memory import MemoryStore
from tests.bench.events import BenchRecord
from tests.bench.workload import Workload, records_of


@dataclass(frozen=True)
class Compared:
    """A policy and the cut-offs that are in force under it."""

    name: str
    policy: Policy
    cutoffs: Cutoffs

    def activate(self, store: StateStore) -> Activations:
        """Make the policy and its cut-offs what a fresh store starts with."""
        activations = Activations(store, self.policy)
        if self.policy.needs_population:
            taken = Activation(2, "population", self.policy.version, self.cutoffs.as_of, NEVER, False, self.cutoffs)
            store.activate(taken)
            activations.refresh()
        return activations


def policy_text(name: str) -> str:
    """A policy that the project ships, as TOML."""
    return resources.files("models").joinpath(f"policies/{name}.toml").read_text(encoding="utf-8")


def shipped(name: str) -> Policy:
    """A policy that the project ships."""
    return parse_policy(policy_text(name))


def compared(records: Sequence[BenchRecord]) -> list[Compared]:
    """The lifecycle alone, and the default policy with cut-offs of the customers of these purchases."""
    default = shipped("default")
    return [
        Compared("lifecycle alone", shipped("lifecycle"), Cutoffs()),
        Compared("default policy", default, _cutoffs(default, records)),
    ]


def cutoffs_of_workload(workload: Workload) -> Compared:
    """The default policy with cut-offs of a workload's known customers."""
    return compared_for(workload)[1]


def compared_for(workload: Workload) -> list[Compared]:
    """Both policies for a workload, with cut-offs of the first 20,000 of its known customers."""
    return compared(records_of(Workload(min(workload.customers, 20_000), 0).known()))


def _table(policy: Policy, records: Sequence[BenchRecord]) -> CustomerTable:
    topics: dict[Role, str] = {role: role for role in ROLES}
    store = MemoryStore()
    processor = BatchProcessor(Shard(0, 1, topics), Activations(store, policy), store, Clock.INGESTION)
    processor.load(dict.fromkeys(ROLES, 0), {})
    batch, _ = processor.read("purchases", records, FOREVER)
    processor.fold(batch, (), {"purchases": Range(0, len(records))})
    return processor.table


def _cutoffs(policy: Policy, records: Sequence[BenchRecord]) -> Cutoffs:
    table = _table(policy, records)
    now = int(time.time() * SECOND)
    draws = [draw_of(table, name, now, 0, 1) for name in policy.clusters]
    learned = {name: model for (name, _), model in learn({}, draws).models.items() if model is not None}
    return cutoffs_of(policy, summary_of(table, now), now, Cutoffs(), learned)
