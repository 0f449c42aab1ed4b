"""Whatever the topics and files hold, nothing is raised, nothing is lost, and money and rows stay exact."""

import base64
import json
from decimal import ROUND_HALF_EVEN, Decimal, localcontext

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.batch import EventBatch, merge_order
from models.changes import DEAD_LETTER, dead_letter
from models.errors import Refused
from models.events import ROLES, Role
from models.instants import FOREVER
from models.money import LARGEST_AMOUNT, Converter, exponent
from models.records import Reader, read
from models.rows import unpack
from streams.commit import Range
from streams.inbox import Inbox
from streams.processor import Clock
from streams.recorded import recorded_event
from streams.replay import Replay
from tests.properties.histories import clocks
from tests.unit.build import (
    LATER,
    Event,
    Feeder,
    Rec,
    at,
    erasure,
    make_policy,
    purchase,
    record,
    refund,
    signup,
    texts_of,
    tick,
)

roles = st.sampled_from(ROLES)
instants = st.builds(at, st.integers(0, 12))
GOOD: list[Event] = [
    purchase("a", "p", at(0), country="DE"), refund("a", "r", at(1)),
    signup("a", "s", at(2), attributes={"country": 1}), erasure("a", "x", at(3)), tick(at(4)),
]  # fmt: skip

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
odd_texts = st.sampled_from(
    ["", "0", "-1", "1e3", "0.001", "9999999999999.999999", "NaN", "USD", "EUR", "KWD", "JPY", "SEK", "a", "ü", "\x00",
     "purchase", "refund", "signup", "erasure", "tick", "2024-02-30T00:00:00Z", "9999-12-31T23:59:59-23:59",
     "0000-01-01T00:00:00+23:59", "2024-01-01T00:00:00.123456789+05:30"]
)  # fmt: skip
fields = st.sampled_from(
    ["kind", "event_id", "customer_id", "order_id", "occurred_at", "amount", "currency", "country", "attributes", "x"]
)


