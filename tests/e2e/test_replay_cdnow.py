"""A replay of CDNOW's 69,659 purchases equals the oracle, which was computed with pandas and not with this project.

The same is asked of generated events, for which the plain reference takes the oracle's place; without the recorded
data these remain. Most tests replay with the lifecycle alone, which is the default policy's; one shows that it is.
"""

import csv
import gzip
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest

from models.changes import SegmentChanged
from models.instants import format_instant, parse, parse_column
from models.partitioner import partition_of
from models.policy import Policy, default_policy, parse_policy
from streams.generator import Population, generate
from streams.recorded import RecordedEvent, read_recorded, recorded_event
from streams.replay import Replay, Replayed
from tests.reference import RefChange, ReferencePolicy, RefEvent, replay_reference

DAY = 86_400_000_000
LABELS = ("new", "potential", "regular", "lapsed")


class Move(NamedTuple):
    """A row of the transition log."""

    customer: str
    at: int
    before: str | None
    after: str | None
    cause: str
    event_id: str | None


class Totals(NamedTuple):
    """What is known of a customer at the end."""

    orders: int
    net: str
    first: int | None
    last: int | None


@dataclass(frozen=True)
class Recording:
    """Recorded events in time order, and what a replay of them until an instant must say."""

    events: list[RecordedEvent]
    until: int
    moves: list[Move]
    sizes: dict[int, dict[str, int]]  # by an instant that is not included
    customers: dict[str, Totals]


def cents(minor: int) -> str:
    return f"{'-' if minor < 0 else ''}{abs(minor) // 100}.{abs(minor) % 100:02d}"


@cache
def lifecycle() -> Policy:
    """The shipped policy that has the lifecycle alone."""
    return parse_policy(resources.files("models").joinpath("policies/lifecycle.toml").read_text(encoding="utf-8"))


def ref_event(event: RecordedEvent) -> RefEvent:
    """The event for the reference; amounts have two decimals."""
    fields = orjson.loads(event.value)
    amount = int(fields.get("amount", "0.00").replace(".", ""))
    return RefEvent(fields["kind"], fields["event_id"], fields["customer_id"], event.occurred_at, amount)


def by_reference(events: Sequence[RecordedEvent], until: int, shards: int = 1) -> list[RefChange]:
    """The changes by the plain reference."""
    plain = [ref_event(event) for event in events]
    return replay_reference(
        plain, ReferencePolicy(), "event", until, shards, lambda customer: partition_of(customer.encode(), shards)
    )


