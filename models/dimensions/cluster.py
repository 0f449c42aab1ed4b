"""The cluster engine: the segment is the group of customers, learned from all of them, that a customer is most like.

    where the customer is                                     label
    nearest to another centre and beyond its border's margin  that centre's
    anywhere else                                             the label they have
    without a label                                           the nearest centre's
    without one of the features, or no model yet              no label

The border between two clusters lies half-way between their centres; a customer at the share s of the way from it to the
other centre is past a margin of less than s. Days are whole, so time moves a customer at the turn of one of their days.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.clusters import ClusterModel, Floats, logged
from models.engines import ClusterPolicy
from models.instants import DAY, FOREVER, Instants
from models.policy import Policy
from models.sampling import MOVING, Features
from models.table import NO_LABEL, CustomerTable, Rows

#: What computing may be wrong by, in squared standardised units: a deadline must not be late.
_SLACK: Final = 1e-6
#: Days beyond which no deadline lies.
_MOST_DAYS: Final = 100_000.0
_STEPS: Final = 8
#: Rows whose deadlines are found together; bounds the memory that it takes.
_AT_ONCE: Final = 20_000


class Cluster:
    """Customers by the centre of the model they are nearest to; without a model nobody has a segment."""

    def __init__(self, name: str, policy: ClusterPolicy, whole: Policy, model: ClusterModel | None) -> None:
        self.name: Final = name
        self.labels: Final = policy.labels
        self._features = Features(policy, whole)
        self.reads: Final = self._features.reads
        self._model = model if model is not None and model.fits(policy) else None
        self._margin = float(policy.margin) / 100
        self._moving = [place for place, feature in enumerate(policy.features) if feature in MOVING]
        if self._model is not None:
            centres = np.array(self._model.centres)
            #: From each centre to each: [from, to, feature], and the square of how far it is.
            self._ways = centres[None, :, :] - centres[:, None, :]
            self._lengths = (self._ways * self._ways).sum(axis=2)
            #: How much nearer to each other centre time makes a customer, by the logarithm that it adds to days.
            self._pull = 2 * self._ways[:, :, self._moving] / np.array(self._model.scale)[self._moving]

    def _values(self, table: CustomerTable, rows: Rows, at: Instants) -> tuple[Floats, NDArray[np.bool_]]:
        values = self._features.values(table, rows, at)
        return values, np.asarray(np.isfinite(values).all(axis=1))

    def _beyond(self, model: ClusterModel, distances: Floats, current: NDArray[np.int64]) -> Floats:
        """How far each customer is beyond the margin of each other cluster; negative on this side of it."""
        own = distances[np.arange(len(current)), current]
        beyond: Floats = own[:, None] - distances - self._margin * self._lengths[current]
        beyond[np.arange(len(current)), current] = -np.inf
        return beyond

    def label(self, table: CustomerTable, rows: Rows, at: Instants) -> NDArray[np.int16]:
        """The label code of each row at its instant ``at``, given the label it has."""
        labels = np.full(len(rows), NO_LABEL, dtype=np.int16)
        if self._model is None or not len(rows):
            return labels
        values, known = self._values(table, rows, at)
        if not known.all():
            values, rows = values[known], rows[known]
        distances = self._model.distances(self._model.standardised(logged(values)))
        found = distances.argmin(axis=1).astype(np.int16)
        current = self._current(table, rows)
        has = current != NO_LABEL
        stays = np.zeros(len(rows), dtype=np.bool_)
        stays[has] = (self._beyond(self._model, distances[has], current[has]) <= 0).all(axis=1)
        labels[known] = np.where(stays, current, found)
        return labels

    def _current(self, table: CustomerTable, rows: Rows) -> NDArray[np.int64]:
        """The label codes of the model's clusters that the rows bear."""
        current = table.label[rows, table.dimensions.index(self.name)].astype(np.int64)
        return np.where(current < len(self.labels), current, NO_LABEL)

    def deadline(self, table: CustomerTable, rows: Rows, at: Instants) -> Instants:
        """The last microsecond of the day before which time cannot take a row beyond a margin; else FOREVER.

        That day is the one on which the label moves, but for rounding, if one feature moves, and may be earlier if
        more do. The label is that of ``label`` at ``at``.
        """
        deadlines = np.full(len(rows), FOREVER, dtype=np.int64)
        if self._model is None or not self._moving or not len(rows):
            return deadlines
        if len(rows) > _AT_ONCE:
            parts = range(0, len(rows), _AT_ONCE)
            return np.concatenate([self.deadline(table, rows[i : i + _AT_ONCE], at[i : i + _AT_ONCE]) for i in parts])
        values, known = self._values(table, rows, at)
        current = self._current(table, rows)
        here = np.flatnonzero(known & (current != NO_LABEL))
        values, current = values[here], current[here]
        distances = self._model.distances(self._model.standardised(logged(values)))
        gap = np.maximum(-self._beyond(self._model, distances, current) - _SLACK, 0)
        days = values[:, self._moving]
        grown = _days_to_close(gap, self._pull[current], 1 + days).min(axis=1)
        due = grown < _MOST_DAYS
        more = np.maximum(np.floor(grown[due]), 1).astype(np.int64)
        turns = [
            self._since(table, place, rows[here[due]]) + (days[due, i].astype(np.int64) + more) * DAY - 1
            for i, place in enumerate(self._moving)
        ]
        deadlines[here[due]] = np.min(turns, axis=0)
        return deadlines

    def _since(self, table: CustomerTable, place: int, rows: Rows) -> Instants:
        """The instant from which a moving feature counts days."""
        since: Instants = getattr(table, MOVING[self._features.names[place]])[rows]
        return since

    def reason(self, table: CustomerTable, row: int, at: int) -> str:
        """The cluster's title, the customer's features, and which other cluster they are nearest to."""
        rows, instants = np.array([row], dtype=np.int64), np.array([at], dtype=np.int64)
        if self._model is None:
            return "no clusters learned yet"
        values, known = self._values(table, rows, instants)
        if not known[0]:
            absent = [name for name, value in zip(self._features.names, values[0], strict=True) if np.isnan(value)]
            return f"no {' and no '.join(absent)}"
        distances = np.sqrt(self._model.distances(self._model.standardised(logged(values)))[0])
        code = int(self._current(table, rows)[0])
        if code == NO_LABEL:
            code = int(self.label(table, rows, instants)[0])
        others = [other for other in np.argsort(distances, kind="stable").tolist() if other != code]
        said = ", ".join(f"{name} {_plain(value)}" for name, value in zip(self._features.names, values[0], strict=True))
        return (
            f"{said}: {self._model.titles[code]} (version {self._model.version}); distance {distances[code]:.2f}, "
            f"to {self.labels[others[0]]} {distances[others[0]]:.2f}"
        )


