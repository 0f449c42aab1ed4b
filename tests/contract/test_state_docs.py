"""docs/STATE.md is true: its own code reads from a real Redis what the segmenter says about a customer.

The reading side is the page's Python, taken from the page, with redis and the standard library only.
"""

import json
import re
import zlib
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest
import redis

from models.activation import Activation
from models.batch import EventBatch
from models.clusters import ClusterModel, Stored
from models.events import ROLE_OF_KIND, ROLES, Role
from models.instants import FOREVER, parse
from models.learner import LearnerState
from models.partitioner import partition_of
from models.policy import Policy, parse_policy
from models.population import Summary
from streams.activations import Activations
from streams.commit import Range
from streams.customers import customer_of
from streams.processor import BatchProcessor, Clock, Shard
from streams.replay import ReplayRecord
from streams.store.redis import RedisStore
from streams.trainer import Trainer
from tests.support.real_redis import RealRedis
from tests.support.samples import DAY, recorded, values

PAGE = (Path(__file__).parents[2] / "docs" / "STATE.md").read_text(encoding="utf-8")
PARTITIONS = 4
#: What the first version wrote of a customer, and the layout of it.
OLD_LAYOUT = (
    b'{"format":1,"currency":"USD","dimensions":{"lifecycle":["new","potential","regular","lapsed"]},'
    b'"attributes":["country","channel"]}'
)
OLD_ROW = bytes.fromhex(
    "2770b665 01000000 0036f97d2f0e0600 001019d2590e0600 001019d2590e0600 01000000 01000000 c607000000000000"
    "ea01000000000000 0000 0036f97d2f0e0600 00000000 00000000 001019d2590e0600 004079b37e0e0600 03"
    "1bf88612fc940a6c cc5661646d5a1187 ef26729619ba62b6"
)
DECIMALS = {"USD": 2, "JPY": 0, "KWD": 3}  # by ISO 4217

LIFECYCLE = """
[dimensions.lifecycle]
engine = "lifecycle"
potential_after = "30d"
regular_orders = 3
lapse_after = "90d"
"""
HEAD = """version = 1
money = { base = "USD" }
events = { remembered_ids = 16 }
population = { every = "7d", settle = "10m" }
"""
#: The policy of the page's example.
POLICY = (
    f"""{HEAD}
[attributes]
keep = ["country"]
numbers = ["income"]
{LIFECYCLE}"""
    + """
[dimensions.channel]
engine = "dominant"
of = "channel"
groups = { online = ["web"], store = ["shop"] }
"""
)
PLAIN = HEAD + '[attributes]\nkeep = ["country", "channel"]\n' + LIFECYCLE
NO_ATTRIBUTES = HEAD + LIFECYCLE
THREE_DIMENSIONS = (
    PLAIN.replace('keep = ["country", "channel"]', 'keep = ["channel", "favourite", "country"]').replace(
        '"USD"', '"KWD"'
    )
    + '[dimensions.fast]\nengine = "lifecycle"\npotential_after = "1h"\nlapse_after = "1d"\n'
    + '[dimensions.slow]\nengine = "lifecycle"\nlapse_after = "3650d"\n'
)
FEW_IDS = PLAIN.replace("remembered_ids = 16", "remembered_ids = 2").replace('"USD"', '"JPY"')
MANY_IDS = PLAIN.replace("remembered_ids = 16", "remembered_ids = 255")
TALLIES = (
    PLAIN.replace("[attributes]", '[attributes]\nnumbers = ["income", "height"]')
    + """
[dimensions.where]
engine = "dominant"
of = "channel"
by = "revenue"
half_life = "180d"
groups = { online = ["web"] }
other = "other"
[dimensions.what]
engine = "dominant"
of = "category"
groups = { toys = ["toys"] }
"""
)
POPULATION = PLAIN + '[dimensions.value]\nengine = "pareto"\nclasses = { A = 80, B = 20 }\n'


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """The names that the page's Python defines."""
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE):
        exec(block, names)
    return names


@pytest.fixture
def store(redis_server: RealRedis, raw: redis.Redis) -> Iterator[RedisStore]:
    """An empty namespace, claimed for four shards."""
    with closing(RedisStore(redis_server.url, "segmenter")) as store:
        store.register(PARTITIONS, "segmenter")
        yield store


