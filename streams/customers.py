"""Stored customers in the form that people and other programs read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from models.counts import Count
from models.instants import FOREVER, NEVER, format_instant
from models.money import Converter
from models.rows import Unpacked, unpack
from streams.ports import StateStore


def _instant(value: int) -> str | None:
    return None if value in (NEVER, FOREVER) else format_instant(value)


def described(unpacked: Unpacked, values: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Any]]:
    """Unpacked rows, one dictionary a customer; amounts are decimal texts, instants RFC 3339, absent is None."""
    layout = unpacked.layout
    money, names = Converter(layout.currency, {}), layout.head.names or ()
    for customer, row in zip(unpacked.customers, unpacked.head.tolist(), strict=True):
        known = dict(zip(names, row, strict=True))
        gross, refunded, surveys = known["gross"], known["refunded"], known.get("surveys", 0)
        yield {
            "customer_id": customer,
            "signed_up_at": _instant(known["signed_up_at"]),
            "first_purchase_at": _instant(known["first_purchase_at"]),
            "last_purchase_at": _instant(known["last_purchase_at"]),
            "orders": known["orders"],
            "refunds": known["refunds"],
            "gross": money.text(gross),
            "refunded": money.text(refunded),
            "net": money.text(gross - refunded),
            "currency": layout.currency,
            "surveys": surveys,
            "satisfaction": round(known["score"] / surveys / 100, 2) if surveys else None,
            "attributes": {
                **{n: values[n][code] for n, code in zip(layout.attributes, known["value"], strict=True) if code >= 0},
                **{n: float(x) for n, x in zip(layout.numbers, known.get("number", ()), strict=True) if x == x},
            },
            "segments": {
                name: labels[code] if code >= 0 else None
                for (name, labels), code in zip(layout.labels.items(), known["label"], strict=True)
            },
        }


def customers_of(store: StateStore, shard: int) -> Iterator[dict[str, Any]]:
    """Every customer of a shard, in no particular order. Raises StateError, StoreUnavailable."""
    for rows in store.rows(shard):
        # Read after the rows, because a worker may have stored new layouts and values with them.
        header = store.header(shard)
        for group in unpack(rows, header.layouts):
            yield from described(group, header.values)


def customer_of(store: StateStore, shard: int, customer: str) -> dict[str, Any] | None:
    """One customer, or None if nothing is known. Raises StateError, StoreUnavailable."""
    row = store.row(shard, customer)
    if row is None:
        return None
    header = store.header(shard)
    (group,) = unpack([(customer, row)], header.layouts)
    return next(described(group, header.values))


def segment_sizes(store: StateStore, partitions: int) -> tuple[dict[str, Count], str]:
    """Every segment's size over all shards, by ``dimension:label``, and the currency of its revenue ("" if unknown)."""
    sizes: dict[str, Count] = {}
    currency = ""
    for shard in range(partitions):
        currency = next((layout.currency for layout in store.header(shard).layouts.values()), currency)
        for name, count in store.segments(shard).items():
            sizes[name] = sizes.get(name, Count(0, 0)).plus(count)
    return dict(sorted(sizes.items())), currency