@st.composite
def altered(draw: st.DrawFn) -> bytes:
    """A good event of which some fields are missing or anything at all."""
    event = dict(draw(st.sampled_from(GOOD)))
    for name, keep, value in draw(st.lists(st.tuples(fields, st.booleans(), json_values | odd_texts), max_size=3)):
        if keep:
            event[name] = value
        else:
            event.pop(name, None)
    return json.dumps(event, ensure_ascii=draw(st.booleans())).encode()


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A good event with bytes put in, taken out or cut off."""
    whole = json.dumps(draw(st.sampled_from(GOOD))).encode()
    start = draw(st.integers(0, len(whole)))
    return whole[:start] + draw(st.binary(max_size=3)) + whole[start + draw(st.integers(0, 3)) :]


good = st.sampled_from(GOOD).map(lambda event: json.dumps(event).encode())
values = (
    good | altered() | broken() | json_values.map(lambda value: json.dumps(value).encode()) | st.binary() | st.none()
)
timestamps = st.just(LATER) | st.integers(0, 2 * LATER) | st.integers(-(2**63), 2**63 - 1)
records = st.builds(
    Rec,
    value=values,
    key=st.just(b"a") | st.just("ü".encode()) | st.binary(max_size=5) | st.none(),
    offset=st.integers(0, 2**63 - 1),
    timestamp=timestamps,
    headers=st.lists(st.tuples(st.text(max_size=4), st.binary(max_size=4) | st.none()), max_size=2).map(tuple),
)


@settings(max_examples=500)
@given(st.lists(st.tuples(roles, records), max_size=8), clocks, st.just(FOREVER) | timestamps)
def test_any_record_is_used_or_refused(found: list[tuple[Role, Rec]], clock: Clock, latest: int) -> None:
    """Every record ends up in the batch or among the refusals, once and in order; what is used can be folded."""
    feeder = Feeder(make_policy(rates={"EUR": "1.5", "KWD": "3.25"}), clock)
    for offset, (role, rec) in enumerate(found):
        found[offset] = role, rec._replace(offset=offset)
    step_refusals, batches = [], []
    for role in ROLES:
        mine = [rec for each, rec in found if each == role]
        batch, refusals = feeder.processor.read(role, mine, latest)
        assert sorted([*batch.record, *(each.record for each in refusals)], key=lambda each: each.offset) == mine
        assert batch.offset.tolist() == [each.offset for each in batch.record]
        assert {each.role for each in refusals} <= {role}
        batches.append(batch)
        step_refusals += refusals
    whole = EventBatch.concat(batches)
    covered = Range(0, len(found))
    step = feeder.processor.fold(whole, step_refusals, dict.fromkeys(ROLES, covered))
    feeder.processor.commit(step)
    for change in step.outcome.published:
        assert json.loads(orjson.dumps(change)) == change
    feeder.load()


@settings(max_examples=200)
@given(roles, records)
def test_a_dead_letter_keeps_every_byte(role: Role, rec: Rec) -> None:
    """The dead letter of any record is JSON that says why and where, and gives the original bytes back."""
    _, refusals = read(role, [rec], Reader(make_policy(), 0, 1, FOREVER))
    for refusal in refusals:
        assert refusal.code
        assert refusal.reason
        letter = json.loads(orjson.dumps(dead_letter(refusal, "topic", 3)))
        DEAD_LETTER.validate_json(orjson.dumps(letter))
        decode = base64.b64decode if letter["encoding"] == "base64" else str.encode
        parts = [letter["key"], letter["value"], *(value for _, value in letter["headers"])]
        kept = [rec.key, rec.value, *(value for _, value in rec.headers)]
        assert [None if part is None else decode(part) for part in parts] == kept
        assert [name for name, _ in letter["headers"]] == [name for name, _ in rec.headers]
        assert (letter["offset"], letter["timestamp"], letter["partition"]) == (rec.offset, rec.timestamp, 3)


@settings(max_examples=150)
@given(st.data(), st.lists(records, max_size=6))
def test_bad_neighbours_change_nothing(data: st.DataObject, others: list[Rec]) -> None:
    """Good records are read the same wherever they stand among any others."""
    reader = Reader(make_policy(), 0, 1, FOREVER)
    good = [record(purchase("a", "p1", at(0), "1.20", country="DE")), record(refund("b", "p2", at(1), 7))]
    alone, _ = read("purchases", good, reader)
    places = data.draw(st.permutations(range(len(good) + len(others))))
    mixed = [([*good, *others][source])._replace(offset=offset) for offset, source in enumerate(places)]
    batch, _ = read("purchases", mixed, reader)
    for row in range(len(good)):
        (found,) = np.flatnonzero(batch.offset == places.index(row)).tolist()
        one, other = batch.take(np.array([found])), alone.take(np.array([row]))
        for name in ("rank", "recorded_at", "occurred_at", "kind", "amount", "event_hash", "customer", "event_id"):
            assert list(getattr(one, name)) == list(getattr(other, name))
        assert texts_of(one) == texts_of(other)


@settings(max_examples=150)
@given(st.lists(values.filter(lambda value: value is not None), max_size=8), st.integers(1, 3), st.integers(1, 4))
def test_any_line_can_be_replayed(lines: list[bytes], shards: int, batch_size: int) -> None:
    """Lines of any content give changes or dead letters, as many as lines that are no good event, and no error."""
    run = Replay(make_policy(), shards, batch_size)
    for _ in run.feed(recorded_event(value, "lines", number) for number, value in enumerate(lines, start=1)):
        pass
    result = run.finish()
    assert result.events == len(lines)
    assert {letter["offset"] for letter in result.dead_letters} <= set(range(1, len(lines) + 1))
    for letter in result.dead_letters:
        orjson.dumps(letter)
    for change in result.changes:
        orjson.dumps(change)


amounts = st.from_regex(r"[0-9]{1,13}(\.[0-9]{1,6})?", fullmatch=True)
rates = st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,6})?", fullmatch=True).filter(lambda rate: Decimal(rate) > 0)


def exactly(amount: str, rate: str, currency: str, base: str) -> int | str:
    """Minor units, or the code with which the amount is refused."""
    with localcontext(prec=100):
        value = Decimal(amount)
        if value != round(value, exponent(currency)):
            return "too_many_decimals"
        minor = (value * Decimal(rate)).scaleb(exponent(base)).quantize(Decimal(1), rounding=ROUND_HALF_EVEN)
    return "amount_too_large" if minor > LARGEST_AMOUNT else int(minor)


@settings(max_examples=200)
@given(
    st.sampled_from(["USD", "JPY", "KWD", "CLF"]),
    st.dictionaries(st.sampled_from(["EUR", "TND", "KRW"]), rates, max_size=3),
    st.lists(st.tuples(amounts, st.sampled_from(["base", "base", "EUR", "TND", "KRW"])), min_size=1, max_size=8),
)
def test_money_is_exact(base: str, rated: dict[str, str], rows: list[tuple[str, str]]) -> None:
    """Every amount is converted as exact arithmetic does, and refused exactly when that says so."""
    converter = Converter(base, {code: Decimal(rate) for code, rate in rated.items()})
    good: list[tuple[str, str, int]] = []
    for amount, name in rows:
        currency = base if name == "base" else name
        rate = "1" if currency == base else rated.get(currency)
        wanted = "unknown_currency" if rate is None else exactly(amount, rate, currency, base)
        if isinstance(wanted, int):
            assert converter.one(amount, currency) == wanted
            good.append((amount, currency, wanted))
        else:
            with pytest.raises(Refused) as refused:
                converter.column([amount], [currency])
            assert refused.value.code == wanted
    assert converter.column([row[0] for row in good], [row[1] for row in good]).tolist() == [row[2] for row in good]
    for _, _, minor in good:
        assert Decimal(converter.text(minor)).scaleb(exponent(base)) == minor


@settings(max_examples=100)
@given(st.lists(st.tuples(st.sampled_from("abc"), amounts), max_size=20))
def test_totals_of_any_amounts_are_exact(rows: list[tuple[str, str]]) -> None:
    """Totals of amounts of any size are their exact sums, through the store too."""
    feeder = Feeder()
    feeder.feed(*(purchase(customer, f"e{i}", at(i), amount) for i, (customer, amount) in enumerate(rows)))
    refused = {refusal.record.offset for refusal in feeder.refusals}
    sums: dict[str, Decimal] = {}
    for i, (customer, amount) in enumerate(rows):
        assert (i in refused) == (Decimal(amount) != round(Decimal(amount), 2))
        if i not in refused:
            sums[customer] = sums.get(customer, Decimal(0)) + Decimal(amount)
    feeder.load()
    assert {name: Decimal(customer["gross"]) for name, customer in feeder.customers().items()} == sums


@settings(max_examples=60)
@given(st.data(), st.integers(1, 20), st.integers(1, 20))
def test_rows_survive_another_number_of_ids(data: st.DataObject, before: int, after: int) -> None:
    """After a change of the limit the remembered ids are the latest of those that were kept, and work."""
    feeder = Feeder(make_policy(remembered=before))
    counts = data.draw(st.lists(st.integers(1, 25), min_size=1, max_size=4))
    for i, count in enumerate(counts):
        feeder.feed(*(purchase(f"c{i}", f"e{n}", at(n)) for n in range(count)))
    feeder.load(make_policy(remembered=after))
    kept = min(before, after)
    for i, count in enumerate(counts):
        if count >= kept:  # else an id that was forgotten would be forgotten again
            feeder.feed(*(purchase(f"c{i}", f"e{n}", at(n)) for n in range(count - kept, count)))
    header = feeder.store.header(0)
    rows = [pair for part in feeder.store.rows(0) for pair in part]
    assert {name: row["orders"] for name, row in feeder.customers().items()} == {
        f"c{i}": count for i, count in enumerate(counts)
    }
    assert sum(len(group.customers) for group in unpack(rows, header.layouts)) == len(counts)


@st.composite
def topics(draw: st.DrawFn) -> dict[Role, list[int | None]]:
    """For each topic the days of its records, None for one that is refused."""
    return {role: draw(st.lists(st.integers(0, 9) | st.none(), max_size=8)) for role in ROLES}


@settings(max_examples=200)
@given(st.data(), topics(), st.integers(1, 6))
def test_however_topics_are_fetched_they_are_merged_the_same(
    data: st.DataObject, found: dict[Role, list[int | None]], most: int
) -> None:
    """Fetched and taken in any pieces, records come in merge order, all of them once, in ranges without a gap."""
    build = {"purchases": purchase, "signups": signup, "erasures": erasure}
    reader = Reader(make_policy(), 0, 1, FOREVER)
    fetched = {
        role: [
            Rec(b"{", b"a", offset) if day is None else record(build[role]("a", f"{role}{offset}", at(day)), offset)
            for offset, day in enumerate(each)
        ]
        for role, each in found.items()
    }
    whole = [read(role, fetched[role], reader) for role in ROLES]
    batches = [batch for batch, _ in whole]
    order = merge_order(batches, [batch.occurred_at for batch in batches])
    wanted = [EventBatch.concat(batches).record[i] for i in order.tolist()]

    inbox, got, refused = Inbox(Clock.EVENT), [], []
    position = dict.fromkeys(ROLES, 0)
    ends = dict.fromkeys(ROLES, 0)
    while True:
        undrained = {role for role in ROLES if position[role] < len(fetched[role])}
        batch = inbox.take(most, undrained)
        if batch is not None:
            got += batch.events.record
            refused += batch.refusals
            for role, (start, end) in batch.ranges.items():
                assert start == ends[role] < end
                ends[role] = end
        elif undrained:
            role = data.draw(st.sampled_from(sorted(undrained)))
            size = data.draw(st.integers(1, len(fetched[role]) - position[role]))
            start, position[role] = position[role], position[role] + size
            inbox.put(role, Range(start, start + size), *read(role, fetched[role][start : start + size], reader))
        else:
            break
    assert got == wanted
    assert ends == {role: len(each) for role, each in fetched.items()}
    assert sorted((each.role, each.record.offset) for each in refused) == sorted(
        (each.role, each.record.offset) for _, refusals in whole for each in refusals
    )
    assert inbox.roles == set()