class Worker:
    """Feeds events to the processors of all shards, a commit for each call."""

    def __init__(self, store: RedisStore, policy: Policy) -> None:
        self.store = store
        topics: dict[Role, str] = {role: role for role in ROLES}
        self.activations = Activations(store, policy)
        self.processors = [
            BatchProcessor(Shard(number, PARTITIONS, topics), self.activations, store, Clock.EVENT)
            for number in range(PARTITIONS)
        ]
        for processor in self.processors:
            processor.load(dict.fromkeys(ROLES, 0), {})

    def feed(self, *events: dict[str, Any]) -> None:
        """Commit the events, which must be of one customer and in time order; none of them may be refused."""
        customer = events[0]["customer_id"]
        processor = self.processors[partition_of(customer.encode(), PARTITIONS)]
        header = self.store.header(processor.shard.number)
        at = dict(header.offsets)
        batches = []
        for event in events:
            role = ROLE_OF_KIND[event["kind"]]
            value = json.dumps(event).encode()
            record = ReplayRecord(at[role], 4_000_000_000_000, customer.encode(), value, (), "", 0)
            batch, refusals = processor.read(role, [record], FOREVER)
            assert refusals == []
            batches.append(batch)
            at[role] += 1
        ranges = {role: Range(header.offsets[role], end) for role, end in at.items()}
        step = processor.fold(EventBatch.concat(batches), [], ranges)
        assert step.outcome.overflowed == []
        processor.commit(step)

    def advance(self, until: str) -> None:
        """Let time pass on every shard."""
        for processor in self.processors:
            step = processor.advance(parse(until))
            if step is not None:
                processor.commit(step)


def adopt(worker: Worker, policy: str) -> Worker:
    """Apply another policy, under a version of its own, and a worker on which every shard has followed it."""
    following = parse_policy(policy.replace("version = 1", f"version = {worker.activations.latest + 1}"))
    worker.activations.apply(following, 0, backfill=True)
    for processor in worker.processors:
        step = processor.follow()
        assert step is not None
        processor.commit(step)
    return Worker(worker.store, following)


def event(kind: str, number: int, at: str, customer: str, **more: Any) -> dict[str, Any]:
    """An event as on the topics."""
    common = {"kind": kind, "event_id": f"{kind[0]}-{number}", "customer_id": customer, "occurred_at": at}
    if kind in ("purchase", "refund"):
        common |= {"order_id": f"o-{number}", "currency": "USD"}
    return common | more


def history(customer: str, currency: str) -> list[dict[str, Any]]:
    """A customer with everything: signup, purchases, a refund, attributes that changed and one that went unseen."""
    paid = {"currency": currency}
    return [
        event("signup", 1, "2024-01-05T09:30:00Z", customer, country="DE"),
        event("purchase", 1, "2024-01-07T12:00:00.000001Z", customer, amount="1990", **paid),
        event("refund", 1, "2024-01-09T08:00:00+05:30", customer, amount="5000000", channel="web", **paid),
        event("purchase", 2, "2024-01-10T00:00:00Z", customer, amount="12", country="Österreich", **paid),
        event("purchase", 3, "2024-01-11T00:00:00Z", customer, amount="999999999999", channel="a:b", **paid),
    ]


def shown(customer: str, found: dict[str, Any]) -> dict[str, Any]:
    """What the page's code found, in the words of streams.customers."""

    def instant(at: datetime | None) -> str | None:
        if at is None:
            return None
        assert at.tzinfo is not None
        return at.astimezone(UTC).isoformat(timespec="microseconds" if at.microsecond else "seconds")[:-6] + "Z"

    def money(minor: int) -> str:
        decimals = DECIMALS[found["currency"]]
        digits = f"{abs(minor):0{decimals + 1}d}"
        whole, rest = (digits[:-decimals], "." + digits[-decimals:]) if decimals else (digits, "")
        return f"{'-' if minor < 0 else ''}{whole}{rest}"

    return {
        "customer_id": customer,
        **{name: instant(found[name]) for name in ("signed_up_at", "first_purchase_at", "last_purchase_at")},
        "orders": found["orders"],
        "refunds": found["refunds"],
        "gross": money(found["gross_minor"]),
        "refunded": money(found["refunded_minor"]),
        "net": money(found["gross_minor"] - found["refunded_minor"]),
        "currency": found["currency"],
        "surveys": found["surveys"],
        "satisfaction": None if found["satisfaction"] is None else round(found["satisfaction"], 2),
        "attributes": found["attributes"],
        "segments": found["segments"],
    }