def _days_to_close(gap: Floats, pull: Floats, days: Floats) -> Floats:
    """How many more days, at the least, until the logarithms of ``days`` times their ``pull`` have grown by ``gap``.

    Of customers, centres and moving features: gap[customer, centre], pull[customer, centre, feature],
    days[customer, feature]. Infinity where nothing pulls towards a centre. The features' days do not turn at once: what
    pulls away may be a day behind.
    """
    towards, away = np.maximum(pull, 0), np.maximum(-pull, 0)
    whole = towards.sum(axis=2)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # As if all that pulls towards grew as fast as the one with the fewest days …
        more = np.minimum(days.min(axis=1)[:, None] * np.expm1(gap / whole), 2 * _MOST_DAYS)
        if pull.shape[2] > 1 and (more < _MOST_DAYS).any():
            # … and from there by tangents. What pulls towards is concave and what pulls away only grows, so that no
            # step goes too far.
            for _ in range(_STEPS):
                after = days[:, None, :] + more[:, :, None]
                before = np.maximum(after - 1, days[:, None, :])
                grows = towards * np.log(after / days[:, None, :]) - away * np.log(before / days[:, None, :])
                grown = grows.sum(axis=2)
                more = np.minimum(more + np.maximum(gap - grown, 0) / (towards / after).sum(axis=2), 2 * _MOST_DAYS)
    return np.where(whole > 0, more, np.inf)


def _plain(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
