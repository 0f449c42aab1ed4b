"""The packed form of a customer's row: fixed little-endian fields, then the remembered event ids, as stored.

``Layout`` says what the fields are; its JSON is stored beside the rows under ``layout_id``, which each row carries,
so a reader needs nothing but the store (docs/STATE.md). Rows of several layouts may lie side by side: a row is
written in the layout of the policy in force and read in its own.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import repeat
from operator import itemgetter
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from models.errors import StateError
from models.table import BYTE_OF_LABELS, NO_LABEL, NO_VALUE, AttributeValues, CustomerTable, Rows

#: The format that is written. Format 1, which is still read, has no activation, surveys, numbers and tallies; in it and
#: in format 2, which is read too, every label takes two bytes.
FORMAT: Final = 3
#: The layout_id of a row, as bytes.
_PREFIX: Final = itemgetter(slice(4))
_MEASURES: Final = (
    "signed_up_at", "first_purchase_at", "last_purchase_at", "orders", "refunds", "gross", "refunded",
)  # fmt: skip
_SINCE_2: Final = ("activation", "surveys", "score")


@dataclass(frozen=True)
class Layout:
    """What the fields of a row mean.

    The base currency, each dimension's labels by code, the kept texts and numbers, and how many texts each tally has
    room for.
    """

    currency: str
    labels: Mapping[str, tuple[str, ...]]
    attributes: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    tallies: Mapping[str, int] = field(default_factory=dict)
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
                "numbers": list(self.numbers),
                "tallies": self.tallies,
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
            if not 1 <= stored["format"] <= FORMAT:
                raise StateError(
                    f"rows were stored in format {stored['format']}, this version reads up to format {FORMAT}; "
                    "run a newer version"
                )
            newer = stored["format"] > 1
            return cls(
                stored["currency"],
                {name: tuple(labels) for name, labels in stored["dimensions"].items()},
                tuple(stored["attributes"]),
                tuple(stored["numbers"]) if newer else (),
                {name: int(width) for name, width in stored["tallies"].items()} if newer else {},
                stored["format"],
            )
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError(f"a stored row layout is damaged ({error!r}); restore the store from a backup") from None

    @cached_property
    def head(self) -> np.dtype[Any]:
        """The fixed fields of a row, packed without padding."""
        most = max(map(len, self.labels.values()), default=0)
        label = "i1" if self.format > 2 and most <= BYTE_OF_LABELS else "<i2"
        newer: list[tuple[Any, ...]] = [("activation", "<u4"), ("surveys", "<u4"), ("score", "<i8")]
        extra: list[tuple[Any, ...]] = [
            ("number", "<f8", (len(self.numbers),)),
            ("number_at", "<i8", (len(self.numbers),)),
            ("tally", "<f8", (sum(self.tallies.values()),)),
        ]
        fields: list[tuple[Any, ...]] = [
            ("layout", "<u4"),
            ("sequence", "<u4"),
            ("signed_up_at", "<i8"),
            ("first_purchase_at", "<i8"),
            ("last_purchase_at", "<i8"),
            ("orders", "<u4"),
            ("refunds", "<u4"),
            ("gross", "<i8"),
            ("refunded", "<i8"),
            *(newer if self.format > 1 else ()),
            ("label", label, (len(self.labels),)),
            ("changed_at", "<i8", (len(self.labels),)),
            ("value", "<i4", (len(self.attributes),)),
            ("value_at", "<i8", (len(self.attributes),)),
            *(extra if self.format > 1 else ()),
            ("seen", "u1"),
        ]
        return np.dtype(fields)


def layout_of(table: CustomerTable) -> Layout:
    """The layout in which a table's rows are written now; it changes as tallies meet more texts."""
    policy = table.policy
    return Layout(
        policy.money.base,
        {name: dimension.labels for name, dimension in policy.dimensions.items()},
        table.attributes,
        table.numbers,
        {name: weights.shape[1] for name, weights in table.tally.items()},
    )


@lru_cache
def _whole(head: np.dtype[Any], remembered: int) -> np.dtype[Any]:
    """A row's fixed fields with room for so many remembered event ids."""
    return np.dtype([("head", head), ("ids", "<u8", (remembered,))])


