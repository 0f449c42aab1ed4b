"""Activations: the policies and cut-offs that were ever in force, as the store has them, and the next of them.

Every worker follows the same numbered list, so that a shard that moves to another worker stays where it is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from models.activation import Activation
from models.clusters import ClusterModel
from models.engines import ClusterPolicy
from models.errors import StateError
from models.instants import NEVER
from models.policy import Policy, parse_policy
from models.population import Cutoffs, Summary, cutoffs_of
from models.segmenter import Segmenter
from streams.errors import ConfigurationError, StoreUnavailable
from streams.ports import NO_MODEL, StateStore

log = logging.getLogger(__name__)

_parsed = lru_cache(maxsize=8)(parse_policy)


class Activations:
    """What ``refresh`` last saw in the store. ``policy`` becomes the first activation of a store without any."""

    def __init__(self, store: StateStore, policy: Policy) -> None:
        self._store: Final = store
        self._first = policy
        self._known: dict[int, Activation] = {}
        self._policies: dict[int, Policy] = {}
        self._lock = threading.RLock()
        self.latest = 0
        self.refresh()

    def refresh(self) -> bool:
        """Look for new ones; returns whether there are any. Raises StoreUnavailable or StateError."""
        with self._lock:
            return self._refresh()

    def _refresh(self) -> bool:
        latest = self._store.latest_activation()
        if latest < self.latest:
            # The store was emptied or restored from a backup.
            self._known.clear()
            self._policies.clear()
            self.latest = 0
        if not latest:
            first = Activation(1, "policy", self._first.version, NEVER, NEVER, True, Cutoffs())
            self._store.activate(first, self._first.text)
            latest = self._store.latest_activation()
        new, self.latest = latest > self.latest, latest
        if new:
            # Should the store be emptied, it gets back the policy that was in force.
            self._first = self.policy(self.active.policy_version)
        return new

    def policy(self, version: int) -> Policy:
        """The policy of a version. Raises StateError if the store does not have it or this version cannot read it."""
        policy = self._policies.get(version)
        if policy is None:
            text = self._store.policy_text(version)
            if text is None:
                raise StateError(f"the store has no policy of version {version}; restore the store from a backup")
            policy = self._policies[version] = _parsed(text)
        return policy

    def segmenter(self, number: int, since: int) -> Segmenter:
        """What labels customers under an activation that a shard took at its time ``since``."""
        activation = self[number]
        return Segmenter(self.policy(activation.policy_version), activation, since)

    def __getitem__(self, number: int) -> Activation:
        """The activation of a number. Raises StateError if there is none."""
        activation = self._known.get(number)
        if activation is None:
            activation = self._known[number] = self._store.activation(number)
        return activation

    @property
    def active(self) -> Activation:
        """The latest."""
        return self[self.latest]

    def before_policy(self, number: int) -> int:
        """The last activation before the first policy after ``number``; the latest if there is none."""
        later = range(number + 1, self.latest + 1)
        return next((each - 1 for each in later if self[each].cause == "policy"), self.latest)

    def newer_policy(self, number: int, upto: int | None = None) -> int | None:
        """The latest activation of a policy after ``number``; a shard takes it at once. None is later than ``upto``."""
        later = range(self.latest if upto is None else upto, number, -1)
        return next((each for each in later if self[each].cause == "policy"), None)

    def cutoffs_at(self, number: int, time: int, upto: int | None = None) -> int | None:
        """The latest activation of cut-offs after ``number`` and up to ``upto`` that is in force at a shard's time."""
        later = range(self.latest if upto is None else upto, number, -1)
        return next((each for each in later if self[each].active_from <= time), None)

    def cutoffs_since(self, number: int, as_of: int, upto: int | None = None) -> int | None:
        """The first activation after ``number`` and up to ``upto`` of cut-offs taken as of an instant or later."""
        later = range(number + 1, (self.latest if upto is None else upto) + 1)
        return next((each for each in later if self[each].cutoffs.as_of >= as_of), None)

    def merge(self, partitions: int, *, models: bool = True) -> bool:
        """Activate new cut-offs if all shards have summarised themselves as of a later instant than the last.

        ``models`` says to wait for what has been learned by then, too. Returns whether it did. It does not matter who
        calls this, nor how many do.
        """
        with self._lock:
            return self._merge(partitions, models)

    def _merge(self, partitions: int, models: bool) -> bool:
        active = self.active
        policy = self.policy(active.policy_version)
        if not policy.needs_population:
            return False
        # A shard's first summary may be later than others', which wait for cut-offs as of theirs.
        known = [set(self._store.summarised(shard)) for shard in range(partitions)]
        for instant in sorted(set[int]().union(*known)):
            if instant <= active.cutoffs.as_of or not self._summarised(instant, known):
                continue
            learned = {name: self._model(name, instant) for name in policy.clusters}
            if models and None in learned.values():
                return False
            parts = self._summaries(instant, known)
            if parts is not None:
                return self._activate(active, policy, instant, Summary.merged(parts), _read(learned))
        return False

    def learned_by(self, instant: int) -> bool:
        """Whether it is known what has been learned by an instant, of all that the active policy wants learned."""
        policy = self.policy(self.active.policy_version)
        return all(self._model(name, instant) is not None for name in policy.clusters)

    def _model(self, dimension: str, instant: int) -> bytes | None:
        try:
            return self._store.learned_model(dimension, instant)
        except StoreUnavailable as error:
            # Should it be this key alone that cannot be read, cut-offs need not wait for it.
            log.warning("%s", error, extra={"action": "model_unknown"})
            return None

    @staticmethod
    def _summarised(instant: int, known: Sequence[set[int]]) -> bool:
        """Whether all shards' summaries as of an instant are there, or may be: a shard that began later has none.

        To read them is dear.
        """
        return all(each and (instant in each or instant < min(each)) for each in known)

    def _summaries(self, instant: int, known: Sequence[set[int]]) -> list[Summary] | None:
        """All shards' summaries as of an instant, or None if one is missing."""
        parts = []
        for shard in sorted(range(len(known)), key=lambda shard: instant in known[shard]):
            part = self._store.summary(shard, instant)
            if part is None:
                return None
            parts.append(part)
        return parts

    def _activate(
        self,
        active: Activation,
        policy: Policy,
        instant: int,
        population: Summary,
        learned: Mapping[str, ClusterModel],
    ) -> bool:
        cutoffs = cutoffs_of(policy, population, instant, active.cutoffs, learned)
        following = Activation(
            active.number + 1,
            "population",
            active.policy_version,
            instant,
            instant + policy.population.settle,
            False,
            cutoffs,
            tuple(sorted(cutoffs.known - active.cutoffs.known)),
        )
        done = self._store.activate(following, population=population.cut())
        if done:
            log.info("cut-offs as of %d are activation %d", instant, following.number, extra={"action": "cutoffs"})
        self.refresh()
        return done

    def apply(self, policy: Policy, instant: int, backfill: bool, *, again: bool = False) -> Activation:
        """Activate a policy for the whole fleet, with cut-offs of the population as it was last summarised.

        ``again`` allows a policy whose version was active before. Raises ConfigurationError for a policy that cannot
        follow the active one.
        """
        while True:
            self.refresh()
            self._check(policy, again=again)
            population = self._store.population()
            cutoffs = Cutoffs()
            if population is not None:
                before = self.active.cutoffs
                # A dimension that is there again, as after a rollback, has what it had learned.
                cutoffs = cutoffs_of(policy, population[1], population[0], before, self._learned_before(policy))
            following = Activation(self.latest + 1, "policy", policy.version, instant, NEVER, backfill, cutoffs)
            if self._store.activate(following, policy.text):
                self.refresh()
                return following

    def _learned_before(self, policy: Policy) -> dict[str, ClusterModel]:
        """The latest model that fits of each cluster dimension, of all that were ever in force."""
        found: dict[str, ClusterModel] = {}
        for name, engine in policy.dimensions.items():
            if not isinstance(engine, ClusterPolicy):
                continue
            every = (self[number].cutoffs.clusters.get(name) for number in range(self.latest, 0, -1))
            fitting = (model for model in every if model is not None and model.fits(engine))
            if (model := next(fitting, None)) is not None:
                found[name] = model
        return found

    def _check(self, policy: Policy, *, again: bool) -> None:
        known = self._store.policy_text(policy.version)
        if known is not None and known != policy.text:
            raise ConfigurationError(
                f"another policy with version {policy.version} was active before; give this one a version of its own"
            )
        active = self.policy(self.active.policy_version)
        if policy.money.base != active.money.base:
            raise ConfigurationError(
                f"amounts are stored in {active.money.base} and this policy's base is {policy.money.base}; set "
                "money.base back, or start with another SEGMENTER_NAMESPACE and rebuild"
            )
        if policy.version == active.version:
            raise ConfigurationError(f"policy version {policy.version} is already active")
        if policy.version < active.version and not again:
            raise ConfigurationError(
                f"policy version {active.version} is active; give this one a greater version than {policy.version}, "
                "or use `segmenter policy rollback` to go back"
            )


def _read(stored: Mapping[str, bytes | None]) -> dict[str, ClusterModel]:
    """Models by dimension, of those that there are and that can be read: without them those of before go on."""
    found = {}
    for name, text in stored.items():
        if text is not None and text != NO_MODEL:
            try:
                found[name] = ClusterModel.parse(text)
            except StateError as error:
                log.error("%s: %s; going on with the one before", name, error, extra={"action": "model_damaged"})
    return found