def agreed(page: dict[str, Any], raw: redis.Redis, store: RedisStore, customer: str) -> dict[str, Any]:
    """What the page's code reads about a customer, which must be what the segmenter says."""
    found: dict[str, Any] | None = page["read_customer"](raw, "segmenter", customer)
    said = customer_of(store, partition_of(customer.encode(), PARTITIONS), customer)
    assert found is not None
    assert said is not None
    assert shown(customer, found) == said
    return found


def test_a_customer_can_be_read(page: dict[str, Any], raw: redis.Redis, store: RedisStore) -> None:
    """Read with the page's code alone, a customer is what the segmenter says, under the default policy."""
    worker = Worker(store, parse_policy(PLAIN))
    worker.feed(*history("c-1042", "USD"))
    found = agreed(page, raw, store, "c-1042")
    assert found["segments"] == {"lifecycle": "regular"}
    assert found["attributes"] == {"country": "Österreich", "channel": "a:b"}
    assert found["first_purchase_at"] == datetime(2024, 1, 7, 12, 0, 0, 1, tzinfo=UTC)
    assert found["refunded_minor"] == 500_000_000
    assert found["sequence"] == 2
    assert found["changed_at"] == {"lifecycle": datetime(2024, 1, 11, tzinfo=UTC)}
    assert len(found["event_hashes"]) == 5


@pytest.mark.parametrize(
    ("policy", "currency", "remembered"),
    [
        (NO_ATTRIBUTES, "USD", 5),
        (THREE_DIMENSIONS, "KWD", 5),
        (FEW_IDS, "JPY", 2),
        (MANY_IDS, "USD", 5),
        (TALLIES, "USD", 5),
    ],
    ids=["no attributes", "three dimensions", "few ids", "many ids", "numbers and tallies"],
)
def test_rows_of_any_shape_can_be_read(
    page: dict[str, Any], raw: redis.Redis, store: RedisStore, policy: str, currency: str, remembered: int
) -> None:
    """Other numbers of dimensions, attributes and event ids, and other currencies, are read by the same rules."""
    worker = Worker(store, parse_policy(policy))
    worker.feed(*history("c-1", currency))
    assert len(agreed(page, raw, store, "c-1")["event_hashes"]) == remembered
    worker.advance("2024-09-01T00:00:00Z")
    found = agreed(page, raw, store, "c-1")
    assert found["segments"]["lifecycle"] == "lapsed"
    lapsed_since = datetime(2024, 4, 10, 0, 0, 0, 1, tzinfo=UTC)
    assert found["changed_at"]["lifecycle"] == lapsed_since


def test_absent_values_are_read_as_absent(page: dict[str, Any], raw: redis.Redis, store: RedisStore) -> None:
    """A customer with a signup only, and one with a refund only, have no purchases; the latter has no segment."""
    worker = Worker(store, parse_policy(PLAIN))
    worker.feed(event("signup", 1, "1969-12-31T23:59:59.999999Z", "only signed up"))
    worker.feed(event("refund", 1, "2024-01-05T09:30:00Z", "only refunded", amount="0.01"))
    found = agreed(page, raw, store, "only signed up")
    assert found["first_purchase_at"] is None
    assert found["last_purchase_at"] is None
    assert found["attributes"] == {}
    assert found["value_at"] == {"country": None, "channel": None}
    assert found["segments"] == {"lifecycle": "new"}
    found = agreed(page, raw, store, "only refunded")
    assert found["signed_up_at"] is None
    assert found["segments"] == {"lifecycle": None}
    assert found["changed_at"] == {"lifecycle": None}
    assert found["refunded_minor"] == 1


