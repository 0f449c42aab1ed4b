"""The packed form of a customer's row: fixed little-endian fields, then the remembered event ids, as stored.

``Layout`` says what the fields are; its JSON is stored beside the rows under ``layout_id``, which each row carries,
so a reader needs nothing but the store (docs/STATE.md). Rows of several layouts may lie side by side: a row is
written in the layout of the policy in force and read in its own.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from models.dimensions.base import Dimension
from models.errors import StateError
from models.policy import Policy
from models.table import NO_LABEL, NO_VALUE, AttributeValues, CustomerTable, Rows

FORMAT: Final = 1

_MEASURES: Final = (
    "signed_up_at", "first_purchase_at", "last_purchase_at", "orders", "refunds", "gross", "refunded",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """What the fields of a row mean: the base currency, each dimension's labels by code, the kept attributes."""

    currency: str
    labels: Mapping[str, tuple[str, ...]]
    attributes: tuple[str, ...]
    format: int = FORMAT

    @cached_property
    def json(self) -> bytes:
        """The layout as stored."""
        return orjson.dumps(
            {
                "format": self.format,
                "currency": self.currency,
                "dimensions": {name: list(labels) for name, labels in self.labels.items()},
                "attributes": list(self.attributes),
            }
        )

    @cached_property
    def id(self) -> int:
        """CRC-32 of the stored JSON; the first four bytes of a row."""
        return zlib.crc32(self.json)

    @classmethod
    def parse(cls, text: bytes) -> Layout:
        """Read a stored layout. Raises StateError if a newer version wrote it or it is damaged."""
        try:
            stored = orjson.loads(text)
            if stored["format"] != FORMAT:
                raise StateError(
                    f"rows were stored in format {stored['format']}, this version reads format {FORMAT}; "
                    "run a newer version"
                )
            return cls(
                stored["currency"],
                {name: tuple(labels) for name, labels in stored["dimensions"].items()},
                tuple(stored["attributes"]),
                stored["format"],
            )
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise StateError(f"a stored row layout is damaged ({error!r}); restore the store from a backup") from None

    @cached_property
    def head(self) -> np.dtype[Any]:
        """The fixed fields of a row, packed without padding."""
        return np.dtype(
            [
                ("layout", "<u4"),
                ("sequence", "<u4"),
                ("signed_up_at", "<i8"),
                ("first_purchase_at", "<i8"),
                ("last_purchase_at", "<i8"),
                ("orders", "<u4"),
                ("refunds", "<u4"),
                ("gross", "<i8"),
                ("refunded", "<i8"),
                ("label", "<i2", (len(self.labels),)),
                ("changed_at", "<i8", (len(self.labels),)),
                ("value", "<i4", (len(self.attributes),)),
                ("value_at", "<i8", (len(self.attributes),)),
                ("seen", "u1"),
            ]
        )


def layout_of(policy: Policy, dimensions: Sequence[Dimension]) -> Layout:
    """The layout in which rows are written under a policy."""
    return Layout(policy.money.base, {d.name: d.labels for d in dimensions}, policy.attributes.keep)


