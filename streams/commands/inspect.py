"""``customer``, ``segments`` and ``export``: what Redis holds, read only."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

import click
import orjson

from models.money import Converter
from models.partitioner import partition_of
from streams.commands.options import settings_from, settings_options
from streams.commands.show import output, table, write_lines
from streams.commit import ShardHeader
from streams.customers import customer_of, customers_of, segment_sizes
from streams.errors import ConfigurationError
from streams.settings import Settings
from streams.store.redis import RedisStore


def _open(settings: Settings) -> tuple[RedisStore, int]:
    """The store and its number of shards. Raises ConfigurationError if nothing has been stored yet."""
    from streams.wiring import open_store

    store = open_store(settings)
    partitions = store.partitions()
    if partitions is None:
        raise ConfigurationError(
            f"Redis at {store.address} holds nothing under namespace {settings.namespace!r}; start a worker, "
            "or set SEGMENTER_NAMESPACE"
        )
    return store, partitions


@click.command()
@click.argument("customer_id")
@settings_options("redis", "namespace")
def customer(customer_id: str, **given: Any) -> None:
    """Show what is known about one customer, as JSON."""
    store, partitions = _open(settings_from(given))
    found = customer_of(store, partition_of(customer_id.encode(), partitions), customer_id)
    if found is None:
        raise ConfigurationError(f"nothing is known about customer {customer_id!r}")
    click.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="one JSON value a line")
@settings_options("redis", "namespace")
def segments(as_json: bool, **given: Any) -> None:
    """Show every segment's customers and revenue."""
    store, partitions = _open(settings_from(given))
    sizes, currency = segment_sizes(store, partitions)
    money = Converter(currency or "USD", {})
    rows = [(*name.split(":", 1), size.customers, money.text(size.revenue)) for name, size in sizes.items()]
    if as_json:
        for dimension, label, size, amount in rows:
            value = {
                "dimension": dimension,
                "segment": label,
                "customers": size,
                "revenue": amount,
                "currency": currency,
            }
            click.echo(orjson.dumps(value))
        return
    columns = ["dimension", "segment", "customers", f"revenue ({currency})"]
    table("segments", columns, rows, numbers=columns[2:])


@click.command()
@click.option("--format", "form", type=click.Choice(["ndjson", "csv"]), default="ndjson", show_default=True, help="how")
@click.option("--out", default="-", metavar="FILE", show_default=True, help="- for standard output")
@settings_options("redis", "namespace")
def export(form: str, out: str, **given: Any) -> None:
    """Write every customer, in no particular order; amounts are decimal text.

    The CSV form has a column for each attribute and each dimension.
    """
    store, partitions = _open(settings_from(given))

    def customers() -> Iterator[dict[str, Any]]:
        for shard in range(partitions):
            yield from customers_of(store, shard)

    if form == "ndjson":
        write_lines(out, customers())
    else:
        _write_csv(out, [store.header(shard) for shard in range(partitions)], customers())


def _write_csv(out: str, headers: list[ShardHeader], customers: Iterator[dict[str, Any]]) -> None:
    layouts = [layout for header in headers for layout in header.layouts.values()]
    attributes = sorted({name for layout in layouts for name in layout.attributes})
    dimensions = sorted({name for layout in layouts for name in layout.labels})
    plain = [
        "customer_id", "signed_up_at", "first_purchase_at", "last_purchase_at", "orders", "refunds", "gross",
        "refunded", "net", "currency",
    ]  # fmt: skip
    with output(out) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(text)
        writer.writerow([*plain, *(f"attributes.{a}" for a in attributes), *(f"segments.{d}" for d in dimensions)])
        for each in customers:
            writer.writerow(
                [
                    *(each[name] for name in plain),
                    *(each["attributes"].get(name) for name in attributes),
                    *(each["segments"].get(name) for name in dimensions),
                ]
            )
        text.detach()
