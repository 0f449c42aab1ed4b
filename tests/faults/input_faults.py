"""What may be on the topics: damage, repeats, disorder, wrong clocks, and very much at once."""

import base64
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final, cast

from models.instants import FOREVER, SECOND, format_instant, parse
from models.partitioner import partition_of
from models.policy import parse_policy
from models.records import Reader, read
from streams.recorded import recorded_event
from streams.replay import ReplayRecord
from tests.faults.load import PARTITIONS, Load, Sent, replayed, sample, sent
from tests.faults.run import Again, Outcome, Run, fault
from tests.support.commands import eventually
from tests.support.topics import CHANGES

MUTATED: Final = 10_000
HUGE: Final = 900_000
#: Customers of damaged records; nobody else's are called so.
DAMAGED: Final = "damaged-"


def _events(load: Load) -> list[dict[str, Any]]:
    """A load's events; the tick at its end once."""
    found = [json.loads(record.value) for record in load.records]
    ticks = [event for event in found if event["kind"] == "tick"]
    return [event for event in found if event["kind"] != "tick"] + ticks[-1:]


def purchase(customer: str, at: str, number: int) -> dict[str, Any]:
    """A purchase whose ids are made of the customer and a number."""
    return {
        "event_id": f"{customer}:{number}",
        "kind": "purchase",
        "customer_id": customer,
        "order_id": f"o-{customer}:{number}",
        "occurred_at": at,
        "amount": "12.34",
        "currency": "USD",
    }


# --- damage -----------------------------------------------------------------------------------------------------


def _flipped(rng: random.Random, event: dict[str, Any]) -> bytes:
    value = bytearray(json.dumps(event).encode())
    for _ in range(rng.randint(1, 4)):
        value[rng.randrange(len(value))] ^= 1 << rng.randrange(8)
    return bytes(value)


def _truncated(rng: random.Random, event: dict[str, Any]) -> bytes:
    value = json.dumps(event).encode()
    return value[: rng.randrange(len(value))]


def _swapped(rng: random.Random, event: dict[str, Any]) -> bytes:
    one, other = rng.sample(sorted(event), 2)
    return json.dumps({**event, one: event[other], other: event[one]}).encode()


_OTHERS: Final[tuple[Any, ...]] = (
    *(None, True, 0, -1, 17, 1.5, "", "x", [], {}, [1], {"a": 1}, "-1", "1e3", "NaN", "0.001", "99999999999999"),
    *("EUR", "XXX", "refund", "signup", "1970-01-01T00:00:00Z", "2999-01-01T00:00:00Z", "yesterday", "\ud800"),
)


def _other_type(rng: random.Random, event: dict[str, Any]) -> bytes:
    return json.dumps({**event, rng.choice(sorted(event)): rng.choice(_OTHERS)}).encode()


def _missing(rng: random.Random, event: dict[str, Any]) -> bytes:
    gone = rng.choice(sorted(event))
    return json.dumps({name: value for name, value in event.items() if name != gone}).encode()


def _nested(rng: random.Random, event: dict[str, Any]) -> bytes:
    depth = rng.choice((10, 300, 5_000, 100_000))
    opened, closed = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    value = opened * depth + b"1" + closed * depth
    if rng.random() < 0.5:
        return value
    return json.dumps({**event, "attributes": "HERE"}).encode().replace(b'"HERE"', value)


def _inserted(piece: Callable[[random.Random], bytes]) -> Callable[[random.Random, dict[str, Any]], bytes]:
    def insert(rng: random.Random, event: dict[str, Any]) -> bytes:
        value = json.dumps(event).encode()
        at = rng.randrange(len(value) + 1)
        return value[:at] + piece(rng) + value[at:]

    return insert


