"""Numbers of one draw: where centres begin, where one is missing, how well they part it, which are the old ones.

Points have a row for each customer and a column for each feature, standardised. Sums are made in a fixed order and
without matrix products, so that every machine finds the same.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.random import PCG64
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from models.clusters import Floats, squares

Codes = NDArray[np.int64]

#: Points of a draw, the first, whose silhouette is computed: it costs their square.
SILHOUETTE_OF: Final = 1000
_TRIES: Final = 5
_ROUNDS: Final = 20
_BITS: Final = 53
#: Points whose distances to all others are in memory together.
_BLOCK: Final = 64


def nearest(points: Floats, centres: Floats) -> Codes:
    """The code of each point's nearest centre, the first of equally near ones."""
    codes: Codes = squares(points, centres).argmin(axis=1)
    return codes


def total(values: Floats) -> float:
    """The sum, one after the other."""
    return float(np.cumsum(values)[-1]) if len(values) else 0.0


def inertia(points: Floats, centres: Floats) -> float:
    """The sum of the squared distances to the nearest centre."""
    return total(squares(points, centres).min(axis=1))


def seeded(points: Floats, clusters: int, seed: tuple[int, ...]) -> Floats:
    """Centres by k-means++ and Lloyd's algorithm, the best of several tries.

    D. Arthur, S. Vassilvitskii, "k-means++: The advantages of careful seeding", SODA 2007. With fewer different points
    than clusters some centres are equal.
    """
    bits = PCG64(list(seed))
    tries = [_settled(points, _spread(points, clusters, bits)) for _ in range(_TRIES)]
    return min(tries, key=lambda centres: inertia(points, centres))


def _fraction(bits: PCG64) -> float:
    """A number in [0, 1): the raw bits are promised to be the same in every version of NumPy."""
    return (int(bits.random_raw()) >> (64 - _BITS)) / float(1 << _BITS)


def _spread(points: Floats, clusters: int, bits: PCG64) -> Floats:
    """Points drawn one after the other, each with a chance in proportion to its square from those before."""
    chosen = [int(_fraction(bits) * len(points))]
    least = squares(points, points[chosen])[:, 0]
    for _ in range(clusters - 1):
        sums = np.cumsum(least)
        place = int(np.searchsorted(sums, _fraction(bits) * sums[-1], side="right"))
        chosen.append(min(place, len(points) - 1))
        least = np.minimum(least, squares(points, points[chosen[-1:]])[:, 0])
    return points[chosen]


def _settled(points: Floats, centres: Floats) -> Floats:
    """Lloyd's algorithm: each centre to the mean of its points, some rounds; one without points stays."""
    for _ in range(_ROUNDS):
        codes = nearest(points, centres)
        sizes = np.bincount(codes, minlength=len(centres))
        sums = np.column_stack([np.bincount(codes, column, len(centres)) for column in points.T])
        moved = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def missing(points: Floats, centres: Floats) -> Floats | None:
    """The point at which one more centre lowers the error most; None if none does."""
    least = squares(points, centres).min(axis=1)
    gains = [total(np.maximum(least - column, 0)) for column in squares(points, points).T]
    best = int(np.argmax(gains))
    return points[best] if gains[best] > 0 else None


def silhouette(points: Floats, codes: Codes, clusters: int) -> float:
    """The mean silhouette of the points, 0 where a cluster has one alone; 0 if all are in one cluster.

    P. Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis", 1987.
    """
    order = np.argsort(codes, kind="stable")
    points, codes = points[order], codes[order]
    sizes = np.bincount(codes, minlength=clusters)
    here = np.flatnonzero(sizes)
    if len(here) < 2:
        return 0.0
    begins = np.searchsorted(codes, here)
    blocks = [points[start : start + _BLOCK] for start in range(0, len(points), _BLOCK)]
    sums = np.concatenate([np.add.reduceat(np.sqrt(squares(block, points)), begins, axis=1) for block in blocks])
    own = np.searchsorted(here, codes)
    rows, sizes = np.arange(len(points)), sizes[here]
    within = sums[rows, own] / np.maximum(sizes[own] - 1, 1)
    means = sums / sizes
    means[rows, own] = np.inf
    across = means.min(axis=1)
    larger = np.maximum(within, across)
    alone = (sizes[own] == 1) | (larger == 0)
    scores = np.where(alone, 0.0, (across - within) / np.where(alone, 1.0, larger))
    return total(scores) / len(points)


def matched(old: Codes, new: Codes, apart: Floats) -> list[int]:
    """For each old cluster the new one that has most of its points, all of them together (Hungarian assignment).

    ``old`` and ``new`` are the points' codes, ``apart`` the distance from each old centre (row) to each new one, which
    decides between equals.
    """
    clusters = len(apart)
    common = np.bincount(old * clusters + new, minlength=clusters * clusters).reshape(clusters, clusters)
    most = float(apart.max())
    # All distances together weigh less than one point.
    ties = apart / (most * (clusters + 1)) if most > 0 else apart
    _, found = linear_sum_assignment(ties - common)
    return [int(place) for place in found]