def test_ids_in_any_script_are_found_on_their_shard(page: dict[str, Any], raw: redis.Redis, store: RedisStore) -> None:
    """The page's partitioner finds every customer, whatever the length and script of the id."""
    customers = ["a", "ab", "abc", "abcd", "zoë", "客户-7", "😀", "x" * 256, *(f"customer-{i}" for i in range(40))]
    worker = Worker(store, parse_policy(PLAIN))
    for number, customer in enumerate(customers):
        worker.feed(event("purchase", number, "2024-01-05T09:30:00Z", customer, amount=str(number), country="DE"))
    shards = {page["shard_of"](customer, PARTITIONS) for customer in customers}
    assert shards == set(range(PARTITIONS))
    for number, customer in enumerate(customers):
        assert agreed(page, raw, store, customer)["gross_minor"] == 100 * number


@pytest.mark.parametrize(
    ("key", "murmur2"),
    [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ],
)
def test_the_page_s_partitioner_is_kafka_s(page: dict[str, Any], key: str, murmur2: int) -> None:
    """The page's murmur2 gives the values of Apache Kafka's own unit test."""
    assert page["shard_of"](key, 2**31) == murmur2 & 0x7FFFFFFF


def test_an_unknown_or_erased_customer_is_none(page: dict[str, Any], raw: redis.Redis, store: RedisStore) -> None:
    """Whoever was never seen, or was erased, has no row."""
    worker = Worker(store, parse_policy(PLAIN))
    worker.feed(*history("c-1042", "USD"))
    worker.feed(event("erasure", 1, "2024-02-01T00:00:00Z", "c-1042"))
    for customer in ("c-1042", "never seen"):
        assert page["read_customer"](raw, "segmenter", customer) is None
        assert customer_of(store, partition_of(customer.encode(), PARTITIONS), customer) is None


def test_rows_of_several_layouts_are_each_read_in_their_own(
    page: dict[str, Any], raw: redis.Redis, store: RedisStore
) -> None:
    """After a change of policy old rows keep their layout until they are written again; both can be read."""
    old, new = "c-1042", "c-1042-b"
    third = next(f"c-{i}" for i in range(99) if partition_of(f"c-{i}".encode(), 4) == partition_of(old.encode(), 4))
    worker = Worker(store, parse_policy(PLAIN))
    worker.feed(*history(old, "USD"))
    worker.feed(*history(third, "USD"))
    more = PLAIN.replace('"channel"]', '"channel", "favourite"]\nnumbers = ["income"]')
    worker = adopt(worker, more)
    worker.feed(*history(new, "USD"))
    worker.feed(
        event("purchase", 9, "2024-01-12T00:00:00Z", third, amount="1", attributes={"favourite": "x", "income": 7})
    )
    assert len({raw.hget("{segmenter:3}:customers", customer)[:4] for customer in (old, third, new)}) == 2
    for customer in (old, new):
        assert agreed(page, raw, store, customer)["attributes"] == {"country": "Österreich", "channel": "a:b"}
    found = agreed(page, raw, store, third)
    assert found["attributes"] == {"country": "Österreich", "channel": "a:b", "favourite": "x", "income": 7.0}
    adopt(worker, THREE_DIMENSIONS.replace('"KWD"', '"USD"')).advance("2024-01-12T00:00:00Z")
    for customer in (old, new, third):
        assert list(agreed(page, raw, store, customer)["segments"]) == ["lifecycle", "fast", "slow"]
        assert agreed(page, raw, store, customer)["activation"] == 3


