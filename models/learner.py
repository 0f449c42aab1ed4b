"""LearnerState: everything the learner of one cluster dimension remembers, as JSON that is open to be read.

It collects the draws of an instant from all shards and says when they are complete. What is learned from them is
models/clustering.py, which alone needs River.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, model_validator

from models.clusters import ClusterModel, Count, Document, Finite, Settings, Stored
from models.instants import NEVER
from models.sampling import Draw

Row = tuple[Finite, ...]
Positive = Annotated[Finite, Field(gt=0)]

#: Instants that wait for shards; when there are more, the oldest is given up.
MOST_PENDING: Final = 8


class Pending(Stored):
    """An instant of which not all shards have been heard: the ``keys`` and ``rows`` drawn so far, ascending by key."""

    as_of: int
    heard: tuple[Count, ...]
    keys: tuple[Annotated[int, Field(ge=0, lt=2**64)], ...] = ()
    rows: tuple[Row, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Pending:
        if len(self.keys) != len(self.rows):
            raise ValueError("there must be a key for each row")
        return self

    def hearing(self, draw: Draw) -> Pending:
        """With the draw of one more shard; of all rows, those with the smallest keys."""
        both = sorted(zip(self.keys + draw.keys, self.rows + draw.rows, strict=True))[: draw.settings.sample]
        return Pending(
            as_of=self.as_of,
            heard=tuple(sorted((*self.heard, draw.shard))),
            keys=tuple(key for key, _ in both),
            rows=tuple(row for _, row in both),
        )


class Alarm(Stored):
    """River's PageHinkley: how many errors it has seen, in ``unit``, their mean, their sum and the least of it."""

    unit: Positive
    seen: Count = 0
    mean: Finite = 0.0
    total: Finite = 0.0
    least: Finite = 0.0


class Numbers(Stored):
    """What River's scaler and k-means hold, by feature and by label code.

    ``count`` is how many samples mean and variance weigh; ``idle`` how many samples in a row each centre was nearest to
    none of; ``hasty`` how many samples more the steps are large after a drift.
    """

    count: Annotated[int, Field(ge=1)]
    means: Row
    variances: tuple[Annotated[Finite, Field(ge=0)], ...]
    centres: Annotated[tuple[Row, ...], Field(min_length=2)]
    idle: tuple[Count, ...]
    hasty: Count
    alarm: Alarm

    @model_validator(mode="after")
    def _consistent(self) -> Numbers:
        if len({len(self.means), len(self.variances), *(len(centre) for centre in self.centres)}) > 1:
            raise ValueError("means, variances and centres must have one number for each feature")
        if len(self.idle) != len(self.centres):
            raise ValueError("idle must have one number for each centre")
        return self


