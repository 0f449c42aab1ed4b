"""Learning clusters from draws: River's StandardScaler, KMeans and PageHinkley, and what they leave to be done.

    the draw of an instant   what is done
    too few customers yet    nothing
    the first with enough    the scaler learns it, centres are seeded in it (k-means++)
    every later one          the alarm hears how far its customers are from the centres as published, the scaler
                             learns it, centres that nobody needs are put where one is missing, k-means learns
                             customer by customer, and each cluster keeps the name that its customers had

Each but the first kind publishes a version of the model. The only module that imports River. It is a pure function of
states and draws, the same on any machine: River gets numbers by a feature's place, never by its name, and what it holds
is built again from the plain numbers of the state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Final

import numpy as np
from river import cluster, drift, preprocessing

from models.clusters import ClusterModel, Floats, logged, squares
from models.engines import ENOUGH
from models.kmeans import SILHOUETTE_OF, matched, missing, nearest, seeded, silhouette, total
from models.learner import Alarm, LearnerState, Numbers, Pending
from models.sampling import Draw
from models.titles import titles

#: The step of k-means: how much of the way to a customer the nearest centre goes. With larger steps borders wander
#: where customers lie dense, and some would move with every version.
STEP: Final = 0.00125
#: How many samples the scaler remembers.
MEMORY: Final = 4000
#: After a drift: for how many samples, with which step, and how many samples the scaler remembers.
HASTE: Final = 5000
HASTY_STEP: Final = 0.02
HASTY_MEMORY: Final = 1000
#: Page-Hinkley on distances, in units of the usual error: what is tolerated, and how much more in sum is a drift.
TOLERATED: Final = 0.05
THRESHOLD: Final = 40.0
#: A distance counts this much at most: a few customers far away are no drift.
FARTHEST: Final = 4.0
#: A centre that was nearest to nobody for so many samples in a row is moved.
IDLE: Final = 3000
#: Centres seeded afresh take over if their error, squared, is lower by this share of ours, and by as many standard
#: deviations.
BETTER: Final = 0.15
SURELY: Final = 3.0
#: A variance that is nothing but rounding.
_NOTHING: Final = 1e-12
#: Decimals of what is only told.
_DECIMALS: Final = 6


@dataclass(frozen=True)
class Learned:
    """What draws led to: each dimension's learner, and the model as of each instant that they completed.

    A model is None while too few customers were seen, or for an instant that was given up or is already known.
    """

    states: dict[str, LearnerState]
    models: dict[tuple[str, int], ClusterModel | None]


def learn(states: Mapping[str, LearnerState], draws: Sequence[Draw]) -> Learned:
    """Take draws in their order. ``states`` are by dimension; those that no draw is for come back as they are."""
    now, models = dict(states), {}
    for draw in draws:
        name = draw.dimension
        state = now.get(name) or LearnerState.beginning(draw)
        waiting = {draw.as_of, *(each.as_of for each in state.pending)}
        state = state.hearing(draw)
        while (instant := state.due) is not None:
            state = _after(state.past(instant), instant)
            models[name, instant.as_of] = state.model
        # Of an instant that nobody will ever learn it is said that there is nothing, so that no shard waits for it.
        for as_of in sorted(waiting - {each.as_of for each in state.pending}):
            models.setdefault((name, as_of), None)
        now[name] = state
    return Learned(now, models)


def _after(state: LearnerState, instant: Pending) -> LearnerState:
    """The state once an instant is learned."""
    if not instant.rows or (state.learned is None and len(instant.rows) < ENOUGH * state.settings.clusters):
        return state
    learning = _Learning(state, logged(np.array(instant.rows)))
    if state.learned is None or state.model is None:
        learning.begin()
    else:
        learning.go_on(state.learned, state.model)
    return learning.published(instant.as_of)


class _Learning:
    """River's objects with a learner's numbers, while they learn one draw.

    ``logs`` are the draw's logarithms; ``points`` the same standardised, once the scaler has learned them.
    """

    def __init__(self, state: LearnerState, logs: Floats) -> None:
        self._state, self._logs = state, logs
        self._features, self._clusters = range(logs.shape[1]), state.settings.clusters
        self._seed = (abs(state.settings.seed), state.version)
        self._scaler = preprocessing.StandardScaler()
        self._kmeans = cluster.KMeans(self._clusters, seed=state.settings.seed)
        self._idle = [0] * self._clusters
        self._alarm: Alarm | None = None
        self._hasty, self._drifted = 0, False

    def begin(self) -> None:
        """Learn the first draw. The first cluster is the one with most customers."""
        self._scale()
        centres = seeded(self._points, self._clusters, self._seed)
        sizes = np.bincount(nearest(self._points, centres), minlength=self._clusters)
        self._centres = centres[np.argsort(-sizes, kind="stable")]

    def go_on(self, learned: Numbers, model: ClusterModel) -> None:
        """Learn another draw."""
        self._idle, self._hasty = list(learned.idle), learned.hasty
        self._alarm = self._heard(learned.alarm, model)
        count = min(learned.count, HASTY_MEMORY if self._hasty else MEMORY)
        for feature, (mean, variance) in enumerate(zip(learned.means, learned.variances, strict=True)):
            self._scaler.counts[feature] = count
            self._scaler.means[feature] = mean
            self._scaler.vars[feature] = variance
        self._scale()
        self._centres = self._better(self._revived(np.array(learned.centres)))
        self._kmeans.halflife = HASTY_STEP if self._hasty else STEP
        for row in self._points.tolist():
            self._kmeans.learn_one(dict(enumerate(row)))
        self._hasty = max(self._hasty - len(self._points), 0)
        self._keep_names(model)

    def _heard(self, alarm: Alarm, model: ClusterModel) -> Alarm | None:
        """The alarm after the draw's distances; None if it rang."""
        detector = drift.PageHinkley(delta=TOLERATED, threshold=THRESHOLD, alpha=1.0, mode="up")
        if alarm.seen:
            detector._x_mean.update(alarm.mean, alarm.seen)  # a first number with all the weight is the mean
            detector._sum_increase, detector._min_increase = alarm.total, alarm.least
        apart = np.sqrt(model.distances(model.standardised(self._logs)).min(axis=1)) / alarm.unit
        for distance in np.minimum(apart, FARTHEST).tolist():
            detector.update(distance)
            if detector.drift_detected:
                self._drifted, self._hasty = True, HASTE
                return None
        return Alarm(
            unit=alarm.unit,
            seen=int(detector._x_mean.n),
            mean=detector._x_mean.get(),
            total=detector._sum_increase,
            least=detector._min_increase,
        )

    def _scale(self) -> None:
        """The scaler learns the draw."""
        for row in self._logs.tolist():
            self._scaler.learn_one(dict(enumerate(row)))
        self._mean = np.array([self._scaler.means[feature] for feature in self._features])
        variances = np.array([self._scaler.vars[feature] for feature in self._features])
        self._deviation = np.where(variances > _NOTHING, np.sqrt(np.maximum(variances, _NOTHING)), 1.0)
        self._points: Floats = (self._logs - self._mean) / self._deviation

    @property
    def _centres(self) -> Floats:
        """What River's k-means holds, a row for each centre."""
        return np.array([[centre[feature] for feature in self._features] for centre in self._kmeans.centers.values()])

    @_centres.setter
    def _centres(self, centres: Floats) -> None:
        for code, centre in enumerate(centres.tolist()):
            self._kmeans.centers[code].update(enumerate(centre))

    def _revived(self, centres: Floats) -> Floats:
        """The centres; one that had nobody for long is put where it lowers the error most."""
        sizes = np.bincount(nearest(self._points, centres), minlength=self._clusters).tolist()
        for code, size in enumerate(sizes):
            self._idle[code] = 0 if size else self._idle[code] + len(self._points)
            if self._idle[code] >= IDLE:
                place = missing(self._points, np.delete(centres, code, axis=0))
                if place is not None:
                    centres[code], self._idle[code] = place, 0
        return centres

    def _better(self, centres: Floats) -> Floats:
        """The centres, or new ones if those part customers much better: k-means alone leaves no bad beginning.

        The new ones are judged by customers that they were not made from, so one customer far away does not win.
        """
        made, judged = self._points[::2], self._points[1::2]
        if len(made) < ENOUGH * self._clusters // 2:
            return centres
        fresh = seeded(made, self._clusters, self._seed)
        ours = squares(judged, centres).min(axis=1)
        gains = ours - squares(judged, fresh).min(axis=1)
        if total(gains) <= max(BETTER * total(ours), SURELY * sqrt(total(gains * gains))):
            return centres
        self._idle = [0] * self._clusters
        return fresh

    def _keep_names(self, model: ClusterModel) -> None:
        """A cluster is called what most of its customers were called."""
        centres = self._centres
        before = np.array(model.centres) * np.array(model.scale) + np.array(model.mean)
        apart = np.sqrt(squares(before, centres * self._deviation + self._mean))
        old = model.nearest(model.standardised(self._logs)).astype(np.int64)
        order = matched(old, nearest(self._points, centres), apart)
        self._centres, self._idle = centres[order], [self._idle[code] for code in order]

    def published(self, as_of: int) -> LearnerState:
        """The state with what was learned and a new version of the model."""
        state, points, centres = self._state, self._points, self._centres
        distances = squares(points, centres)
        codes = distances.argmin(axis=1)
        sizes = np.bincount(codes, minlength=self._clusters)
        error = sqrt(total(distances.min(axis=1)) / len(points))
        some = slice(SILHOUETTE_OF)
        numbers = tuple(tuple(centre) for centre in centres.tolist())
        mean, scale = tuple(self._mean.tolist()), tuple(self._deviation.tolist())
        version, samples, drifts = state.version + 1, state.samples + len(points), state.drifts + self._drifted
        model = ClusterModel(
            version=version,
            as_of=as_of,
            features=state.settings.features,
            mean=mean,
            scale=scale,
            centres=numbers,
            titles=titles(state.settings.features, centres, self._mean, self._deviation),
            shares=tuple(round(size / len(points), _DECIMALS) for size in sizes.tolist()),
            samples=samples,
            drifts=drifts,
            error=round(error, _DECIMALS),
            silhouette=round(silhouette(points[some], codes[some], self._clusters), _DECIMALS),
        )
        learned = Numbers(
            count=self._scaler.counts[0],
            means=mean,
            variances=tuple(self._scaler.vars[feature] for feature in self._features),
            centres=numbers,
            idle=tuple(self._idle),
            hasty=self._hasty,
            alarm=self._alarm or Alarm(unit=error if error > 0 else 1.0),
        )
        news = {"version": version, "samples": samples, "drifts": drifts, "learned": learned, "model": model}
        return state.model_copy(update=news)