def test_numbers_surveys_and_tallies_can_be_read(page: dict[str, Any], raw: redis.Redis, store: RedisStore) -> None:
    """Each has its place in the row, by the layout's order, whatever the others are."""
    worker = Worker(store, parse_policy(TALLIES))
    at = "2024-01-05T09:30:00Z"
    worker.feed(
        event("profile", 9, at, "c", attributes={"income": 12.5}),
        event("survey", 1, at, "c", score=4),
        event("survey", 2, at, "c", score="4.25"),
        event("purchase", 1, at, "c", amount="2", channel="web", category="toys"),
        event("purchase", 2, at, "c", amount="3", channel="fair", category="food"),
        event("purchase", 3, "2024-12-01T00:00:00Z", "c", amount="1", channel="shop", category="toys"),
    )
    found = agreed(page, raw, store, "c")
    assert found["attributes"] == {"channel": "shop", "income": 12.5}
    assert found["value_at"]["income"] == datetime(2024, 1, 5, 9, 30, tzinfo=UTC)
    assert found["value_at"]["height"] is None
    assert (found["surveys"], found["satisfaction"]) == (2, 4.125)
    weights = found["tallies"]["channel/revenue/15552000s"]
    assert weights["fair"] / weights["web"] == 1.5
    # Half as much was paid, in the next half-life.
    assert weights["shop"] / weights["web"] == 1.0
    assert found["tallies"]["category/orders/forever"] == {"toys": 2.0, "food": 1.0}
    assert found["segments"]["what"] == "toys"


def test_a_row_of_format_1_can_be_read(page: dict[str, Any], raw: Any, store: RedisStore) -> None:
    """What the first version wrote is read by the page's code as by the segmenter."""
    worker = Worker(store, parse_policy(PLAIN))
    worker.feed(*history("c-1042", "USD"))
    raw.hset("{segmenter:3}:customers", "c-1042", OLD_ROW)
    raw.hset("{segmenter:3}:shard", f"layout:{int.from_bytes(OLD_ROW[:4], 'little')}", OLD_LAYOUT)
    found = agreed(page, raw, store, "c-1042")
    assert (found["orders"], found["gross_minor"], found["segments"]) == (1, 1990, {"lifecycle": "new"})
    assert (found["activation"], found["surveys"], found["satisfaction"]) == (0, 0, None)
    assert set(found["attributes"]) == {"country", "channel"}
    assert len(found["event_hashes"]) == 3
    assert len(OLD_ROW) == 57 + 10 + 2 * 12 + 3 * 8


def test_the_worked_example_is_real(page: dict[str, Any], raw: redis.Redis, store: RedisStore) -> None:
    """The page's example, byte for byte, is what the segmenter stores for the events it tells of."""
    customer = "c-1042"
    worker = Worker(store, parse_policy(POLICY))
    worker.feed(
        event("signup", 1, "2024-01-05T09:30:00Z", customer, country="DE", attributes={"income": 48000}),
        event("purchase", 1, "2024-01-07T12:00:00Z", customer, amount="19.90", channel="web"),
        event("purchase", 2, "2024-01-08T12:00:00Z", customer, amount="5.00", channel="shop"),
        event("survey", 2, "2024-01-09T08:00:00Z", customer, score="4.5"),
    )
    table = PAGE[PAGE.index("### Example") :]
    lines = re.findall(r"^\| (\d+) \| `([0-9a-f ]+)` \|", table, flags=re.MULTILINE)
    stored = b""
    for offset, part in lines:
        assert int(offset) == len(stored)
        stored += bytes.fromhex(part)
    assert raw.hget("{segmenter:3}:customers", customer) == stored
    assert f"= {len(stored)} bytes" in table
    (layout,) = re.findall(r"^```json\n(.*)\n```$", PAGE, flags=re.MULTILINE)
    layout_id = zlib.crc32(layout.encode())
    assert raw.hget("{segmenter:3}:shard", f"layout:{layout_id}") == layout.encode()
    assert f"layout {layout_id} |" in table
    assert raw.hgetall("{segmenter:3}:values") == {
        b"country:0": b"DE",
        b"channel/orders/forever:0": b"web",
        b"channel/orders/forever:1": b"shop",
    }
    found = agreed(page, raw, store, customer)
    for name in ("signed_up_at", "first_purchase_at"):
        assert f"{name} {found[name]:%Y-%m-%dT%H:%M:%SZ}" in table


def test_the_named_shards_are_right(page: dict[str, Any]) -> None:
    """The shards that the page names for customers are the ones its code finds."""
    named = re.findall(r"`([^`]+)` is on shard (\d+)(?: and `([^`]+)` on shard (\d+))", PAGE)
    assert named
    for first, shard, second, other in named:
        assert page["shard_of"](first, PARTITIONS) == int(shard)
        assert page["shard_of"](second, PARTITIONS) == int(other)


