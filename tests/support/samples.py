"""A recorded log of draws, as shards would have made it: what a trainer learns from."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from models.clusters import Settings
from models.sampling import Draw

DAY = 86_400_000_000
#: Typical days since the last purchase and orders of three kinds of customers.
KINDS = np.array([[3.0, 25.0], [40.0, 6.0], [300.0, 1.0]])


def recorded(
    days: int, shards: int = 2, sample: int = 60, seed: int = 1, dimension: str = "cluster", **more: Any
) -> Iterator[Draw]:
    """For each shard the empty draw with which it begins, then one for each day, now this shard's first, now that's.

    ``more`` are fields of every draw. After half of the days, customers of the last kind begin to buy.
    """
    rng = np.random.default_rng(seed)
    settings = Settings(features=("recency_days", "orders"), clusters=3, sample=sample, seed=1)
    for day in range(days + 1):
        for shard in rng.permutation(shards).tolist():
            size = sample if day else 0
            kinds = KINDS[rng.integers(0, len(KINDS), size)]
            if day > days / 2:
                kinds[kinds[:, 0] > 100] = (9.0, 60.0)
            rows = np.round(kinds * np.exp(rng.normal(0, 0.2, kinds.shape)), 6)
            fields: Mapping[str, Any] = {
                "dimension": dimension,
                "settings": settings,
                "policy_version": 1,
                "shard": shard,
                "shards": shards,
                "as_of": day * DAY,
                "begins": not day,
                "keys": tuple(np.sort(rng.integers(0, 2**63, size)).tolist()),
                "rows": tuple(map(tuple, rows.tolist())),
            }
            yield Draw(**{**fields, **more})


def values(draws: Iterator[Draw]) -> list[bytes]:
    """The draws as they are sent."""
    return [draw.encode() for draw in draws]