def pack(table: CustomerTable, layout: Layout, rows: Rows) -> list[bytes]:
    """The rows as stored."""
    whole = _whole(layout.head, table.seen.most)
    packed = np.zeros(len(rows), dtype=whole)
    head = packed["head"]
    head["layout"] = layout.id
    for name in ("sequence", *_MEASURES, *_SINCE_2):
        head[name] = getattr(table, name)[rows]
    for name in ("changed_at", "value", "value_at", "number", "number_at"):
        for at, column in enumerate(getattr(table, name)):
            head[name][:, at] = column[rows]
    label = table.label[rows]
    # A retired segment is stored as none: by now the row has moved out of it.
    head["label"] = np.where(label < [len(labels) for labels in layout.labels.values()], label, NO_LABEL)
    if table.tally:
        head["tally"] = np.concatenate([weights[rows] for weights in table.tally.values()], axis=1)
    head["seen"] = counts = table.seen.counts(rows)
    # So that a reader that keeps fewer ids keeps the latest.
    packed["ids"] = table.seen.oldest_first(rows)
    data = packed.tobytes()
    size, fixed = whole.itemsize, layout.head.itemsize
    ends = (np.arange(len(rows)) * size + fixed + 8 * counts).tolist()
    return [data[i * size : end] for i, end in enumerate(ends)]


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Stored rows of one layout: the fixed fields as a structured array and the remembered ids, oldest first."""

    layout: Layout
    customers: Sequence[str]
    head: NDArray[Any]
    ids: NDArray[np.uint64]


def unpack(stored: Sequence[tuple[str, bytes]], layouts: Mapping[int, Layout]) -> list[Unpacked]:
    """Stored (customer_id, row) pairs, grouped by layout. Raises StateError for a row that no layout explains."""
    result = []
    prefixes = set(map(_PREFIX, map(itemgetter(1), stored)))
    for prefix in sorted(prefixes):
        pairs = stored if len(prefixes) == 1 else [pair for pair in stored if pair[1].startswith(prefix)]
        customers, rows = zip(*pairs, strict=True)
        layout = layouts.get(int.from_bytes(prefix, "little"))
        if layout is None:
            raise StateError(f"the row of customer {customers[0]!r} has a layout that is not stored; restore the store")
        fixed, sizes = layout.head.itemsize, np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        most = max(1, -(-(int(sizes.max()) - fixed) // 8))
        whole = _whole(layout.head, most)
        data = b"".join(map(bytes.ljust, rows, repeat(whole.itemsize), repeat(b"\0")))
        packed = np.frombuffer(data, dtype=whole)
        damaged = np.flatnonzero(sizes != fixed + 8 * packed["head"]["seen"].astype(np.int64))
        if len(damaged):
            raise StateError(f"the stored row of customer {customers[damaged[0]]!r} is damaged; restore the store")
        result.append(Unpacked(layout, customers, packed["head"], packed["ids"]))
    return result


def load(table: CustomerTable, unpacked: Unpacked, values: Mapping[str, Sequence[str]]) -> Rows:
    """Put unpacked rows of customers who have none yet into the table, under its own policy. Returns where they are.

    Labels are mapped by name; one that the policy no longer has stays as a retired one until the row is labelled
    anew. ``values`` holds the stored dictionary of each attribute and tally. Raises StateError when the rows are in
    another base currency.
    """
    layout, head = unpacked.layout, unpacked.head
    if layout.currency != table.policy.money.base:
        raise StateError(
            f"the stored amounts are in {layout.currency}, the policy's base is {table.policy.money.base}; "
            "set money.base back, or start with another namespace and rebuild"
        )
    rows = table.add(list(unpacked.customers))
    where = _where(rows)
    for name in ("sequence", *_MEASURES, *(_SINCE_2 if layout.format > 1 else ())):
        getattr(table, name)[where] = head[name]
    _load_labels(table, where, unpacked)
    for at, attribute in enumerate(layout.attributes):
        if attribute in table.attributes:
            a, remap = table.attributes.index(attribute), _remap(table.values[attribute], values.get(attribute, ()))
            table.value[a][where] = remap[head["value"][:, at]]
            table.value_at[a][where] = head["value_at"][:, at]
    for at, number in enumerate(layout.numbers):
        if number in table.numbers:
            n = table.numbers.index(number)
            table.number[n][where] = head["number"][:, at]
            table.number_at[n][where] = head["number_at"][:, at]
    _load_tallies(table, rows, unpacked, values)
    table.seen.load(rows, unpacked.ids, head["seen"].astype(np.int64))
    return rows


def _load_labels(table: CustomerTable, where: Rows | slice, unpacked: Unpacked) -> None:
    stored, label, changed_at = unpacked.layout.labels, unpacked.head["label"], unpacked.head["changed_at"]
    if list(stored.items()) == [(name, each.labels) for name, each in table.policy.dimensions.items()]:
        table.label[where] = label
        for d, column in enumerate(table.changed_at):
            column[where] = changed_at[:, d]
        return
    for at, (name, texts) in enumerate(stored.items()):
        if name in table.dimensions:
            d = table.dimensions.index(name)
            borne = set(np.unique(label[:, at]).tolist())
            codes = [table.label_code(d, text) if i in borne else NO_LABEL for i, text in enumerate(texts)]
            recode = np.array([*codes, NO_LABEL], dtype=np.int16)
            table.label[where, d] = recode[label[:, at]]
            table.changed_at[d][where] = changed_at[:, at]


def _where(rows: Rows) -> Rows | slice:
    """The same rows, as a slice if they lie one after the other: that is assigned several times faster."""
    consecutive = len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all()
    return slice(int(rows[0]), int(rows[-1]) + 1) if consecutive else rows


def _remap(known: AttributeValues, texts: Sequence[str]) -> NDArray[np.int32]:
    """Stored codes to the table's; NO_VALUE stays."""
    return np.array([*(known.code(text) for text in texts), NO_VALUE], dtype=np.int32)


def _load_tallies(table: CustomerTable, rows: Rows, unpacked: Unpacked, values: Mapping[str, Sequence[str]]) -> None:
    start = 0
    for name, width in unpacked.layout.tallies.items():
        if name in table.tally:
            stored = unpacked.head["tally"][:, start : start + width]
            texts = values.get(name, ())[:width]
            codes = _remap(table.values[name], texts)[:-1]
            table.widen(name, int(codes.max(initial=0)) + 1)
            table.tally[name][rows[:, None], codes] = stored[:, : len(texts)]
        start += width