def test_segments_and_outbox_are_as_described(raw: Any, store: RedisStore) -> None:
    """Sizes of segments and outbox entries are the JSON objects that the page shows."""
    worker = Worker(store, parse_policy(PLAIN))
    worker.feed(*history("c-1042", "USD"))
    sizes = {name: json.loads(size) for name, size in raw.hgetall("{segmenter:3}:segments").items()}
    assert sizes.pop(b"lifecycle:regular") == {
        "customers": 1,
        "revenue_minor": 100 * (1990 - 5_000_000 + 12 + 999_999_999_999),
        "orders": 3,
    }
    assert set(sizes) == {b"lifecycle:new", b"lifecycle:potential", b"lifecycle:lapsed"}
    assert all(size == {"customers": 0, "revenue_minor": 0, "orders": 0} for size in sizes.values())
    ((entry_id, entry),) = raw.hgetall("{segmenter:3}:outbox").items()
    assert entry_id == b"1-" + raw.hget("{segmenter:3}:shard", "owner")
    entry = json.loads(entry)
    assert list(entry) == ["format", "changes", "draws", "dead_letters", "withheld", "forgotten"]
    assert entry["format"] == 1
    assert [change["to"] for change in entry["changes"]] == ["new", "regular"]


def test_settled_is_the_earliest_deadline_left(raw: Any, store: RedisStore) -> None:
    """While overdue deadlines are applied in parts every one before ``settled`` has been applied, and no later."""
    customers = [c for c in (f"c-{i}" for i in range(40)) if partition_of(c.encode(), PARTITIONS) == 3][:4]
    worker = Worker(store, parse_policy(PLAIN))
    for day, customer in enumerate(customers, start=1):
        worker.feed(event("signup", day, f"2024-01-{day:02}T00:00:00Z", customer))
    processor = worker.processors[3]
    times, potential = [], []
    while (step := processor.advance(parse("2024-02-20T00:00:00Z"), most=1)) is not None:
        processor.commit(step)
        times.append(int(raw.hget("{segmenter:3}:shard", "settled")))
        assert int(raw.hget("{segmenter:3}:shard", "time")) == processor.time
        potential.append(json.loads(raw.hget("{segmenter:3}:segments", "lifecycle:potential"))["customers"])
    # 30 days after each signup
    assert times == [parse(f"2024-{at}T00:00:00Z") for at in ("02-01", "02-02", "02-03", "02-20")]
    assert potential == [1, 2, 3, 4]


def test_the_page_names_every_key_and_field(raw: Any, store: RedisStore) -> None:
    """Nothing is stored that the page does not mention."""
    worker = Worker(store, parse_policy(POPULATION))
    for processor in worker.processors:
        processor.load({}, dict.fromkeys(ROLES, 3))
    processor, last = worker.processors[3], parse("2024-01-20T00:00:00Z")
    begin = processor.stop(parse("2024-01-05T00:00:00Z"))
    assert begin is not None
    processor.commit(begin)
    worker.feed(*history("c-1042", "USD"))
    while processor.stop_at <= last:
        step = processor.stop(last)
        if step is not None:
            processor.commit(step)
        else:
            processor.give_up()
    for shard in range(PARTITIONS - 1):
        # As if the other shards had been there, too.
        raw.copy("{segmenter:3}:population", f"{{segmenter:{shard}}}:population")
    assert worker.activations.merge(PARTITIONS)
    store.commit_learners(None, 1, {"cluster": b"{}"}, {("cluster", last): b"null"})
    keys = {key.decode() for key in raw.keys("*")}
    for key in keys:
        assert "`" + re.sub(r":\d\}", ":7}", key) + "`" in PAGE, key
    for key in keys:
        if key.endswith((":shard", ":fleet", ":policy", ":clusters")):
            for field in raw.hkeys(key):
                name = re.sub(r"^(offset|backfill):.*", r"\1:<role>", field.decode())
                name = re.sub(r"^activation:.*", "activation:<number>", re.sub(r"^policy:.*", "policy:<version>", name))
                name = re.sub(
                    r"^learner:.*", "learner:<dimension>", re.sub(r"^model:.*", "model:<dimension>:<as_of>", name)
                )
                assert f"`{re.sub(r'^layout:.*', 'layout:<id>', name)}`" in PAGE, field
    assert b"first" in raw.hkeys("{segmenter:3}:population")