def rows(path: Path) -> list[dict[str, str]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return list(csv.DictReader(text.decode().splitlines()))


@cache
def cdnow(folder: Path, name: str = "cdnow_purchases") -> Recording:
    """CDNOW with the oracle; of the sample, its part of the oracle."""

    def label(text: str) -> str | None:
        return None if text == "none" else text

    events = list(read_recorded([str(folder / f"{name}.ndjson.gz")]))
    known = {(event.key or b"").decode() for event in events}
    log = [row for row in rows(folder / "oracle" / "cdnow_transition_log.csv.gz") if row["customer_id"] in known]
    sizes = [row for row in rows(folder / "oracle" / "cdnow_segments_monthly.csv") if row["order_rule"] == "event"]
    whole = name == "cdnow_purchases"
    return Recording(
        events,
        parse("1998-07-01T00:00:00Z"),
        [
            Move(
                row["customer_id"], instant, label(row["from"]), label(row["to"]), row["cause"], row["event_id"] or None
            )
            for row, instant in zip(log, parse_column([row["at"] for row in log]).tolist(), strict=True)
        ],
        {parse(row["as_of_exclusive"]): {label: int(row.get(label, 0)) for label in LABELS} for row in sizes}
        if whole
        else {},
        {
            row["customer_id"]: Totals(
                int(row["orders"]), row["monetary_net"], parse(row["first_purchase"]), parse(row["last_purchase"])
            )
            for row in rows(folder / "oracle" / "cdnow_customers.csv.gz")
            if row["customer_id"] in known
        },
    )  # fmt: skip


@cache
def generated() -> Recording:
    """Generated events with the reference instead of an oracle; what happens after the end is not said to it."""
    events = [
        recorded_event(orjson.dumps(event), "generated", line)
        for line, event in enumerate(generate(Population(customers=1000, refund_share=0.05)), start=1)
    ]
    until = parse("2025-04-01T00:00:00Z")
    moves = [
        Move(c.customer_id, c.effective_at, c.from_, c.to, c.cause, c.event_id) for c in by_reference(events, until)
    ]
    customers: dict[str, tuple[int, int, int | None, int | None]] = {}
    for event in map(ref_event, events):
        orders, net, first, last = customers.get(event.customer_id, (0, 0, None, None))
        if event.kind == "purchase":
            orders, net, last = orders + 1, net + event.amount_minor, event.occurred_at
            first = first if first is not None else event.occurred_at
        elif event.kind == "refund":
            net -= event.amount_minor
        customers[event.customer_id] = (orders, net, first, last)
    starts = [parse(f"2024-{month:02d}-01T00:00:00Z") for month in range(2, 13)]
    totals = {name: Totals(orders, cents(net), first, last) for name, (orders, net, first, last) in customers.items()}
    return Recording(events, until, moves, {start: sizes_at(moves, start) for start in starts}, totals)


def sizes_at(moves: Iterable[Move], instant: int) -> dict[str, int]:
    """Customers in each segment after all moves before the instant."""
    now = {move.customer: move.after for move in moves if move.at < instant}
    counted = Counter(now.values())
    return {label: counted[label] for label in LABELS}


@pytest.fixture(params=["cdnow", "generated"], scope="module")
def recording(request: pytest.FixtureRequest) -> Recording:
    """CDNOW, where it is, and generated events."""
    if request.param == "generated":
        return generated()
    return cdnow(request.getfixturevalue("data_folder"))


def run(
    events: Sequence[RecordedEvent], until: int, shards: int = 1, batch_size: int = 5000, policy: Policy | None = None
) -> Replayed:
    replay = Replay(policy or lifecycle(), shards, batch_size)
    for _ in replay.feed(events):
        pass
    result = replay.finish(until)
    assert result.dead_letters == []
    assert result.events == len(events)
    return result


@pytest.fixture(scope="module")
def replayed(recording: Recording) -> Replayed:
    """The replay in batches of 5,000 on one shard."""
    return run(recording.events, recording.until)


def moves_of(changes: Iterable[SegmentChanged]) -> list[Move]:
    changes = list(changes)
    instants = parse_column([change["effective_at"] for change in changes]).tolist()
    return [
        Move(c["customer_id"], instant, c["from"], c["to"], c["cause"], c["event_id"])
        for c, instant in zip(changes, instants, strict=True)
    ]


def undecided(changes: Iterable[SegmentChanged]) -> list[dict[str, Any]]:
    return [{name: value for name, value in change.items() if name != "decided_at"} for change in changes]


def test_every_change_is_the_oracles(recording: Recording, replayed: Replayed) -> None:
    """Customer, instant, from, to, cause and event of every change are the oracle's, row by row in its order."""
    moves = moves_of(replayed.changes)
    assert len(moves) == len(recording.moves) > 1000
    for row, (found, wanted) in enumerate(zip(moves, recording.moves, strict=True), start=1):
        assert found == wanted, f"row {row}"


def lifecycle_of(replayed: Replayed) -> list[Move]:
    """The lifecycle's moves among those of more dimensions."""
    assert len({change["dimension"] for change in replayed.changes}) > 3
    return moves_of(change for change in replayed.changes if change["dimension"] == "lifecycle")


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("source", ["sample", "generated"])
def test_the_default_policys_lifecycle_is_the_oracles(source: str, shards: int, request: pytest.FixtureRequest) -> None:
    """Among all the dimensions of the default policy the lifecycle moves as it does alone, row by row.

    For all of CDNOW, test_segments_cdnow.py shows the same.
    """
    if source == "generated":
        wanted = generated()
    else:
        wanted = cdnow(request.getfixturevalue("data_folder"), "cdnow_sample_purchases")
    assert lifecycle_of(run(wanted.events, wanted.until, shards, policy=default_policy())) == wanted.moves


def test_changes_are_well_formed(recording: Recording, replayed: Replayed) -> None:
    """They are of the only dimension there is, none of them is history, all have ids of their own."""
    assert len({change["change_id"] for change in replayed.changes}) == len(recording.moves)
    assert {change["dimension"] for change in replayed.changes} == {"lifecycle"}
    assert not any(change["backfill"] for change in replayed.changes)


def test_month_end_sizes_are_the_oracles(recording: Recording, replayed: Replayed) -> None:
    """Counted from the changes before each month's end, every segment has the oracle's size."""
    moves = moves_of(replayed.changes)
    assert recording.sizes
    for instant, sizes in recording.sizes.items():
        assert sizes_at(moves, instant) == sizes, format_instant(instant)


def test_final_sizes_are_those_of_the_changes(recording: Recording, replayed: Replayed) -> None:
    """The stored sizes at the end are what the changes say, with the revenue and orders of their customers."""
    last = {change["customer_id"]: change["to"] for change in replayed.changes}
    for label in LABELS:
        members = [recording.customers[name] for name, at_end in last.items() if at_end == label]
        revenue = sum(int(totals.net.replace(".", "")) for totals in members)
        orders = sum(totals.orders for totals in members)
        assert replayed.segments[f"lifecycle:{label}"] == (len(members), revenue, orders)


def test_customers_are_the_oracles(recording: Recording, replayed: Replayed) -> None:
    """Orders, monetary, first and last purchase of every customer are the oracle's."""

    def instant(text: str | None) -> int | None:
        return None if text is None else parse(text)

    found = {
        customer["customer_id"]: Totals(
            customer["orders"],
            customer["net"],
            instant(customer["first_purchase_at"]),
            instant(customer["last_purchase_at"]),
        )
        for customer in replayed.customers()
    }
    assert found == recording.customers


def test_measures_at_each_change(recording: Recording, replayed: Replayed) -> None:
    """Frequency, monetary and recency of each change are those of the customer's events up to its instant."""
    purchases: dict[str, list[RefEvent]] = {}
    for event in map(ref_event, recording.events):
        purchases.setdefault(event.customer_id, []).append(event)
    events = {event.event_id: n for history in purchases.values() for n, event in enumerate(history)}
    for change in replayed.changes:
        history, instant = purchases[change["customer_id"]], parse(change["effective_at"])
        if change["event_id"] is not None:
            known = history[: events[change["event_id"]] + 1]
        else:
            known = [event for event in history if event.occurred_at <= instant]
        bought = [event for event in known if event.kind == "purchase"]
        back = sum(event.amount_minor for event in known if event.kind == "refund")
        assert change["rfm"] == {
            "recency_days": (instant - bought[-1].occurred_at) // DAY if bought else None,
            "frequency": len(bought),
            "monetary": cents(sum(event.amount_minor for event in bought) - back),
            "currency": "USD",
        }


def test_cdnow_is_whole(data_folder: Path) -> None:
    """The oracle has 71,567 changes of 23,570 customers, who made 69,659 purchases."""
    recording = cdnow(data_folder)
    assert (len(recording.moves), len(recording.customers), len(recording.events)) == (71_567, 23_570, 69_659)
    assert len(recording.sizes) == 18


@pytest.mark.parametrize("batch_size", [37, 1000, 10**9])
def test_batch_size_makes_no_difference(recording: Recording, replayed: Replayed, batch_size: int) -> None:
    """The changes are the same bytes for batches of 37, 1,000, 5,000 and for the whole file at once."""
    result = run(recording.events, recording.until, batch_size=batch_size)
    assert orjson.dumps(result.changes) == orjson.dumps(replayed.changes)
    assert result.segments == replayed.segments


@pytest.mark.slow
def test_batches_of_one_make_no_difference(recording: Recording, replayed: Replayed) -> None:
    """The changes are the same bytes when every event is a batch, and a commit, of its own."""
    result = run(recording.events, recording.until, batch_size=1)
    assert orjson.dumps(result.changes) == orjson.dumps(replayed.changes)
    assert result.segments == replayed.segments


@pytest.mark.parametrize("batch_size", [1, 37, 5000])
def test_the_sample_in_batches_of_any_size(data_folder: Path, batch_size: int) -> None:
    """A tenth of the customers move as they do among all the others, whatever the batch size."""
    sample = cdnow(data_folder, "cdnow_sample_purchases")
    assert moves_of(run(sample.events, sample.until, batch_size=batch_size).changes) == sample.moves


@pytest.mark.parametrize("batch_size", [1000, 5000])
def test_four_shards_make_no_difference(recording: Recording, replayed: Replayed, batch_size: int) -> None:
    """On four shards the changes are the same but for decided_at, and so are customers and sizes."""
    result = run(recording.events, recording.until, shards=4, batch_size=batch_size)
    assert undecided(result.changes) == undecided(replayed.changes)
    assert result.segments == replayed.segments
    assert list(result.customers()) == list(replayed.customers())


@pytest.mark.parametrize("shards", [1, 4])
def test_a_lapse_is_decided_by_the_next_record_of_its_shard(recording: Recording, shards: int) -> None:
    """decided_at is the time of the shard's first record after the deadline, else the end; of an event its own."""
    times: list[list[int]] = [[] for _ in range(shards)]
    for event in recording.events:
        times[partition_of(event.key or b"", shards)].append(event.occurred_at)
    position = [0] * shards
    for change in run(recording.events, recording.until, shards=shards).changes:
        shard = partition_of(change["customer_id"].encode(), shards)
        effective, decided = parse(change["effective_at"]), parse(change["decided_at"])
        if change["cause"] != "time":
            assert decided == effective
            continue
        # Changes come by effective_at, so the first later record of a shard only moves forward.
        while position[shard] < len(times[shard]) and times[shard][position[shard]] <= effective:
            position[shard] += 1
        later = times[shard][position[shard]] if position[shard] < len(times[shard]) else recording.until
        assert decided == later


@pytest.mark.parametrize("seed", [1, 2])
def test_out_of_order_events_equal_the_reference(recording: Recording, seed: int) -> None:
    """With the order jittered by up to 20 days the changes, late ones and decided_at included, are the reference's."""
    rng = random.Random(seed)
    keyed = [(event.occurred_at + rng.randrange(20 * DAY), event) for event in recording.events]
    events = [event for _, event in sorted(keyed, key=lambda each: each[0])]
    wanted = by_reference(events, recording.until)
    found = run(events, recording.until).changes
    decided = parse_column([change["decided_at"] for change in found]).tolist()
    assert [
        (
            *move, instant, c["sequence"], c["rfm"]["recency_days"], c["rfm"]["frequency"], c["rfm"]["monetary"],
        )
        for move, instant, c in zip(moves_of(found), decided, found, strict=True)
    ] == [
        (
            *Move(c.customer_id, c.effective_at, c.from_, c.to, c.cause, c.event_id),
            c.decided_at, c.sequence, c.recency_days, c.frequency, cents(c.monetary),
        )
        for c in wanted
    ]  # fmt: skip
    assert Counter(c.cause for c in wanted)["late_event"] > 50
    assert moves_of(found) != recording.moves


def test_the_reference_is_the_oracles_too(recording: Recording) -> None:
    """The plain reference, which tests measure the core against, gives the oracle's rows on several shards too."""
    changes = by_reference(recording.events, recording.until, shards=3)
    moves = [Move(c.customer_id, c.effective_at, c.from_, c.to, c.cause, c.event_id) for c in changes]
    assert moves == recording.moves