class LearnerState(Document):
    """The learner of a dimension, between two draws.

    ``policy_version`` is the latest of a draw that it took, ``shards`` how many there are. ``first`` has the instant of
    each shard's draw that said it had no customers before. ``version`` is that of the last published model, also of
    one with other settings. ``drawn`` are the rows of ``drawn_as_of``, the last instant that was complete, in the
    features' own units. Instants are microseconds.
    """

    what = "the stored learner of a cluster dimension"

    dimension: str
    settings: Settings
    policy_version: int
    shards: Annotated[int, Field(ge=1)]
    learned_as_of: int | None = None
    first: dict[Count, int] = Field(default_factory=dict)
    pending: Annotated[tuple[Pending, ...], Field(max_length=MOST_PENDING)] = ()
    version: Count = 0
    samples: Count = 0
    drifts: Count = 0
    learned: Numbers | None = None
    drawn_as_of: int | None = None
    drawn: tuple[Row, ...] = ()
    model: ClusterModel | None = None

    @model_validator(mode="after")
    def _consistent(self) -> LearnerState:
        features, clusters = len(self.settings.features), self.settings.clusters
        rows = [self.drawn, *(each.rows for each in self.pending)]
        if any(len(row) != features for some in rows for row in some):
            raise ValueError("each row must have one number for each feature")
        if self.learned is not None and (len(self.learned.means), len(self.learned.centres)) != (features, clusters):
            raise ValueError("what was learned must have the features and clusters of the settings")
        if self.model is not None and (self.model.features, len(self.model.centres)) != (
            self.settings.features,
            clusters,
        ):
            raise ValueError("the model must have the features and clusters of the settings")
        if (self.learned is None) != (self.model is None):
            raise ValueError("there must be a model if, and only if, something was learned")
        if max((*self.first, *(shard for each in self.pending for shard in each.heard)), default=0) >= self.shards:
            raise ValueError(f"there are {self.shards} shards, counted from 0")
        instants = [self.learned_as_of, *(each.as_of for each in self.pending)]
        if instants[0] is None:
            del instants[0]
        if sorted(set(instants), key=lambda instant: instant or 0) != instants:
            raise ValueError("pending instants must ascend, and come after the one learned last")
        return self

    @classmethod
    def beginning(cls, draw: Draw, after: LearnerState | None = None) -> LearnerState:
        """A learner that knows nothing yet, with the draw's settings; ``after`` one with others.

        The numbers of versions go on, and instants whose model is known stay as they are.
        """
        new = cls(
            dimension=draw.dimension, settings=draw.settings, policy_version=draw.policy_version, shards=draw.shards
        )
        if after is None:
            return new
        first = after.first if after.shards == draw.shards else {}
        kept = {"version": after.version, "learned_as_of": after.learned_as_of, "first": first}
        return new.model_copy(update=kept)

    def hearing(self, draw: Draw) -> LearnerState:
        """The state with a draw; unchanged if it is a repeat or too late.

        With other settings a draw is too late unless it is of a later instant than any before, or of the same one and a
        later policy: a rollback brings an earlier policy back.
        """
        if (draw.settings, draw.shards) != (self.settings, self.shards):
            if (draw.as_of, draw.policy_version) <= (self._latest, self.policy_version):
                return self
            return LearnerState.beginning(draw, self).hearing(draw)
        if self.learned_as_of is not None and draw.as_of <= self.learned_as_of:
            return self
        waiting = {each.as_of: each for each in self.pending}
        before = waiting.get(draw.as_of, Pending(as_of=draw.as_of, heard=()))
        if draw.shard not in before.heard:
            waiting[draw.as_of] = before.hearing(draw)
        first = dict(self.first)
        if draw.begins:
            first[draw.shard] = max(first.get(draw.shard, draw.as_of), draw.as_of)
        return self.model_copy(
            update={
                "policy_version": max(self.policy_version, draw.policy_version),
                "first": dict(sorted(first.items())),
                "pending": tuple(waiting[as_of] for as_of in sorted(waiting))[-MOST_PENDING:],
            }
        )

    @property
    def _latest(self) -> int:
        """The latest instant of which anything was heard."""
        known = (each.as_of for each in self.pending)
        return max(known, default=NEVER if self.learned_as_of is None else self.learned_as_of)

    @property
    def due(self) -> Pending | None:
        """The earliest instant of which every shard was heard, or had no customers yet."""
        for each in self.pending:
            begun = (shard in each.heard or self._empty(shard, each.as_of) for shard in range(self.shards))
            if all(begun):
                return each
        return None

    def _empty(self, shard: int, as_of: int) -> bool:
        return shard in self.first and as_of <= self.first[shard]

    def past(self, instant: Pending) -> LearnerState:
        """The state after an instant: what it drew is kept, earlier ones that still wait are given up."""
        return self.model_copy(
            update={
                "learned_as_of": instant.as_of,
                "pending": tuple(each for each in self.pending if each.as_of > instant.as_of),
                "drawn_as_of": instant.as_of,
                "drawn": instant.rows,
            }
        )
