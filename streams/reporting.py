"""Report: what one shard did, in metrics, and in a log line for what was refused."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np

from models.events import ROLES
from models.instants import NEVER, SECOND
from streams import metrics
from streams.inbox import Batch
from streams.processor import BatchProcessor, Step

log = logging.getLogger(__name__)


class Report:
    """Counts since the worker took the shard; see streams/metrics.py for what each metric means."""

    def __init__(self, processor: BatchProcessor) -> None:
        self._processor = processor
        self._moves = Counter[str]()
        #: By dimension, whom the model of the activation ``_counted_for`` has moved.
        self._relabelled = Counter[str]()
        self._counted_for = 0

    def changes(self, step: Step) -> None:
        """What a committed step changed."""
        processor = self._processor
        if self._counted_for != processor.activation:
            self._counted_for = processor.activation
            self._relabelled.clear()
        for move, count in step.outcome.changes.moves(processor.table).items():
            metrics.CHANGES.labels(*move).inc(count)
            self._moves[move[0]] += count
            if move[-1] == "model":
                self._relabelled[move[0]] += count

    def sizes(self) -> None:
        """How large the shard's segments are now."""
        processor = self._processor
        number, customers = str(processor.shard.number), Counter[str]()
        for name, count in processor.segments().items():
            dimension, _, segment = name.partition(":")
            customers[dimension] += count.customers
            metrics.CUSTOMERS.labels(dimension, segment, number).set(count.customers)
        for dimension, held in customers.items():
            metrics.MOVES.labels(dimension, number).set(self._moves[dimension] / held if held else 0)
        for dimension in processor.policy.clusters:
            metrics.LABELS_MOVED.labels(dimension, number).set(self._relabelled[dimension])
        as_of = processor.cutoffs.as_of
        metrics.CUTOFFS_AS_OF.labels(number).set(0 if as_of == NEVER else as_of / SECOND)

    def records(self, batch: Batch, step: Step) -> None:
        """What became of a batch's records; a log line for each code of refusals."""
        topics = self._processor.shard.topics
        overflowed = Counter(each.role for each in step.outcome.overflowed)
        refusals = [*batch.refusals, *step.outcome.overflowed]
        refused = Counter(each.role for each in refusals)
        read = np.bincount(batch.events.rank, minlength=len(ROLES)).tolist()
        for role, count in zip(ROLES, read, strict=True):
            if used := count - overflowed[role]:
                metrics.EVENTS.labels(topics[role], "used").inc(used)
            if refused[role]:
                metrics.EVENTS.labels(topics[role], "refused").inc(refused[role])
        # Of a shard that is rebuilt, those that were not told before.
        letters = () if step.commit.entry is None else step.commit.entry.dead_letters
        for code, count in Counter(each["code"] for each in letters).items():
            metrics.DEAD_LETTERS.labels(code).inc(count)
            first = next(each for each in letters if each["code"] == code)
            log.warning(
                "%d records refused as %s, the first on %s at offset %d: %s",
                *(count, code, first["topic"], first["offset"], first["reason"]),
                extra={"action": "refused", "code": code, "records": count},
            )
