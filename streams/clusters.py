"""What has been learned of the cluster dimensions, as the store has it, in the units that people use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.activation import Activation
from models.clusters import ClusterModel, Floats, Settings
from models.counts import Count
from models.engines import ENOUGH, ClusterPolicy, Engine, Profile
from models.errors import StateError
from models.instants import NEVER, format_instant
from models.learner import LearnerState
from models.money import Converter
from models.policy import Policy
from models.sampling import MONEY, MOVING
from models.titles import number, phrase
from streams.ports import StateStore


@dataclass(frozen=True)
class Cluster:
    """One cluster: its live size, revenue in minor units, and its centre in the features' own units.

    ``title`` and ``description`` are its profile's, else the learned ones. ``centre`` is empty while nothing has been
    learned.
    """

    label: str
    title: str | None
    description: str | None
    customers: int
    share: float | None
    revenue: int
    revenue_share: float | None
    centre: tuple[float, ...]


@dataclass(frozen=True)
class Clustering:
    """One cluster dimension: the ``model`` in force, what its ``learner`` remembers, and its clusters now.

    ``damage`` is the sentence about a learner that cannot be read. ``time`` is the newest shard's, NEVER without any
    customer; ``every`` and ``settle`` are the population's; all in microseconds.
    """

    dimension: str
    policy: ClusterPolicy
    policy_version: int
    money: Converter
    model: ClusterModel | None
    learner: LearnerState | None
    damage: str | None
    time: int
    every: int
    settle: int
    clusters: tuple[Cluster, ...]

    @property
    def drawn(self) -> Floats:
        """The customers last drawn: a row each, features in their own units. None if they are of other features."""
        if self.learner is None or self.learner.settings.features != self.policy.features:
            return np.empty((0, len(self.policy.features)))
        return np.array(self.learner.drawn, dtype=np.float64).reshape(-1, len(self.policy.features))

    @property
    def enough(self) -> int:
        """Customers that must have been drawn before anything is learned."""
        return ENOUGH * self.policy.clusters

    @property
    def next_instant(self) -> int | None:
        """As of when customers are drawn next; None while there are none."""
        return None if self.time == NEVER else self.time // self.every * self.every + self.every

    @property
    def missing(self) -> str | None:
        """Why no model is in force, as a sentence; None if one is."""
        if self.model is not None:
            return None
        if self.damage is not None:
            return f"no clusters are in force, and what was learned cannot be read: {self.damage}"
        if self.next_instant is None:
            return "nothing has been learned yet: there are no customers"
        then = f"the next are drawn as of {format_instant(self.next_instant)}"
        if self.learner is None or self.learner.settings != Settings.of(self.policy):
            return (
                f"nothing has been learned yet: no customers have been drawn under policy version "
                f"{self.policy_version}; {then}, and {self.enough} are needed"
            )
        learned = self.learner.model
        if learned is not None:
            return (
                f"version {learned.version}, as of {format_instant(learned.as_of)}, has been learned and comes into "
                f"force with the population's next cut-offs, {_duration(self.settle)} after it"
            )
        features = ", ".join(self.policy.features)
        return (
            f"nothing has been learned yet: {len(self.learner.drawn)} customers with {features} were drawn last, and "
            f"{self.enough} are needed ({ENOUGH} for each of {self.policy.clusters} clusters); {then}"
        )

    @property
    def notes(self) -> list[str]:
        """What else is to be known, a sentence each."""
        if self.model is None:
            return []
        if self.damage is not None:
            return [f"what was learned cannot be read, so version {self.model.version} stays in force: {self.damage}"]
        if self.learner is None:
            return [f"nothing learned is stored, so version {self.model.version} stays in force until it is again"]
        if self.learner.settings != Settings.of(self.policy):
            return ["the settings have changed: learning begins anew with the next customers drawn"]
        later = self.learner.model
        if later is not None and later.version > self.model.version:
            return [
                f"version {later.version}, as of {format_instant(later.as_of)}, has been learned and comes into force "
                f"{_duration(self.settle)} after that"
            ]
        return []


def clusterings(
    store: StateStore, partitions: int, policy: Policy, activation: Activation, only: str | None = None
) -> list[Clustering]:
    """Every cluster dimension of the policy, or the one that ``only`` names. Raises StateError, StoreUnavailable."""
    names = [name for name in policy.clusters if only in (None, name)]
    _, learners = store.learners()
    sizes: dict[str, Count] = {}
    time = NEVER
    for shard in range(partitions):
        known = store.header(shard).time
        time = time if known is None else max(time, known)
        for name, count in store.segments(shard).items():
            sizes[name] = sizes.get(name, Count(0, 0)).plus(count)
    found = []
    for name in names:
        engine = policy.dimensions[name]
        assert isinstance(engine, ClusterPolicy)  # noqa: S101
        learner, damage = None, None
        if name in learners:
            try:
                learner = LearnerState.parse(learners[name])
            except StateError as error:
                damage = f"{error} (field learner:{name})"
        model = activation.cutoffs.clusters.get(name)
        found.append(
            Clustering(
                dimension=name,
                policy=engine,
                policy_version=policy.version,
                money=policy.converter,
                model=model,
                learner=learner,
                damage=damage,
                time=time,
                every=policy.population.every,
                settle=policy.population.settle,
                clusters=_clusters(name, engine, model, sizes, policy.converter),
            )
        )
    return found


def _clusters(
    name: str, engine: ClusterPolicy, model: ClusterModel | None, sizes: dict[str, Count], money: Converter
) -> tuple[Cluster, ...]:
    own = [sizes.get(f"{name}:{label}", Count(0, 0)) for label in engine.labels]
    customers, revenue = sum(size.customers for size in own), sum(size.revenue for size in own)
    profiles = described_profiles(engine, model, money)
    centres: Sequence[Sequence[float]] = [()] * len(own) if model is None else model.units.tolist()
    return tuple(
        Cluster(
            label,
            profiles[label].title,
            profiles[label].description,
            size.customers,
            size.customers / customers if customers else None,
            size.revenue,
            size.revenue / revenue if revenue > 0 else None,
            tuple(centre),
        )
        for label, size, centre in zip(engine.labels, own, centres, strict=True)
    )


def described_profiles(engine: Engine, model: ClusterModel | None, money: Converter) -> dict[str, Profile]:
    """The profile of each segment, for a cluster with the learned title and description where it says nothing."""
    profiles = {label: engine.profiles.get(label, Profile()) for label in engine.labels}
    if model is None or not isinstance(engine, ClusterPolicy) or not model.fits(engine):
        return profiles
    found = {}
    for (label, profile), title, centre in zip(profiles.items(), model.titles, model.units.tolist(), strict=True):
        features = zip(model.features, centre, strict=True)
        description = ", ".join(phrased(feature, value, money) for feature, value in features)
        found[label] = profile.model_copy(
            update={"title": profile.title or title, "description": profile.description or description}
        )
    return found


def said(feature: str, value: float, money: Converter) -> str:
    """A feature's value with its unit: ``12 days``, ``3.4``, ``184.85 USD``."""
    if feature in MONEY:
        return f"{money.text(round(value * money.one('1', money.base)))} {money.base}"
    if feature in MOVING:
        return f"{number(value)} day{'' if number(value) == '1' else 's'}"
    return number(value)


def phrased(feature: str, value: float, money: Converter) -> str:
    """A feature's value in words: ``last purchase about 12 days ago``, ``184.85 USD spent``."""
    text = phrase(feature, value)
    return text.replace(number(value), said(feature, value, money), 1) if feature in MONEY else text


def age(clustering: Clustering) -> str:
    """How old the model in force is, against the newest shard's time."""
    if clustering.model is None or clustering.time == NEVER:
        return "no shard has a time"
    behind = max(clustering.time - clustering.model.as_of, 0)
    return f"{_duration(behind)} before the newest shard's time, {format_instant(clustering.time)}"


def _duration(microseconds: int) -> str:
    for name, size in (("day", 86_400_000_000), ("hour", 3_600_000_000), ("minute", 60_000_000), ("second", 1_000_000)):
        number = microseconds // size
        if number:
            return f"{number} {name}{'' if number == 1 else 's'}"
    return "less than a second"
