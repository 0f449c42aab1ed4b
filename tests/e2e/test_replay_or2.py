"""Online Retail II: refunds, redeliveries and events without a customer, as a real shop recorded them.

A plain recomputation of every customer's totals, with dictionaries and Decimal, is the measure. The policy is the
lifecycle alone; test_segments_or2.py has all the others.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any

import orjson
import pytest

from models.changes import SegmentChanged
from models.instants import format_instant
from models.policy import Policy, default_policy, parse_policy
from streams.recorded import RecordedEvent, read_recorded
from streams.replay import Replay, Replayed

PURCHASES, REFUNDS, CUSTOMERS, COUNTRIES, ANONYMOUS, REDELIVERED = 36_975, 7_901, 5_942, 41, 3_497, 901


@dataclass
class Totals:
    """One customer, recomputed."""

    orders: int = 0
    refunds: int = 0
    gross: Decimal = Decimal(0)
    refunded: Decimal = Decimal(0)
    first: str | None = None
    last: str | None = None
    countries: list[tuple[str, str]] = field(default_factory=list)
    refund_came_first: bool = False


def pounds() -> Policy:
    """The shipped policy that has the lifecycle alone, in pounds."""
    text = resources.files("models").joinpath("policies/lifecycle.toml").read_text(encoding="utf-8")
    return parse_policy(f'{text}\n[money]\nbase = "GBP"\n')


def recorded(folder: Path, *names: str) -> list[RecordedEvent]:
    """The events of the files, merged by time."""
    return list(read_recorded([str(folder / f"or2_{name}.ndjson.gz") for name in names]))


def run(events: Iterable[RecordedEvent], shards: int = 1, batch_size: int = 5000) -> Replayed:
    """A replay that ends with the last event."""
    replay = Replay(pounds(), shards, batch_size)
    for _ in replay.feed(events):
        pass
    return replay.finish()


def recomputed(events: Sequence[RecordedEvent]) -> dict[str, Totals]:
    """Every customer's totals. The times are all whole seconds in UTC, so their text orders them."""
    customers: dict[str, Totals] = {}
    for event in events:
        fields = orjson.loads(event.value)
        totals = customers.setdefault(fields["customer_id"], Totals())
        amount, when = Decimal(fields["amount"]), fields["occurred_at"]
        if fields["kind"] == "purchase":
            totals.orders += 1
            totals.gross += amount
            totals.first = min(totals.first or when, when)
            totals.last = max(totals.last or when, when)
        else:
            totals.refund_came_first |= not totals.orders
            totals.refunds += 1
            totals.refunded += amount
        totals.countries.append((when, fields["country"]))
    return customers


@pytest.fixture(scope="module")
def orders(data_folder: Path) -> list[RecordedEvent]:
    """All purchases and refunds of known customers."""
    return recorded(data_folder, "orders")


@pytest.fixture(scope="module")
def alone(orders: list[RecordedEvent]) -> Replayed:
    """Their replay."""
    return run(orders)


@pytest.fixture(scope="module")
def totals(orders: list[RecordedEvent]) -> dict[str, Totals]:
    """Their totals, recomputed."""
    return recomputed(orders)


def by_id(replayed: Replayed) -> dict[str, dict[str, Any]]:
    return {customer["customer_id"]: customer for customer in replayed.customers()}


def changes_of(replayed: Replayed) -> dict[str, list[SegmentChanged]]:
    moves: dict[str, list[SegmentChanged]] = {}
    for change in replayed.changes:
        moves.setdefault(change["customer_id"], []).append(change)
    return moves


def test_the_recording_is_whole(orders: list[RecordedEvent], totals: dict[str, Totals]) -> None:
    """The files hold what is said of them, so that what follows is asked of all of it."""
    kinds = [orjson.loads(event.value)["kind"] for event in orders]
    assert (kinds.count("purchase"), kinds.count("refund"), len(totals)) == (PURCHASES, REFUNDS, CUSTOMERS)
    countries = {country for customer in totals.values() for _, country in customer.countries}
    assert len(countries) == COUNTRIES


@pytest.mark.parametrize(("shards", "batch_size"), [(1, 5000), (1, 100), (3, 1000)])
def test_all_totals_equal_a_recomputation(
    orders: list[RecordedEvent], totals: dict[str, Totals], shards: int, batch_size: int
) -> None:
    """Counts, sums, first and last purchase and country of all customers are those of a plain recomputation."""
    result = run(orders, shards, batch_size)
    assert result.dead_letters == []
    found = by_id(result)
    assert set(found) == set(totals)
    for name, customer in found.items():
        wanted = totals[name]
        assert customer["orders"] == wanted.orders
        assert customer["refunds"] == wanted.refunds
        assert Decimal(customer["gross"]) == wanted.gross
        assert Decimal(customer["refunded"]) == wanted.refunded
        assert Decimal(customer["net"]) == wanted.gross - wanted.refunded
        assert customer["first_purchase_at"] == wanted.first
        assert customer["last_purchase_at"] == wanted.last
        assert customer["currency"] == "GBP"
        assert customer["attributes"] == {"country": max(wanted.countries)[1]}


def test_refunds_may_come_before_the_first_purchase(totals: dict[str, Totals], alone: Replayed) -> None:
    """Customers whose refund comes first are new with their first purchase, which counts what was paid back."""
    moves = changes_of(alone)
    early = [name for name, customer in totals.items() if customer.refund_came_first and customer.orders]
    assert len(early) > 10
    for name in early:
        first = moves[name][0]
        assert (first["from"], first["to"], first["cause"]) == (None, "new", "purchase")
        assert first["effective_at"] == totals[name].first
        assert first["rfm"]["frequency"] == 1


