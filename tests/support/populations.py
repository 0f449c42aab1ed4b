"""Generated populations whose clusters are known, and draws from them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.clusters import Settings
from models.sampling import Draw

Values = NDArray[np.float64]

FEATURES = ("recency_days", "orders", "monetary")
DAY = 86_400_000_000
#: Typical days since the last purchase, orders and money of kinds of customers, and their shares.
USUAL = (
    (5, 20, 900, 0.10),
    (20, 6, 200, 0.20),
    (60, 2, 150, 0.25),
    (200, 3, 60, 0.25),
    (400, 1, 15, 0.20),
)
#: The same people after their behaviour changed: who were the best stay away, others order much more, for less.
CHANGED = (
    (150, 20, 900, 0.10),
    (8, 25, 250, 0.20),
    (60, 2, 600, 0.25),
    (30, 9, 60, 0.25),
    (700, 1, 15, 0.20),
)


def population(seed: int, customers: int = 20_000, kinds: Sequence[tuple[float, ...]] = USUAL) -> Values:
    """Customers of some kinds, a row each: days and orders are whole, each by its own factor from the typical."""
    rng = np.random.default_rng(seed)
    typical = np.array([kind[:3] for kind in kinds])
    shares = np.array([kind[3] for kind in kinds])
    kind = rng.choice(len(kinds), customers, p=shares / shares.sum())
    values = np.exp(np.log(typical[kind]) + rng.normal(0, (0.5, 0.35, 0.4), (customers, 3)))
    return np.column_stack([np.floor(values[:, 0]), np.maximum(np.round(values[:, 1]), 1), np.round(values[:, 2], 2)])


def shapeless(seed: int, customers: int = 20_000) -> Values:
    """Customers of one kind, very different from each other, as most real ones are: clusters only part them."""
    rng = np.random.default_rng(seed)
    orders = rng.geometric(1 / (1 + rng.pareto(1.5, customers)))
    spent = np.round(orders * np.exp(rng.normal(3, 0.8, customers)), 2)
    return np.column_stack([np.floor(rng.exponential(200 / np.sqrt(orders))), orders.astype(np.float64), spent])


def draw(
    values: Values,
    day: int,
    seed: int,
    sample: int = 1000,
    clusters: int = 5,
    features: tuple[str, ...] = FEATURES,
    version: int = 1,
    settings_seed: int = 1,
) -> Draw:
    """Some of the customers, drawn for a day by the only shard."""
    rng = np.random.default_rng((seed, day))
    size = min(sample, len(values))
    keys = np.sort(rng.integers(0, 2**63, size)).tolist()
    rows = values[rng.choice(len(values), size, replace=False)].tolist()
    settings = Settings(features=features, clusters=clusters, sample=sample, seed=settings_seed)
    return Draw(
        dimension="cluster",
        settings=settings,
        policy_version=version,
        shard=0,
        shards=1,
        as_of=day * DAY,
        begins=False,
        keys=tuple(keys),
        rows=tuple(tuple(row) for row in rows),
    )


def split(whole: Draw, shards: int) -> list[Draw]:
    """The draws of several shards that are one draw together."""
    return [
        whole.model_copy(
            update={
                "shard": shard,
                "shards": shards,
                "keys": tuple(key for key in whole.keys if key % shards == shard),
                "rows": tuple(row for key, row in zip(whole.keys, whole.rows, strict=True) if key % shards == shard),
            }
        )
        for shard in range(shards)
    ]


def begins(like: Draw, shard: int, day: int) -> Draw:
    """The empty draw of a shard that had no customers before a day."""
    return like.model_copy(update={"shard": shard, "as_of": day * DAY, "begins": True, "keys": (), "rows": ()})


def days(values: Values, until: int, first: int = 1, **more: Any) -> list[Draw]:
    """A draw a day of some population."""
    return [draw(values, day, 3, **more) for day in range(first, until + 1)]


def story() -> list[Draw]:
    """Draws of one population, then of another."""
    return [*days(population(4), 3), *days(population(5, kinds=CHANGED), 7, 4)]
