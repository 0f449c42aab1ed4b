"""How many clusters? A batch k-means of the customers last drawn, for each number that somebody considers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.clusters import ClusterModel, Floats, logged
from models.kmeans import SILHOUETTE_OF, Codes, inertia, nearest, seeded, silhouette


@dataclass(frozen=True)
class Choice:
    """One number of clusters: mean silhouette, the smallest cluster's share, and the share of variance explained."""

    clusters: int
    silhouette: float
    smallest: float
    explained: float


def compare(drawn: Floats, counts: Sequence[int], seed: int) -> list[Choice]:
    """The best of several k-means for each number of clusters, without those for which too few customers differ.

    ``drawn`` has a row for each customer, features in their own units. The same rows and seed give the same answer.
    """
    points = _standardised(drawn)
    different = len(np.unique(points, axis=0)) if len(points) else 0
    return [_choice(points, seeded(points, count, (seed, count))) for count in counts if count <= different]


def in_force(drawn: Floats, model: ClusterModel) -> Choice:
    """The same of the clusters of a model, which were learned over a longer time than one draw."""
    codes = model.nearest(model.standardised(logged(drawn))).astype(np.int64)
    points = _standardised(drawn)
    centres = np.array([points[codes == code].mean(axis=0) for code in np.unique(codes).tolist()])
    found = _choice(points, centres, np.unique(codes, return_inverse=True)[1].reshape(-1))
    smallest = float(np.bincount(codes, minlength=len(model.centres)).min() / len(codes))
    return Choice(len(model.centres), found.silhouette, smallest, found.explained)


def _choice(points: Floats, centres: Floats, codes: Codes | None = None) -> Choice:
    count = len(centres)
    codes = nearest(points, centres) if codes is None else codes
    within = float(((points - centres[codes]) ** 2).sum())
    some = slice(SILHOUETTE_OF)
    return Choice(
        count,
        silhouette(points[some], codes[some], count),
        float(np.bincount(codes, minlength=count).min() / len(points)),
        1 - within / (inertia(points, np.zeros((1, points.shape[1]))) or 1),
    )


def _standardised(drawn: Floats) -> Floats:
    """The logarithms of rows, each column with mean 0 and deviation 1."""
    logs = logged(drawn)
    deviation = logs.std(axis=0)
    points: Floats = (logs - logs.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    return points
