"""``customer``, ``segments`` and ``export``: what Redis holds, read only; ``segmenter policy`` opens it here too."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import click
import orjson

from models.activation import Activation
from models.counts import Count
from models.dimensions import dimensions_of
from models.engines import Profile
from models.errors import StateError
from models.money import Converter
from models.partitioner import partition_of
from models.policy import Policy, parse_policy
from models.rows import load, unpack
from models.table import CustomerTable
from streams.clusters import described_profiles
from streams.commands.options import settings_from, settings_options
from streams.commands.show import output, table, write_lines
from streams.commit import ShardHeader
from streams.customers import customer_of, customers_of
from streams.errors import ConfigurationError
from streams.ports import StateStore
from streams.settings import Settings
from streams.store import opened
from streams.store.redis import RedisStore


def open_stored(settings: Settings) -> tuple[RedisStore, int]:
    """The store and its number of shards. Raises ConfigurationError if nothing has been stored yet."""
    store = opened.open_store(settings)
    partitions = store.partitions()
    if partitions is None:
        raise ConfigurationError(
            f"Redis at {store.address} holds nothing under namespace {settings.namespace!r}; start a worker, "
            "or set SEGMENTER_NAMESPACE"
        )
    return store, partitions


def latest_activation(store: StateStore) -> Activation:
    """What is in force. Raises ConfigurationError if no policy was ever activated."""
    number = store.latest_activation()
    if not number:
        raise ConfigurationError("no policy is active yet; start a worker first")
    return store.activation(number)


def stored_policy(store: StateStore, activation: Activation) -> Policy:
    """The policy of an activation. Raises StateError if the store has lost it."""
    text = store.policy_text(activation.policy_version)
    if text is None:
        raise StateError(f"the store has no policy of version {activation.policy_version}; restore it from a backup")
    return parse_policy(text)


@click.command()
@click.argument("customer_id")
@settings_options("redis", "namespace")
def customer(customer_id: str, **given: Any) -> None:
    """Show what is known about one customer, and why they are in their segments, as JSON."""
    store, partitions = open_stored(settings_from(given))
    shard = partition_of(customer_id.encode(), partitions)
    found = customer_of(store, shard, customer_id)
    if found is None:
        raise ConfigurationError(f"nothing is known about customer {customer_id!r}")
    click.echo(orjson.dumps({**found, "reasons": _reasons(store, shard, customer_id)}, option=orjson.OPT_INDENT_2))


def _reasons(store: StateStore, shard: int, customer_id: str) -> dict[str, str]:
    """Why the customer has each segment, by the policy and cut-offs at which the shard is, at the shard's time."""
    row, header = store.row(shard, customer_id), store.header(shard)
    number = header.activation or store.latest_activation()
    if row is None or header.time is None or not 0 < number <= store.latest_activation():
        return {}
    activation = store.activation(number)
    policy = stored_policy(store, activation)
    table = CustomerTable(policy)
    (unpacked,) = unpack([(customer_id, row)], header.layouts)
    (at,) = load(table, unpacked, header.values).tolist()
    known = dimensions_of(policy, activation.cutoffs)
    return {each.name: each.reason(table, at, header.time) for each in known if each.name in unpacked.layout.labels}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="one JSON value a line")