def test_activations_and_summaries_are_as_described() -> None:
    """The JSON that the page shows has the fields of what is stored, in their order."""
    shown = [json.loads(text.replace("…", "")) for text in re.findall(r"^`(\{.*\})`", PAGE, flags=re.MULTILINE)]
    (activation,) = (each for each in shown if "cutoffs" in each)
    made = Activation.parse(2, json.dumps(activation).encode())
    assert json.loads(made.json) == activation
    assert made.cutoffs.scores == {"value": {"monetary": (1500, 9900)}}
    (summary,) = (each for each in shown if "distributions" in each)
    stored = json.loads(Summary.empty().json)
    assert list(summary) == list(stored)
    assert list(summary["distributions"]) == list(stored["distributions"])
    assert summary["distributions"]["recency"] == stored["distributions"]["recency"]


def _fields(kind: Any) -> Iterator[str]:
    """The names of a stored object's fields, and of those that lie within it."""
    for name, field in kind.model_fields.items():
        yield name
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, Stored):
                yield from _fields(inner)


def test_learners_are_described() -> None:
    """Every field of a learner and of a model is on the page, and the model that it shows is one."""
    page = PAGE.partition("## Clusters\n")[2].partition("\n## ")[0]
    named = {part for name in re.findall(r"`([a-z_.]+)`", page) for part in name.split(".")}
    fields = set(_fields(LearnerState))
    assert {"alarm", "least", "heard", "sample", "silhouette"} <= fields
    assert fields <= named
    (shown,) = re.findall(r"^`(\{.*\})`", page, flags=re.MULTILINE)
    model = ClusterModel.parse(shown.encode())
    assert json.loads(model.encode()) == json.loads(shown)
    assert list(json.loads(shown)) == list(json.loads(model.encode()))


def test_learners_may_be_moved_by_hand(raw: Any, store: RedisStore) -> None:
    """What the page says that may be done: restore both fields, or remove them and learn everything again."""
    log = values(recorded(4))
    trainer = Trainer(store)
    trainer.load()
    trainer.learn(0, 6, log[:6])
    backup = raw.hmget("segmenter:clusters", ["offset", "learner:cluster"])
    trainer.learn(6, 10, log[6:])
    wanted = raw.hgetall("segmenter:clusters")
    raw.hset("segmenter:clusters", mapping=dict(zip(("offset", "learner:cluster"), backup, strict=True)))
    assert trainer.load() == 6
    trainer.learn(6, 10, log[6:])
    assert raw.hgetall("segmenter:clusters") == wanted
    raw.hdel("segmenter:clusters", "offset", "learner:cluster")
    assert trainer.load() is None
    trainer.learn(0, 10, log)
    assert raw.hgetall("segmenter:clusters") == wanted
    raw.hdel("segmenter:clusters", "learner:cluster")
    assert trainer.load() == 10
    trainer.learn(10, 12, values(recorded(1, as_of=9 * DAY, begins=False))[2:])
    model = trainer.learners["cluster"].model
    assert model is not None
    assert model.version == 1


def test_a_newer_format_is_refused(page: dict[str, Any], raw: Any, store: RedisStore) -> None:
    """The page's code refuses a row whose layout says another format, and one of a wrong length."""
    Worker(store, parse_policy(PLAIN)).feed(*history("c-1042", "USD"))
    row = raw.hget("{segmenter:3}:customers", "c-1042")
    raw.hset("{segmenter:3}:customers", "c-1042", row + b"\0")
    with pytest.raises(ValueError, match="damaged"):
        page["read_customer"](raw, "segmenter", "c-1042")
    raw.hset("{segmenter:3}:customers", "c-1042", row)
    field = f"layout:{int.from_bytes(row[:4], 'little')}"
    layout = json.loads(raw.hget("{segmenter:3}:shard", field))
    raw.hset("{segmenter:3}:shard", field, json.dumps(layout | {"format": 4}))
    with pytest.raises(ValueError, match="newer"):
        page["read_customer"](raw, "segmenter", "c-1042")