def _huge(rng: random.Random, event: dict[str, Any]) -> bytes:
    name = rng.choice(("order_id", "attributes", "unknown", "amount"))
    filler = rng.choice(("9", "x", "ü")) * HUGE
    return json.dumps({**event, name: filler[: HUGE // len(filler[0].encode())]}, ensure_ascii=False).encode()


def _beyond_numbers(rng: random.Random, event: dict[str, Any]) -> bytes:
    number = rng.choice((b"1e400", b"-1e400", b"9" * 400, b"NaN", b"Infinity", b"0" * 50 + b"1", b"1e-400"))
    name = rng.choice(sorted(event))
    return json.dumps({**event, name: "HERE"}).encode().replace(b'"HERE"', number)


def _twice(rng: random.Random, event: dict[str, Any]) -> bytes:
    name = rng.choice(sorted(event))
    again = json.dumps({name: rng.choice((*_OTHERS, event[name]))}).encode()
    return again[:-1] + b", " + json.dumps(event).encode()[1:]


_DAMAGE: Final = (
    _flipped,
    _truncated,
    _swapped,
    _other_type,
    _missing,
    _inserted(lambda rng: b"\x00" * rng.randint(1, 3)),
    _inserted(lambda rng: rng.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xc0\xaf"))),
    _beyond_numbers,
    _twice,
)
#: Dear ones, for a few records only.
_DEAR: Final = (_nested, _huge)


@dataclass(frozen=True)
class Damaged(Load):
    """A load of which some records are damaged; ``usable`` of them can be used all the same."""

    damaged: int = 0
    usable: int = 0


@cache
def _policy() -> Any:
    return parse_policy(sample().policy.read_text())


def _code(record: Sent) -> str | None:
    """The code with which a record is refused, None if it can be used."""
    stamped = ReplayRecord(0, int(time.time() * 1000), record.key, record.value, (), "", 0)
    _, refusals = read("purchases", [stamped], Reader(_policy(), record.partition, PARTITIONS, FOREVER))
    return refusals[0].code if refusals else None


def _damage(rng: random.Random, number: int, at: str) -> tuple[Sent, str | None]:
    """A damaged record, and its code. What can be used all the same is no later than the event: time is not damaged."""
    customer = f"{DAMAGED}{number}"
    key: bytes | None = customer.encode()
    partition = partition_of(customer.encode(), PARTITIONS)
    dear = number % 200 == 0
    while True:
        value = rng.choice(_DEAR if dear else _DAMAGE)(rng, purchase(customer, at, 1))
        given = key if rng.random() < 0.98 else rng.choice((None, b"", b"\xff", b"somebody"))
        record = Sent("purchases", partition, given, value)
        code = _code(record)
        if code is not None:
            return record, code
        event = recorded_event(value, "", 0)
        if not event.is_tick and event.occurred_at <= parse(at):
            return record, None


def damaged(rng: random.Random) -> Load:
    """The usual load with ten thousand damaged records among the good ones."""
    good = sample()
    events = _events(good)
    records: list[Sent] = []
    used: list[Mapping[str, Any]] = []
    codes: Counter[str] = Counter()
    places = sorted(rng.randrange(1, len(events)) for _ in range(MUTATED))
    for place, event in enumerate(events):
        while places and places[0] == place:
            places.pop(0)
            record, code = _damage(rng, MUTATED - len(places), events[place - 1]["occurred_at"])
            records.append(record)
            if code is None:
                used.append(json.loads(record.value))
            else:
                codes[code] += 1
        records.extend(sent([event]))
        used.append(event)
    whole = replayed(used)
    others = Counter({move: n for move, n in whole.moves.items() if not move[0].startswith(DAMAGED)})
    assert others == good.expected.moves, "damaged records change what others are told"
    expected = replace(whole, dead_letters=codes)
    usable = len(used) - len(events)
    return Damaged("damaged records among good ones", records, expected, good.policy, MUTATED, usable)


_SLOWER = {"SEGMENTER_BATCH_SIZE": "500"}


@fault("10,000 damaged records", group="input", selected=True, load=damaged, rate=4000, settings=_SLOWER)
def damaged_records(run: Run) -> None:
    """Good records are not affected; each damaged one is used or is a dead letter with its original bytes."""
    load = run.load
    assert isinstance(load, Damaged)
    run.production.finish(60)
    eventually(lambda: run.state.settled(run.topics), 60, "everything is folded")
    letters = _letters(run)
    kept = {customer for customer in _exported(run) if customer.startswith(DAMAGED)}
    assert len(letters) + len(kept) == load.damaged, f"{len(letters)} refused, {len(kept)} used of {load.damaged}"
    assert len(kept) == load.usable


def _letters(run: Run) -> dict[tuple[int, int], dict[str, Any]]:
    """Dead letters by partition and offset; each has the bytes of the record that lies there."""
    letters = {(each["partition"], each["offset"]): each for each in run.topics.dead_letters()}
    lying = {(record.partition, record.offset): record for record in run.topics.read("purchases")}
    for place, letter in letters.items():
        record = lying[place]
        if letter["value"] is None and record.value is not None:
            assert "too large to copy" in letter["reason"], letter
            assert len(record.value) > HUGE // 2
            continue
        assert (_bytes(letter, "key"), _bytes(letter, "value")) == (record.key, record.value), letter
    return letters


def _bytes(letter: Mapping[str, Any], part: str) -> bytes | None:
    text = letter[part]
    if text is None:
        return None
    return base64.b64decode(text) if letter["encoding"] == "base64" else str(text).encode()


def _exported(run: Run) -> set[str]:
    """The customers in the state."""
    namespace, client = run.settings["SEGMENTER_NAMESPACE"], run.state.client
    stored = [cast("list[bytes]", client.hkeys(f"{{{namespace}:{shard}}}:customers")) for shard in range(PARTITIONS)]
    return {customer.decode() for customers in stored for customer in customers}


# --- wrong keys, repeats, disorder, wrong clocks ----------------------------------------------------------------


def misplaced(rng: random.Random) -> Load:
    """The usual load, and copies of some of its events under another key or on another partition."""
    records: list[Sent] = []
    codes: Counter[str] = Counter()
    for record in sample().records:
        records.append(record)
        if record.key is not None and rng.random() < 0.1:
            copy = record._replace(value=record.value.replace(b'"event_id": "', b'"event_id": "copy-'))
            if rng.random() < 0.5:
                codes["wrong_key"] += 1
                records.append(copy._replace(key=rng.choice((None, b"somebody", record.key + b" "))))
            else:
                codes["wrong_partition"] += 1
                records.append(copy._replace(partition=(record.partition + rng.randint(1, 3)) % PARTITIONS))
    return Load("misplaced records", records, replace(sample().expected, dead_letters=codes))


@fault("wrong keys and partitions", group="input", load=misplaced)
def wrong_keys(run: Run) -> None:
    """They are refused, each with its code, and nobody's state has them."""
    run.production.finish(60)
    eventually(lambda: run.state.settled(run.topics), 60, "everything is folded")
    assert _letters(run)


def repeated(rng: random.Random) -> Load:
    """The usual load with a third of the records a second time soon after, as producers' retries do it."""
    waiting: list[tuple[int, int, Sent]] = []
    records: list[Sent] = []
    for number, record in enumerate(sample().records):
        records.append(record)
        if record.key is not None and rng.random() < 0.33:
            waiting.append((number + rng.randint(1, 12), number, record))
        due = sorted(each for each in waiting if each[0] <= number)
        records.extend(each for *_, each in due)
        waiting = [each for each in waiting if each[0] > number]
    return Load("repeated records", [*records, *(each for *_, each in waiting)], sample().expected)


@fault("records delivered twice", group="input", load=repeated)
def duplicates(run: Run) -> None:
    """A worker is killed on top of it; nothing counts twice."""
    run.until_produced(run.rng.uniform(0.2, 0.8))
    run.mark()
    victim = run.rng.choice(run.workers)
    run.kill(victim)
    run.restart(victim, ready=False)


def shuffled(rng: random.Random) -> Load:
    """The usual load, each event up to hundreds of places from its own."""
    *events, tick = _events(sample())
    reach = rng.choice((10, 100, 500))
    places = sorted(range(len(events)), key=lambda place: place + rng.uniform(0, reach))
    disordered = [*(events[place] for place in places), tick]
    expected = replayed(disordered)
    assert expected.customers == sample().expected.customers, "the order of events shows in a state"
    assert expected.sizes == sample().expected.sizes
    return Load("shuffled", sent(disordered), expected)


@fault("records out of order", group="input", load=shuffled)
def out_of_order(run: Run) -> None:
    """Final measures and labels are those of the order in which things happened; a worker is killed on top of it."""
    duplicates(run)


def wild_clocks(rng: random.Random) -> Load:
    """The usual load, and events of others that claim to have happened in 1970 or to happen in 2999."""
    events = _events(sample())
    everything: list[tuple[Mapping[str, Any], bool]] = []
    for number, event in enumerate(events):
        everything.append((event, True))
        if 0 < number < len(events) - 1 and rng.random() < 0.05:
            past = rng.random() < 0.5
            at = "1970-01-01T00:00:00Z" if past else "2999-12-31T23:59:59Z"
            everything.append((purchase(f"wild-{number % 50}", at, number), past))
    expected = replayed([event for event, usable in everything if usable])
    others = Counter({move: n for move, n in expected.moves.items() if not move[0].startswith("wild-")})
    assert others == sample().expected.moves
    refused = sum(not usable for _, usable in everything)
    expected = replace(expected, dead_letters=Counter({"occurred_ahead": refused}))
    return Load("clocks gone wild", sent([event for event, _ in everything]), expected)


@fault("events of 1970 and of 2999", group="input", load=wild_clocks)
def clocks_gone_wild(run: Run) -> None:
    """Those of 1970 are late, those of 2999 are refused; nobody else's time is moved."""
    duplicates(run)


# --- very much at once ------------------------------------------------------------------------------------------

AT_ONCE: Final = 100_000
_LAPSE_AFTER: Final = 40
_LIVE_RATE: Final = 50
#: Seconds; runs share their machine.
_SOON: Final = 5.0

_LAPSING: Final = f"""\
version = 1
[dimensions.lifecycle]
engine = "lifecycle"
potential_after = "2s"
lapse_after = "{_LAPSE_AFTER}s"
"""


def nothing(rng: random.Random) -> Load:
    """One tick: the strike produces by itself."""
    return Load("the strike's own", sample().records[-1:], sample().expected)


@fault(
    "100,000 deadlines in the same second",
    group="input",
    load=nothing,
    workers=0,
    settings={"SEGMENTER_CLOCK": "ingestion", "SEGMENTER_BATCH_SIZE": "5000"},
)
def deadlines_at_once(run: Run) -> Outcome:
    """While a hundred thousand customers lapse at one instant, live purchases are answered as soon as ever."""
    policy = run.folder / "policy.toml"
    policy.write_text(_LAPSING)
    run.settings["SEGMENTER_POLICY"] = str(policy)
    for _ in range(2):
        run.start_worker(ready=False)
    for worker in run.workers:
        worker.ready()
    now = time.time()
    at = format_instant(int(now * SECOND))
    for number in range(AT_ONCE):
        customer = f"sleeper-{number}"
        run.topics.send("purchases", json.dumps(purchase(customer, at, 1)).encode(), customer.encode())
    run.topics.flush()
    due = now + _LAPSE_AFTER
    while run.topics.size(CHANGES) < AT_ONCE:
        if time.time() > due - 5:
            raise Again("the machine was too busy to have everybody in time")
        time.sleep(0.2)
    wanted = 2 * AT_ONCE + _live(run, until=due + 6, begin=due - 4)
    try:
        eventually(lambda: run.topics.size(CHANGES) >= wanted, 90, "everybody has lapsed")
    except AssertionError:
        told = Counter((each["from"], each["to"], each["cause"]) for each in run.topics.changes())
        raise AssertionError(f"{told} where {wanted} changes were to come") from None
    eventually(lambda: run.state.settled(run.topics), 30, "everything is published")
    calm, busy, lapses = _latencies(run, due)
    assert len(lapses) == AT_ONCE, f"{len(lapses)} lapses"
    assert min(lapses) >= 0, "a lapse was published before it was due"
    said = (
        f"live change after p50 {_share(busy, 0.5):.0f} ms, p99 {_share(busy, 0.99):.0f} ms while {AT_ONCE:,} lapsed "
        f"(before: {_share(calm, 0.5):.0f} ms, {_share(calm, 0.99):.0f} ms); "
        f"lapses published p50 {_share(lapses, 0.5) / 1000:.2f} s, p99 {_share(lapses, 0.99) / 1000:.2f} s after they "
        "were due"
    )
    assert _share(busy, 0.99) < _SOON * 1000, said
    return Outcome(said)


def _live(run: Run, until: float, begin: float) -> int:
    """New customers buy, at a steady pace. Returns how many."""
    time.sleep(max(0.0, begin - time.time()))
    number = 0
    while (now := time.time()) < until:
        customer = f"live-{number}"
        value = json.dumps(purchase(customer, format_instant(int(now * SECOND)), 1)).encode()
        run.topics.send("purchases", value, customer.encode())
        number += 1
        time.sleep(1 / _LIVE_RATE)
    run.topics.flush()
    return number


def _latencies(run: Run, due: float) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds from live purchases to their changes, before and after the lapses were due; and of the lapses."""
    calm: list[float] = []
    busy: list[float] = []
    lapses: list[float] = []
    for record in run.topics.read(CHANGES):
        change = json.loads(record.value or b"null")
        at = parse(change["effective_at"]) / 1000
        took = record.timestamp - at
        if change["customer_id"].startswith("sleeper-"):
            if change["cause"] == "time":
                lapses.append(took + 1)  # timestamps are cut to milliseconds
        elif change["cause"] == "purchase":
            (busy if at >= due * 1000 else calm).append(took)
    return sorted(calm), sorted(busy), sorted(lapses)


def _share(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
