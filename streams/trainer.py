"""Trainer: draws of customers → learners and their models, in the store.

Synchronous and free of Kafka, so that workers, replays and tests run the same code. Learning is a pure function of the
samples topic, and the next offset is stored together with what was learned below it: whoever reads the same draws twice
either is refused or stores the same again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from models.clusters import ClusterModel
from models.errors import StateError
from models.learner import LearnerState
from models.sampling import Draw
from streams.ports import NO_MODEL, StateStore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lesson:
    """What a part of the samples topic led to: the models published by dimension and instant, and what was no draw."""

    models: Mapping[tuple[str, int], ClusterModel | None] = field(default_factory=dict)
    refused: Mapping[int, StateError] = field(default_factory=dict)


class Trainer:
    """Holds each dimension's learner between commits. Whoever gets an exception from ``learn`` calls ``load`` again."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self.offset: int | None = None
        self.learners: Mapping[str, LearnerState] = {}

    def load(self) -> int | None:
        """Take the learners from the store. Returns the next offset to read, None if nothing was read yet.

        Raises StoreUnavailable, and StateError for a learner that is damaged or that a newer version wrote.
        """
        offset, stored = self._store.learners()
        learners = {}
        for dimension, state in stored.items():
            try:
                learners[dimension] = LearnerState.parse(state)
            except StateError as error:
                raise StateError(f"{error} (field learner:{dimension})") from None
        self.offset, self.learners = offset, learners
        return offset

    def learn(
        self, start: int, end: int, values: Sequence[bytes | None], offsets: Sequence[int] | None = None
    ) -> Lesson:
        """Learn what the topic holds in [start, end), commit it, and return what was published.

        ``offsets`` are those of the values, where some in between hold none. A value that is no draw is told in the log
        and passed over. Raises LostBatch if another trainer has committed since the last load, or StoreUnavailable;
        then nothing was written.
        """
        draws, refused = [], {}
        for offset, value in zip(range(start, end) if offsets is None else offsets, values, strict=True):
            try:
                draws.append(Draw.parse(value or b""))
            except StateError as error:
                refused[offset] = error
        learners, models = self._learned(draws)
        changed = {name: state.encode() for name, state in learners.items() if state is not self.learners.get(name)}
        published = {each: NO_MODEL if model is None else model.encode() for each, model in models.items()}
        self._store.commit_learners(self.offset, end, changed, published)
        self.offset, self.learners = end, learners
        for offset, reason in refused.items():
            log.warning(
                "nothing is learned from the record at offset %d of the samples topic: %s",
                *(offset, reason),
                extra={"action": "refused", "code": "no_draw", "offset": offset},
            )
        return Lesson(models, refused)

    def _learned(
        self, draws: Sequence[Draw]
    ) -> tuple[Mapping[str, LearnerState], dict[tuple[str, int], ClusterModel | None]]:
        if not draws:
            return self.learners, {}
        # River takes seconds to import, so only whoever learns does it, and only once there is something to learn.
        from models.clustering import learn

        found = learn(self.learners, draws)
        return found.states, found.models
