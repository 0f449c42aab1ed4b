"""Draws: uniform, the same on any machine and for any number of shards, of those who have every feature."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import xxhash

from models.errors import StateError
from models.partitioner import partition_of
from models.policy import Policy, parse_policy
from models.sampling import Draw, draw_of
from models.table import CustomerTable
from tests.support.tables import make_known
from tests.unit.test_engines import START, table_of

DAY = 86_400_000_000
TEXT = """
[attributes]
numbers = ["income"]
[dimensions.kind]
engine = "cluster"
clusters = 3
sample = {sample}
features = {features}
"""


def policy_of(sample: int = 100, features: str = '["recency_days", "orders", "monetary"]') -> Policy:
    """One cluster dimension."""
    return parse_policy(TEXT.format(sample=sample, features=features))


def many(customers: int, policy: Policy, shard: int = 0, shards: int = 1) -> CustomerTable:
    """Customers ``c0`` … of a shard; the orders of each are its number and one."""
    table = CustomerTable(policy)
    numbers = [number for number in range(customers) if partition_of(f"c{number}".encode(), shards) == shard]
    rows = table.place([f"c{number}" for number in numbers])
    make_known(table, rows)
    table.orders[rows] = np.array(numbers) + 1
    table.gross[rows] = 199
    table.last_purchase_at[rows] = START
    return table


def drawn(draw: Draw) -> list[int]:
    """The numbers of the customers drawn."""
    return [int(row[1]) - 1 for row in draw.rows]


def test_features_are_in_units_that_people_use() -> None:
    """Whole days, money in the base currency, numbers as they are; who lacks one of them is not drawn."""
    policy = policy_of(features='["recency_days", "tenure_days", "monetary", "average_order", "income"]')
    known: dict[str, Any] = {
        "orders": 2, "gross": 1001, "refunded": 250, "first_purchase_at": START - 9 * DAY, "last_purchase_at": START,
    }  # fmt: skip
    customers = [{**known, "numbers": {"income": 30_000.5}}, known, {"numbers": {"income": 1}}]
    draw = draw_of(table_of(policy, *customers), "kind", START + 3 * DAY - 1, 2, 5)
    assert draw.rows == ((2.0, 11.0, 7.51, 5.005, 30_000.5),)
    assert (draw.shard, draw.shards, draw.as_of, draw.begins) == (2, 5, START + 3 * DAY - 1, False)


def test_a_draw_does_not_depend_on_the_order_of_rows() -> None:
    """Nor on rows that were freed before."""
    policy, numbers = policy_of(), np.random.default_rng(1).permutation(500)
    table = CustomerTable(policy)
    table.place(["gone", "gone, too"])
    table.free(np.array([0, 1]))
    for number in numbers.tolist():
        (row,) = table.place([f"c{number}"])
        make_known(table, np.array([row]))
        table.orders[row], table.gross[row] = number + 1, 199
        table.last_purchase_at[row] = START
    assert draw_of(table, "kind", START, 0, 1) == draw_of(many(500, policy), "kind", START, 0, 1)


@pytest.mark.parametrize("shards", [2, 5])
def test_the_smallest_of_all_shards_are_a_draw_of_all(shards: int) -> None:
    """So it does not matter how many shards there are."""
    policy = policy_of()
    whole = draw_of(many(2000, policy), "kind", START, 0, 1)
    parts = [draw_of(many(2000, policy, shard, shards), "kind", START, shard, shards) for shard in range(shards)]
    together = sorted(pair for part in parts for pair in zip(part.keys, part.rows, strict=True))[:100]
    assert together == list(zip(whole.keys, whole.rows, strict=True))


def test_draws_are_uniform() -> None:
    """Over many instants everybody is drawn about as often, whatever their orders; each draw is another one."""
    policy, times = policy_of(), 2000
    table = many(400, policy)
    counts = Counter(number for i in range(times) for number in drawn(draw_of(table, "kind", START + i, 0, 1)))
    assert len(counts) == 400
    expected = times * 100 / 400
    # The sum of squares of what is like a normal distribution: its mean is 400, its deviation 28.
    deviation = (expected * (1 - 100 / 400)) ** 0.5
    assert sum(((count - expected) / deviation) ** 2 for count in counts.values()) < 400 + 5 * 28.3


def test_everybody_is_drawn_from_few() -> None:
    """A shard with no more customers than the sample sends all of them, an empty one nobody."""
    policy = policy_of()
    assert sorted(drawn(draw_of(many(100, policy), "kind", START, 0, 1))) == list(range(100))
    assert drawn(draw_of(many(0, policy), "kind", START, 0, 1)) == []


def mixed(number: int) -> int:
    """SplitMix64, of Python's integers."""
    number = (number + 0x9E3779B97F4A7C15) % 2**64
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % 2**64
    return number ^ (number >> 31)


@pytest.mark.parametrize("instant", [START, 0, -5 * DAY])
def test_keys_are_those_that_are_documented(instant: int) -> None:
    """What was drawn once is drawn for ever, on any machine."""
    assert mixed(0) == 0xE220A8397B1DCDAF  # of the generator's published test vectors
    table = table_of(policy_of(), *({"orders": 1, "last_purchase_at": START} for _ in range(3)))
    keys = [mixed(xxhash.xxh3_64_intdigest(name.encode()) ^ mixed(instant % 2**64)) for name in ("c0", "c1", "c2")]
    assert draw_of(table, "kind", instant, 0, 1).keys == tuple(sorted(keys))


def test_a_draw_is_read_as_it_was_written() -> None:
    """And what is no draw, or a newer one, is refused with a sentence."""
    draw = draw_of(many(300, policy_of()), "kind", START, 0, 1, begins=True)
    text = draw.encode()
    assert Draw.parse(text) == draw
    for wrong, sentence in [
        (b"{", "a draw of customers is damaged: it is not JSON"),
        (b"[]", "a draw of customers is damaged"),
        (text.replace(b'"format":1', b'"format":2'), "a draw of customers was stored in format 2; run a newer version"),
        (text.replace(b'"shard":0', b'"shard":-1'), "a draw of customers is damaged: shard"),
        (text.replace(b'"keys":[', b'"keys":[7,'), "a draw of customers is damaged: it: Value error, there must be a"),
    ]:
        with pytest.raises(StateError, match=sentence):
            Draw.parse(wrong)