@settings_options("redis", "namespace")
def segments(as_json: bool, **given: Any) -> None:
    """Show every segment's customers, revenue and orders, and which are too small for a campaign."""
    store, partitions = open_stored(settings_from(given))
    figures = list(_figures(store, partitions))
    if as_json:
        for each in figures:
            click.echo(orjson.dumps(each))
        return
    currency = figures[0]["currency"] if figures else ""
    columns = [
        "dimension", "segment", "title", "customers", "%", f"revenue ({currency})", "of it %", "average order",
        "orders each", "channel", "viable",
    ]  # fmt: skip
    rows = [
        (
            *(each["dimension"], each["segment"], each["title"] or "–", each["customers"], _percent(each["share"])),
            *(each["revenue"], _percent(each["revenue_share"]), each["average_order"] or "–"),
            *("–" if each["orders_per_customer"] is None else each["orders_per_customer"], each["channel"] or "–"),
            "" if each["viable"] else "too small",
        )
        for each in figures
    ]
    table("segments", columns, rows, numbers=columns[3:9])


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _figures(store: StateStore, partitions: int) -> Iterator[dict[str, Any]]:
    """Every segment of the active policy in its order; then those of shards that have not taken it yet."""
    sizes: dict[str, Count] = {}
    for shard in range(partitions):
        for name, count in store.segments(shard).items():
            sizes[name] = sizes.get(name, Count(0, 0)).plus(count)
    activation = latest_activation(store)
    policy = stored_policy(store, activation)
    learned = activation.cutoffs.clusters
    profiles = {
        f"{name}:{label}": profile
        for name, dimension in policy.dimensions.items()
        for label, profile in described_profiles(dimension, learned.get(name), policy.converter).items()
    }
    whole: dict[str, Count] = {}
    for name, count in sizes.items():
        dimension = name.partition(":")[0]
        whole[dimension] = whole.get(dimension, Count(0, 0)).plus(count)
    others = sorted(name for name, count in sizes.items() if name not in profiles and count.customers)
    for name in (*profiles, *others):
        dimension, _, label = name.partition(":")
        size, all_of_it, profile = sizes.get(name, Count(0, 0)), whole.get(dimension), profiles.get(name, Profile())
        viable = name not in activation.cutoffs.small
        yield {"dimension": dimension, "segment": label, **_figure(size, all_of_it, policy.converter, profile, viable)}


def _figure(size: Count, whole: Count | None, money: Converter, profile: Profile, viable: bool) -> dict[str, Any]:
    customers, revenue, orders = size
    everybody, earned = (whole.customers, whole.revenue) if whole is not None else (0, 0)
    return {
        "title": profile.title,
        "customers": customers,
        "share": round(customers / everybody, 4) if everybody else None,
        "revenue": money.text(revenue),
        "currency": money.base,
        "revenue_share": round(revenue / earned, 4) if earned > 0 else None,
        "orders": orders,
        "average_order": money.text(round(Fraction(revenue, orders))) if orders else None,
        "orders_per_customer": round(orders / customers, 2) if customers else None,
        "channel": profile.channel,
        "viable": viable,
        "description": profile.description,
        "needs": list(profile.needs),
        "offers": list(profile.offers),
    }


@click.command()
@click.option("--format", "form", type=click.Choice(["ndjson", "csv"]), default="ndjson", show_default=True, help="how")
@click.option("--out", default="-", metavar="FILE", show_default=True, help="- for standard output")
@settings_options("redis", "namespace")
def export(form: str, out: str, **given: Any) -> None:
    """Write every customer, in no particular order; amounts are decimal text.

    The CSV form has a column for each attribute, text or number, and each dimension.
    """
    store, partitions = open_stored(settings_from(given))

    def customers() -> Iterator[dict[str, Any]]:
        for shard in range(partitions):
            yield from customers_of(store, shard)

    if form == "ndjson":
        write_lines(out, customers())
    else:
        _write_csv(out, [store.header(shard) for shard in range(partitions)], customers())


def _write_csv(out: str, headers: list[ShardHeader], customers: Iterator[dict[str, Any]]) -> None:
    layouts = [layout for header in headers for layout in header.layouts.values()]
    attributes = sorted({name for layout in layouts for name in (*layout.attributes, *layout.numbers)})
    dimensions = sorted({name for layout in layouts for name in layout.labels})
    plain = [
        "customer_id", "signed_up_at", "first_purchase_at", "last_purchase_at", "orders", "refunds", "gross",
        "refunded", "net", "currency", "surveys", "satisfaction",
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
