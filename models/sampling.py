"""Draw: customers of one shard, drawn uniformly, as a clustering learns from them.

Each customer has a number for each instant, as good as random and the same on any machine; drawn are those with the
smallest. So the smallest of all shards' draws are a draw from all customers, and it does not matter how many shards
there are or in which order rows lie (a bottom-k sketch: E. Cohen, H. Kaplan, "Summarizing data using bottom-k
sketches", PODC 2007).
"""

from __future__ import annotations

from typing import Annotated, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from models.clusters import Count, Document, Finite, Floats, Settings
from models.engines import ClusterPolicy
from models.hashes import hashes_of
from models.instants import Instants
from models.measures import measure
from models.policy import Policy
from models.table import CustomerTable, Rows

#: Measures that time moves, by the column from which they count whole days.
MOVING: Final = {"recency_days": "last_purchase_at", "tenure_days": "first_purchase_at"}
#: Measures that are money, in units of the base currency.
MONEY: Final = frozenset(("monetary", "average_order"))
#: Customers whose ids are texts at once.
_AT_ONCE: Final = 10_000
#: Decimals of a measure in a draw.
_DECIMALS: Final = 6


class Features:
    """The measures of a cluster dimension: money in units of the base currency, days whole."""

    def __init__(self, policy: ClusterPolicy, whole: Policy) -> None:
        self.names: Final = policy.features
        self._measures = [measure(name, whole) for name in policy.features]
        self._minor = float(whole.converter.one("1", whole.converter.base))
        self.reads: Final = frozenset[str]().union(*(each.reads for each in self._measures))

    def values(self, table: CustomerTable, rows: Rows, at: Instants) -> Floats:
        """A row for each customer at their instant, a column for each feature, NaN where there is no value."""
        found = np.empty((len(rows), len(self._measures)))
        for column, each in enumerate(self._measures):
            value = each.value(table, rows, at)
            if each.name in MOVING:
                value = np.floor(value)
            elif each.name in MONEY:
                value = value / self._minor
            found[:, column] = value
        return found


class Draw(Document):
    """Customers of shard ``shard`` of ``shards`` as of an instant (microseconds), for one dimension.

    ``keys`` are their numbers, ascending, ``rows`` their features in the order of the settings. ``begins`` says that
    the shard had no customers before.
    """

    what = "a draw of customers"

    dimension: str
    settings: Settings
    policy_version: int
    shard: Count
    shards: Annotated[int, Field(ge=1)]
    as_of: int
    begins: bool
    keys: tuple[Annotated[int, Field(ge=0, lt=2**64)], ...]
    rows: tuple[tuple[Finite, ...], ...]

    @model_validator(mode="after")
    def _consistent(self) -> Draw:
        if len(self.keys) != len(self.rows) or any(len(row) != len(self.settings.features) for row in self.rows):
            raise ValueError("there must be a key for each row, and a number for each feature")
        if self.shard >= self.shards:
            raise ValueError(f"there are {self.shards} shards, counted from 0")
        return self


def draw_of(
    table: CustomerTable, dimension: str, instant: int, shard: int, shards: int, *, begins: bool = False
) -> Draw:
    """A shard's draw for a cluster dimension of its policy: of those who have every feature, ``sample`` at most."""
    policy = table.policy.dimensions[dimension]
    assert isinstance(policy, ClusterPolicy)  # noqa: S101
    rows = table.rows
    values = Features(policy, table.policy).values(table, rows, np.full(len(rows), instant, dtype=np.int64))
    eligible = np.isfinite(values).all(axis=1)
    rows, values = rows[eligible], np.round(values[eligible], _DECIMALS)
    parts = np.array_split(rows, 1 + len(rows) // _AT_ONCE)
    who = np.concatenate([hashes_of(table.index.names(part)) for part in parts])
    keys = _mixed(who ^ _mixed(np.array([instant], dtype=np.int64).view(np.uint64)))
    drawn = np.argpartition(keys, policy.sample)[: policy.sample] if len(keys) > policy.sample else np.arange(len(keys))
    drawn = drawn[np.argsort(keys[drawn], kind="stable")]
    return Draw(
        dimension=dimension,
        settings=Settings.of(policy),
        policy_version=table.policy.version,
        shard=shard,
        shards=shards,
        as_of=instant,
        begins=begins,
        keys=tuple(keys[drawn].tolist()),
        rows=tuple(tuple(row) for row in values[drawn].tolist()),
    )


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", 2014."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