def pack(table: CustomerTable, layout: Layout, rows: Rows) -> list[bytes]:
    """The rows as stored."""
    remembered = table.seen.shape[1]
    whole = np.dtype([("head", layout.head), ("ids", "<u8", (remembered,))])
    packed = np.zeros(len(rows), dtype=whole)
    head = packed["head"]
    head["layout"] = layout.id
    for name in ("sequence", *_MEASURES, "label", "changed_at", "value", "value_at"):
        head[name] = getattr(table, name)[rows]
    counts = np.minimum(table.seen_count[rows], remembered)
    head["seen"] = counts
    # Oldest first, so that a reader that keeps fewer ids keeps the latest.
    first = np.where(table.seen_count[rows] > remembered, table.seen_count[rows] % remembered, 0)
    order = (first[:, None] + np.arange(remembered)) % remembered
    packed["ids"] = np.take_along_axis(table.seen[rows], order, axis=1)
    data = packed.tobytes()
    size, fixed = whole.itemsize, layout.head.itemsize
    ends = (np.arange(len(rows)) * size + fixed + 8 * counts).tolist()
    return [data[i * size : end] for i, end in enumerate(ends)]


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Stored rows of one layout: the fixed fields as a structured array and the remembered ids, oldest first."""

    layout: Layout
    customers: list[str]
    head: NDArray[Any]
    ids: NDArray[np.uint64]


def unpack(stored: Sequence[tuple[str, bytes]], layouts: Mapping[int, Layout]) -> list[Unpacked]:
    """Stored (customer_id, row) pairs, grouped by layout. Raises StateError for a row that no layout explains."""
    groups: dict[bytes, list[tuple[str, bytes]]] = {}
    for pair in stored:
        groups.setdefault(pair[1][:4], []).append(pair)
    result = []
    for prefix, pairs in groups.items():
        layout = layouts.get(int.from_bytes(prefix, "little"))
        if layout is None:
            raise StateError(f"the row of customer {pairs[0][0]!r} has a layout that is not stored; restore the store")
        fixed = layout.head.itemsize
        most = max(1, max(len(row) - fixed for _, row in pairs) // 8)
        whole = np.dtype([("head", layout.head), ("ids", "<u8", (most,))])
        for customer, row in pairs:
            if len(row) < fixed or len(row) != fixed + 8 * row[fixed - 1]:
                raise StateError(f"the stored row of customer {customer!r} is damaged; restore the store")
        data = b"".join([row.ljust(whole.itemsize, b"\0") for _, row in pairs])
        packed = np.frombuffer(data, dtype=whole)
        result.append(Unpacked(layout, [customer for customer, _ in pairs], packed["head"], packed["ids"]))
    return result


def load(
    table: CustomerTable, dimensions: Sequence[Dimension], unpacked: Unpacked, values: Mapping[str, Sequence[str]]
) -> None:
    """Put unpacked rows into the table, under the table's own policy.

    Labels are mapped by name: a label or dimension that the policy no longer has becomes NO_LABEL. ``values`` holds
    the stored dictionary of each attribute. Raises StateError when the rows are in another base currency.
    """
    layout, head = unpacked.layout, unpacked.head
    if layout.currency != table.policy.money.base:
        raise StateError(
            f"the stored amounts are in {layout.currency}, the policy's base is {table.policy.money.base}; "
            "set money.base back, or start with another namespace and rebuild"
        )
    rows = table.place(unpacked.customers)
    for name in ("sequence", *_MEASURES):
        getattr(table, name)[rows] = head[name]
    stored_dimensions = list(layout.labels)
    for d, dimension in enumerate(dimensions):
        if dimension.name in layout.labels:
            at = stored_dimensions.index(dimension.name)
            codes = {label: code for code, label in enumerate(dimension.labels)}
            names = layout.labels[dimension.name]
            recode = np.array([*(codes.get(label, NO_LABEL) for label in names), NO_LABEL], dtype=np.int16)
            table.label[rows, d] = recode[head["label"][:, at]]
            table.changed_at[rows, d] = head["changed_at"][:, at]
    for a, attribute in enumerate(table.attributes):
        if attribute in layout.attributes:
            at = layout.attributes.index(attribute)
            known: AttributeValues = table.values[attribute]
            codes_now = [known.code(text) for text in values.get(attribute, ())]
            remap = np.array([*codes_now, NO_VALUE], dtype=np.int32)
            table.value[rows, a] = remap[head["value"][:, at]]
            table.value_at[rows, a] = head["value_at"][:, at]
    kept = table.seen.shape[1]
    ids, counts = unpacked.ids, head["seen"].astype(np.int64)
    newest = np.maximum(counts - kept, 0)[:, None] + np.arange(min(kept, ids.shape[1]))
    table.seen[rows, : newest.shape[1]] = np.take_along_axis(ids, np.minimum(newest, ids.shape[1] - 1), axis=1)
    table.seen_count[rows] = np.minimum(counts, kept)


def relabel_deadlines(table: CustomerTable, dimensions: Sequence[Dimension], instant: int) -> None:
    """Recompute every deadline, which is not stored, as of the shard's time."""
    rows = table.rows
    for d, dimension in enumerate(dimensions):
        table.set_deadline(rows, d, dimension.deadline(table, rows, np.full(len(rows), instant, dtype=np.int64)))