def test_refund_only_customers_have_no_segment(totals: dict[str, Totals], alone: Replayed) -> None:
    """Customers who only ever got money back are kept with their totals, in no segment and without a change."""
    moves, found = changes_of(alone), by_id(alone)
    only = [name for name, customer in totals.items() if not customer.orders]
    assert len(only) > 10
    for name in only:
        assert name not in moves
        assert found[name]["segments"] == {"lifecycle": None}
        assert found[name]["first_purchase_at"] is None
        assert Decimal(found[name]["net"]) == -totals[name].refunded
    assert len(moves) == CUSTOMERS - len(only)


def test_customers_may_have_cost_more_than_they_paid(totals: dict[str, Totals], alone: Replayed) -> None:
    """Net-negative buyers have a segment like anybody, and their negative revenue is in its size."""
    found = by_id(alone)
    negative = [name for name, customer in totals.items() if customer.orders and customer.refunded > customer.gross]
    assert negative
    for name in negative:
        assert found[name]["net"].startswith("-")
        assert found[name]["segments"]["lifecycle"] is not None
    for label in ("new", "potential", "regular", "lapsed"):
        members = [totals[name] for name, customer in found.items() if customer["segments"]["lifecycle"] == label]
        revenue = sum((member.gross - member.refunded for member in members), Decimal(0))
        orders = sum(member.orders for member in members)
        assert alone.segments[f"lifecycle:{label}"] == (len(members), int(revenue * 100), orders)


def test_refunds_move_nobody(alone: Replayed) -> None:
    """No change is caused by a refund, and each buyer's changes follow each other without a gap."""
    assert {change["cause"] for change in alone.changes} == {"purchase", "time"}
    for moves in changes_of(alone).values():
        assert [change["sequence"] for change in moves] == list(range(1, len(moves) + 1))
        assert [change["from"] for change in moves] == [None, *(change["to"] for change in moves[:-1])]


@pytest.mark.parametrize(("shards", "batch_size"), [(1, 5000), (1, 37), (4, 1000)])
def test_redeliveries_change_nothing(
    data_folder: Path, orders: list[RecordedEvent], alone: Replayed, shards: int, batch_size: int
) -> None:
    """With 901 events delivered twice, changes, customers and sizes are those of the orders alone."""
    events = recorded(data_folder, "orders", "redelivered")
    assert len(events) == len(orders) + REDELIVERED
    twice, once = run(events, shards, batch_size), alone if shards == 1 else run(orders, shards, batch_size)
    assert twice.dead_letters == []
    assert orjson.dumps(twice.changes) == orjson.dumps(once.changes)
    assert list(twice.customers()) == list(alone.customers())
    assert twice.segments == alone.segments


@pytest.mark.parametrize(("shards", "batch_size"), [(1, 5000), (1, 37), (4, 1000)])
def test_anonymous_events_are_refused_and_disturb_nothing(
    data_folder: Path, orders: list[RecordedEvent], alone: Replayed, shards: int, batch_size: int
) -> None:
    """All 3,497 events without a customer are dead letters, each as it was; everything else is as without them."""
    anonymous = recorded(data_folder, "anonymous")
    result = run(recorded(data_folder, "orders", "anonymous"), shards, batch_size)
    once = alone if shards == 1 else run(orders, shards, batch_size)
    assert result.events == PURCHASES + REFUNDS + ANONYMOUS
    assert len(result.dead_letters) == ANONYMOUS
    assert [(letter["value"] or "").encode() for letter in result.dead_letters] == [event.value for event in anonymous]
    assert [letter["offset"] for letter in result.dead_letters] == [event.line for event in anonymous]
    for letter in result.dead_letters:
        assert letter["code"] == "missing_field"
        assert letter["reason"].startswith("customer_id: ")
        assert (letter["topic"], letter["key"], letter["encoding"]) == ("or2_anonymous.ndjson.gz", None, "utf-8")
    assert orjson.dumps(result.changes) == orjson.dumps(once.changes)
    assert list(result.customers()) == list(alone.customers())
    assert result.segments == alone.segments


def test_anonymous_events_alone_are_nobody(data_folder: Path) -> None:
    """Of the anonymous events alone there is no change and no customer."""
    result = run(recorded(data_folder, "anonymous"))
    assert (len(result.dead_letters), result.changes, list(result.customers())) == (ANONYMOUS, [], [])


def test_everything_at_once(data_folder: Path, alone: Replayed) -> None:
    """Orders, redeliveries and anonymous events together give the changes of the orders alone."""
    result = run(recorded(data_folder, "redelivered", "anonymous", "orders"), batch_size=999)
    assert orjson.dumps(result.changes) == orjson.dumps(alone.changes)
    assert len(result.dead_letters) == ANONYMOUS


def test_an_amount_in_another_currency_is_refused(orders: list[RecordedEvent]) -> None:
    """Under the default policy, which counts in USD and knows no rate, pounds are refused and nothing is counted."""
    replay = Replay(default_policy())
    for _ in replay.feed(orders[:100]):
        pass
    result = replay.finish()
    assert {letter["code"] for letter in result.dead_letters} == {"unknown_currency"}
    assert (len(result.dead_letters), list(result.customers())) == (100, [])
    assert format_instant(orders[0].occurred_at) == "2009-12-01T07:45:00Z"
