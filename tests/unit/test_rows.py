"""Packed rows: what is stored of a customer is read back, under the same policy and under another one."""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pytest
import xxhash

from models.errors import StateError
from models.instants import FOREVER, NEVER
from models.policy import Policy
from models.rows import FORMAT, Layout, layout_of, load, pack, unpack
from models.segmenter import Segmenter
from models.table import NO_LABEL, NO_VALUE, OTHER, CustomerTable
from tests.support.tables import columns_of, ids_of, make_known, rows_of
from tests.unit.build import Event, Feeder, at, make_policy, profile, purchase, refund, signup, survey
from tests.unit.fakes import switch

COLUMNS = (
    "signed_up_at", "first_purchase_at", "last_purchase_at", "orders", "refunds", "gross", "refunded", "sequence",
    "activation", "surveys", "score", "changed_at", "value", "value_at", "number", "number_at",
)  # fmt: skip


TALLIED = """
[dimensions.where]
engine = "dominant"
of = "channel"
groups = { online = ["web", "online"], offline = ["store"] }
other = "other"
"""


INCOMES = [(("signed", "s2", at(67)), -0.5), (("new", "n", at(68)), 1e12)]


def a_history() -> list[Event]:
    """Customers of every sort: many purchases, a signup only, refunds only, attributes, more ids than are kept."""
    events = [purchase("many", f"m{i}", at(i), f"{i}.25", country="DE" if i % 2 else "FR") for i in range(21)]
    events += [signup("signed", "s1", at(3), channel="online"), refund("returns", "r1", at(4), "9.99")]
    events += [purchase("żółw", f"z{i}", at(60 + i), "99999999999.99", country="PL", channel="store") for i in range(4)]
    events += [survey("many", "m-v", at(64), "4.75"), survey("many", "m-w", at(65), 100), survey("quiet", "q", at(66))]
    events += [profile(*each, attributes={"income": income}) for each, income in INCOMES]
    return [*events, refund("many", "m-r", at(70), "3.00"), signup("many", "m-s", at(71))]


def filled(policy: Policy) -> Feeder:
    """A shard with a history in which lapses have happened."""
    feeder = Feeder(policy)
    feeder.feed(*a_history())
    feeder.advance(at(140))
    return feeder


def stored(feeder: Feeder) -> list[tuple[str, bytes]]:
    """All packed rows."""
    return [pair for part in feeder.store.rows(0) for pair in part]


def loaded(feeder: Feeder, policy: Policy) -> CustomerTable:
    """A new table under a policy, from what the store holds."""
    header = feeder.store.header(0)
    table = CustomerTable(policy)
    for group in unpack(stored(feeder), header.layouts):
        load(table, group, header.values)
    return table


def remembered(table: CustomerTable, customer: str) -> list[int]:
    """The ids remembered of a customer, oldest first."""
    return ids_of(table, table.index[customer])


def weights_of(table: CustomerTable, tally: str, customer: str) -> dict[str, float]:
    """What a customer's purchases weigh, by text."""
    weights = table.tally[tally][table.index[customer]].tolist()
    return {text: weight for text, weight in zip(table.values[tally].texts, weights, strict=False) if weight}


def hashes(names: Sequence[str]) -> list[int]:
    return [xxhash.xxh3_64_intdigest(name.encode()) for name in names]


def test_rows_come_back_as_they_were() -> None:
    """Packed, unpacked and loaded under the same policy, every column of every customer is what it was."""
    feeder = filled(make_policy(numbers=["income"], more=TALLIED))
    before, after = feeder.processor.table, loaded(feeder, feeder.policy)
    assert rows_of(after).keys() == rows_of(before).keys() == {"many", "signed", "returns", "żółw", "quiet", "new"}
    assert {float(before.number[0][before.index[c]]) for c in ("signed", "new")} == {-0.5, 1e12}
    assert before.score[before.index["many"]] == 10_475
    for customer, row in rows_of(before).items():
        for name, column in columns_of(before, *COLUMNS).items():
            expected, found = column[row], columns_of(after, *COLUMNS)[name][after.index[customer]]
            assert np.array_equal(expected, found, equal_nan=True), (customer, name)
        assert before.label[row].tolist() == after.label[after.index[customer]].tolist()
        for name, weights in before.tally.items():
            assert weights_of(before, name, customer) == weights_of(after, name, customer)
            assert weights.dtype == np.float64
        assert remembered(after, customer) == remembered(before, customer)
    assert [values.texts for values in after.values.values()] == [values.texts for values in before.values.values()]


def test_deadlines_are_computed_and_not_stored() -> None:
    """A table has none until the segmenter has resumed it; then they are those that stood in the table."""
    feeder = Feeder()
    feeder.feed(purchase("a", "p", at(0)), signup("b", "s", at(1)), refund("c", "r", at(2)), signup("d", "t", at(-29)))
    before, after = feeder.processor.table, loaded(feeder, feeder.policy)
    assert all(deadline.untouched for deadline in after.deadline)
    Segmenter(feeder.policy).resume(after, after.rows, feeder.processor.time, feeder.processor.time)
    deadlines = {customer: int(after.soonest[row]) for customer, row in rows_of(after).items()}
    assert deadlines == {"a": at(90), "b": at(31), "c": FOREVER, "d": at(61)}
    assert deadlines == {customer: int(before.soonest[row]) for customer, row in rows_of(before).items()}
    assert after.earliest_deadline == at(31)


def test_a_row_is_as_documented() -> None:
    """A row is the layout's id, then fixed little-endian fields, then one 64-bit hash for each remembered id."""
    feeder = Feeder(make_policy(keep=["country"], numbers=["income"], more=TALLIED))
    feeder.feed(purchase("a", "e1", at(1), "2.50", country="DE", channel="web"), refund("a", "e2", at(2), "1.00"))
    ((customer, row),) = stored(feeder)
    layout = layout_of(feeder.processor.table)
    assert customer == "a"
    assert row[:4] == zlib.crc32(layout.json).to_bytes(4, "little")
    fixed = 4 + 4 + 3 * 8 + 2 * 4 + 2 * 8 + (4 + 4 + 8) + 2 * (1 + 8) + (4 + 8) + (8 + 8) + 8 + 1
    assert len(row) == layout.head.itemsize + 16 == fixed + 2 * 8
    assert [int.from_bytes(row[at_ : at_ + 8], "little") for at_ in (-16 + len(row), -8 + len(row))] == hashes(
        ["e1", "e2"]
    )
    assert orjson.loads(layout.json) == {
        "format": FORMAT,
        "currency": "USD",
        "dimensions": {
            "lifecycle": ["new", "potential", "regular", "lapsed"],
            "where": ["online", "offline", "other", "mixed"],
        },
        "attributes": ["country"],
        "numbers": ["income"],
        "tallies": {"channel/orders/forever": 1},
    }
    assert Layout.parse(layout.json) == layout


@pytest.mark.parametrize(
    ("before", "after"), [(16, 16), (16, 4), (4, 16), (1, 3), (21, 20), (22, 23), (255, 2), (2, 1)]
)
def test_remembered_ids_survive_another_limit(before: int, after: int) -> None:
    """A policy that remembers fewer ids keeps the latest; one that remembers more starts with what there is."""
    feeder = Feeder(make_policy(remembered=before))
    names = [f"e{i}" for i in range(22)]
    feeder.feed(*(purchase("a", name, at(i)) for i, name in enumerate(names)), purchase("b", "only", at(30)))
    table = loaded(feeder, make_policy(remembered=after))
    assert remembered(table, "a") == hashes(names[-min(before, after) :])
    assert remembered(table, "b") == hashes(["only"])


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4), (3, 3)])
def test_ids_are_forgotten_oldest_first_after_a_reload(before: int, after: int) -> None:
    """Whatever the limits, the next id takes the place of the oldest one."""
    feeder = Feeder(make_policy(remembered=before))
    feeder.feed(*(purchase("a", f"e{i}", at(i)) for i in range(5)))
    switch(feeder, make_policy(remembered=after))
    feeder.feed(purchase("a", "next", at(10)))
    names = [f"e{i}" for i in range(5 - min(before, after), 5)]
    assert remembered(feeder.processor.table, "a") == hashes([*names, "next"][-after:])
    feeder.load()
    assert remembered(feeder.processor.table, "a") == hashes([*names, "next"][-after:])


def relabelled(layout: Layout, **labels: tuple[str, ...]) -> Layout:
    return Layout(layout.currency, labels, layout.attributes)


def test_labels_are_known_by_name() -> None:
    """Stored label codes mean the labels of the stored layout; one that the policy no longer has stays, as retired."""
    feeder = filled(make_policy())
    (old,) = feeder.store.header(0).layouts.values()
    other = relabelled(old, value=("high", "low"), lifecycle=("lapsed", "asleep", "new", "regular"))
    table = CustomerTable(feeder.policy)
    for customer, label in (("a", (0, 0)), ("b", (1, 1)), ("c", (0, 2)), ("d", (0, 3)), ("e", (0, NO_LABEL))):
        head = np.zeros(1, dtype=other.head)
        head["layout"], head["label"], head["changed_at"] = other.id, label, (5, 7)
        for group in unpack([(customer, head.tobytes())], {other.id: other}):
            load(table, group, {})
    names = [*table.labels[0], None]
    found = {customer: names[int(table.label[row, 0])] for customer, row in rows_of(table).items()}
    assert found == {"a": "lapsed", "b": "asleep", "c": "new", "d": "regular", "e": None}
    assert table.labels[0] == ["new", "potential", "regular", "lapsed", "asleep"]
    assert set(table.changed_at[0][table.rows].tolist()) == {7}


def test_a_retired_segment_is_none_in_a_row_that_is_written() -> None:
    """By then the row has moved out of it; a reader of the new layout would not know its name."""
    table = CustomerTable(make_policy())
    (row,) = table.place(["a"]).tolist()
    table.label[row, 0] = table.label_code(0, "asleep")
    make_known(table, table.rows)
    layout = layout_of(table)
    assert layout.labels == {"lifecycle": ("new", "potential", "regular", "lapsed")}
    (group,) = unpack([("a", pack(table, layout, table.rows)[0])], {layout.id: layout})
    assert group.head["label"].tolist() == [[NO_LABEL]]


def test_only_retired_segments_that_rows_bear_are_remembered() -> None:
    """What no row of a layout bears is gone for good."""
    feeder = filled(make_policy())
    (old,) = feeder.store.header(0).layouts.values()
    other = relabelled(old, lifecycle=("asleep", "new", "gone", "away"))
    head = np.zeros(2, dtype=other.head)
    head["layout"], head["label"] = other.id, [[3], [1]]
    table = CustomerTable(feeder.policy)
    (group,) = unpack([(c, row.tobytes()) for c, row in zip("ab", head, strict=True)], {other.id: other})
    assert load(table, group, {}).tolist() == [0, 1]
    assert table.labels[0] == ["new", "potential", "regular", "lapsed", "away"]


def test_dimensions_are_known_by_name() -> None:
    """Under a policy with other dimensions, each keeps its own labels; a new one starts without."""
    both = {"slow": ("30d", 3, "300d"), "fast": ("10d", 2, "20d")}
    feeder = filled(make_policy(dimensions=both))
    before = feeder.processor.table
    policy = make_policy(dimensions={"fresh": ("30d", 3, "90d"), "fast": both["fast"], "slow": both["slow"]})
    after = loaded(feeder, policy)
    for customer, row in rows_of(before).items():
        slow, fast = before.label[row].tolist()
        assert after.label[after.index[customer]].tolist() == [NO_LABEL, fast, slow]
        slow, fast = (column[row] for column in before.changed_at)
        assert [column[after.index[customer]] for column in after.changed_at] == [NEVER, fast, slow]
    alone = loaded(feeder, make_policy(dimensions={"fast": both["fast"]}))
    assert {alone.label.shape[1], alone.label[alone.index["many"], 0]} == {1, before.label[before.index["many"], 1]}


def test_attributes_are_known_by_name() -> None:
    """An attribute that the policy dropped is not loaded, a new one is empty, the others keep value and instant."""
    feeder = filled(make_policy(keep=["country", "channel"]))
    table = loaded(feeder, make_policy(keep=["category", "channel"]))
    texts = table.values["channel"]
    found = {customer: texts.text(int(table.value[1][row])) for customer, row in rows_of(table).items()}
    assert found == {"many": None, "signed": "online", "returns": None, "żółw": "store", "quiet": None, "new": None}
    assert table.value_at[1][table.index["żółw"]] == at(63)
    assert (table.value[0][table.rows] == NO_VALUE).all()
    assert (table.value_at[0][table.rows] == NEVER).all()


def test_an_attribute_may_be_dropped_and_kept_again() -> None:
    """While the policy does not keep it, rows that are written lose it and the others do not."""
    feeder = Feeder(make_policy(keep=["country"]))
    feeder.feed(purchase("a", "1", at(0), country="DE"), purchase("b", "2", at(0), country="FR"))
    switch(feeder, make_policy(keep=[]))
    feeder.feed(purchase("a", "3", at(1), country="AT"))
    switch(feeder, make_policy(keep=["country"]))
    feeder.feed(purchase("c", "4", at(2), country="ES"))
    assert {name: customer["attributes"] for name, customer in feeder.customers().items()} == {
        "a": {},
        "b": {"country": "FR"},
        "c": {"country": "ES"},
    }


def test_a_lower_cap_of_values_changes_no_stored_value() -> None:
    """The cap is for new texts: what was stored before it was lowered stays what it was, for every reader."""
    feeder = Feeder(make_policy(keep=["country"]))
    feeder.feed(*(purchase(c, f"1{c}", at(0), country=c) for c in "abcd"))
    switch(feeder, make_policy(keep=["country"], max_values=2))
    feeder.feed(*(purchase(c, f"2{c}", at(1)) for c in "abcd"), purchase("e", "1e", at(1), country="e"))
    expected = {c: {"country": c} for c in "abcd"} | {"e": {"country": OTHER}}
    assert {name: customer["attributes"] for name, customer in feeder.customers().items()} == expected
    feeder.load()
    feeder.feed(*(purchase(c, f"3{c}", at(2)) for c in "abcde"))
    assert {name: customer["attributes"] for name, customer in feeder.customers().items()} == expected


def test_rows_of_several_layouts_lie_side_by_side() -> None:
    """A row keeps its layout until it is written again; both sorts are read, each in its own."""
    feeder = Feeder(make_policy(keep=["country"]))
    feeder.feed(purchase("old", "1", at(0), country="DE"), purchase("new", "2", at(0), country="FR"))
    switch(feeder, make_policy(keep=["channel", "country"], remembered=2))
    feeder.feed(purchase("new", "3", at(1), channel="online"))
    header = feeder.store.header(0)
    assert len(header.layouts) == 2
    assert {group.layout.attributes: list(group.customers) for group in unpack(stored(feeder), header.layouts)} == {
        ("country",): ["old"],
        ("channel", "country"): ["new"],
    }
    assert feeder.customer("old")["attributes"] == {"country": "DE"}
    assert feeder.customer("new")["attributes"] == {"channel": "online", "country": "FR"}


def test_another_base_currency_is_refused() -> None:
    """Amounts in another base currency are not loaded; the error names both and what to do."""
    feeder = filled(make_policy())
    with pytest.raises(StateError, match=r"stored amounts are in USD, the policy's base is EUR; set money\.base back"):
        loaded(feeder, make_policy(base="EUR"))


def damaged(row: bytes) -> list[bytes]:
    """The row, shortened, lengthened or miscounted."""
    fixed = len(row) - 8 * 16
    return [row[:4], row[:20], row[:-1], row[:-8], row + b"\0", row + bytes(8), row[:fixed], row[: fixed - 1],
            row[: fixed - 1] + b"\x0f" + row[fixed:], row[: fixed - 1] + b"\xff" + row[fixed:]]  # fmt: skip


def test_damaged_rows_are_refused() -> None:
    """A row of the wrong length is refused as damaged, and the error names the customer."""
    feeder = filled(make_policy())
    header = feeder.store.header(0)
    rows = dict(stored(feeder))
    assert len(rows["many"]) == next(iter(header.layouts.values())).head.itemsize + 8 * 16
    for bad in damaged(rows["many"]):
        with pytest.raises(StateError, match="the stored row of customer 'many' is damaged; restore the store"):
            unpack([("signed", rows["signed"]), ("many", bad)], header.layouts)


@pytest.mark.parametrize("row", [b"", b"\0", b"\1\2\3\4", b"\1\2\3\4" + bytes(100)])
def test_rows_without_a_stored_layout_are_refused(row: bytes) -> None:
    """A row that no stored layout explains is refused, and the error names the customer."""
    feeder = filled(make_policy())
    with pytest.raises(StateError, match="the row of customer 'x' has a layout that is not stored"):
        unpack([("x", row)], feeder.store.header(0).layouts)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"7", b'{"format":1}', b'{"format":1,"currency":"USD","dimensions":[],"attributes":[]}',
     b'{"format":1,"currency":"USD","dimensions":{"a":1},"attributes":[]}',
     b'{"currency":"USD","dimensions":{},"attributes":[]}', b'{"format":2}',
     b'{"format":2,"currency":"USD","dimensions":{},"attributes":[]}',
     b'{"format":2,"currency":"USD","dimensions":{},"attributes":[],"numbers":[],"tallies":{"a":"x"}}',
     b'{"format":2,"currency":"USD","dimensions":{},"attributes":[],"numbers":[],"tallies":[]}'],
)  # fmt: skip
def test_damaged_layouts_are_refused(text: bytes) -> None:
    """A stored layout that is no layout is refused as damaged."""
    with pytest.raises(StateError, match="a stored row layout is damaged"):
        Layout.parse(text)


def test_newer_layouts_are_refused() -> None:
    """A layout of a later format is refused, and the error says to run a newer version."""
    layout: dict[str, Any] = {"format": FORMAT + 1, "currency": "USD", "dimensions": {}, "attributes": []}
    with pytest.raises(
        StateError, match=f"in format {FORMAT + 1}, this version reads up to format {FORMAT}; run a newer version"
    ):
        Layout.parse(orjson.dumps(layout))


def test_nothing_stored_is_nothing_loaded() -> None:
    """No rows are no groups, and packing no rows gives none."""
    policy = make_policy()
    table = CustomerTable(policy)
    assert unpack([], {}) == []
    assert pack(table, layout_of(table), table.rows) == []
    Segmenter(policy).resume(table, table.rows, at(0), at(0))
    assert table.earliest_deadline == FOREVER


# Numbers and tallies


def test_numbers_are_known_by_name() -> None:
    """A number that the policy dropped is not loaded, a new one is absent, the others keep value and instant."""
    feeder = Feeder(make_policy(numbers=["income", "children"]))
    feeder.feed(profile("a", "1", at(1), attributes={"income": 5.25, "children": 2}), signup("b", "2", at(2)))
    table = loaded(feeder, make_policy(numbers=["floors", "income"]))
    a, b = table.index["a"], table.index["b"]
    assert table.number[1][a] == 5.25
    assert [column[a] for column in table.number_at] == [NEVER, at(1)]
    assert np.isnan(table.number[0][[a, b]]).all()
    assert np.isnan(table.number[1][b])
    assert [column[b] for column in table.number_at] == [NEVER, NEVER]


def a_shopper(feeder: Feeder, customer: str, *channels: str) -> None:
    """Purchases of one customer, one a channel."""
    start = feeder.offset
    feeder.feed(*(purchase(customer, f"t{start + i}", at(i), channel=each) for i, each in enumerate(channels)))


TALLY = "channel/orders/forever"


def test_a_tally_grows_by_powers_of_two() -> None:
    """Texts beyond a tally's room double it, which is another layout; rows of all of them are read side by side."""
    feeder = Feeder(make_policy(keep=[], more=TALLIED))
    widths, expected = [], {}
    for i, count in enumerate([1, 2, 3, 5, 8]):
        channels = [f"ch{n}" for n in range(count)]
        a_shopper(feeder, f"c{i}", *channels)
        widths.append(feeder.processor.table.tally[TALLY].shape[1])
        expected[f"c{i}"] = dict.fromkeys(channels, 1.0)
    assert widths == [1, 2, 4, 8, 8]
    assert sorted(each.tallies[TALLY] for each in feeder.store.header(0).layouts.values()) == [1, 2, 4, 8]
    for _ in range(2):
        table = feeder.processor.table
        assert {customer: weights_of(table, TALLY, customer) for customer in rows_of(table)} == expected
        feeder.load()


def test_tallies_are_known_by_name() -> None:
    """A policy that counts something else begins with nothing; one that counts the same goes on."""
    by_revenue = TALLIED.replace('of = "channel"', 'of = "channel"\nby = "revenue"')
    feeder = Feeder(make_policy(more=TALLIED))
    a_shopper(feeder, "a", "web", "web", "store")
    other = loaded(feeder, make_policy(more=by_revenue))
    assert weights_of(other, "channel/revenue/forever", "a") == {}
    both = loaded(feeder, make_policy(more=by_revenue + TALLIED.replace("where", "there")))
    assert weights_of(both, TALLY, "a") == {"web": 2.0, "store": 1.0}
    assert weights_of(both, "channel/revenue/forever", "a") == {}


def test_two_tallies_lie_one_after_the_other() -> None:
    """Each of several tallies keeps its own texts and weights, whatever their widths."""
    more = TALLIED + TALLIED.replace("where", "sum").replace('of = "channel"', 'of = "category"\nby = "revenue"')
    feeder = Feeder(make_policy(more=more))
    feeder.feed(
        purchase("a", "1", at(0), "2.00", channel="web", category="toys"),
        purchase("a", "2", at(1), "3.50", category="food"),
        purchase("a", "3", at(2), "0.25", category="toys"),
        purchase("b", "4", at(3), "9.00", channel="store", category="tools"),
    )
    feeder.load()
    table = feeder.processor.table
    assert weights_of(table, TALLY, "a") == {"web": 1.0}
    assert weights_of(table, "category/revenue/forever", "a") == {"toys": 225.0, "food": 350.0}
    assert weights_of(table, TALLY, "b") == {"store": 1.0}
    assert weights_of(table, "category/revenue/forever", "b") == {"tools": 900.0}


def test_a_text_that_only_a_redelivered_purchase_bears_does_no_harm() -> None:
    """It is in the dictionary and no row has any weight of it, before a reload and after it."""
    feeder = Feeder(make_policy(more=TALLIED))
    feeder.feed(purchase("a", "1", at(0), channel="web"))
    feeder.feed(purchase("a", "1", at(1), channel="store"))
    assert feeder.store.header(0).values[TALLY] == ["web", "store"]
    feeder.load()
    feeder.feed(purchase("a", "2", at(2), channel="web"), purchase("b", "3", at(2)))
    assert weights_of(feeder.processor.table, TALLY, "a") == {"web": 2.0}
    assert feeder.customer("a")["segments"]["where"] == "online"


def test_a_batch_may_bring_many_texts_at_once() -> None:
    """Texts that come later in a batch are in the dictionary before their purchases are counted."""
    feeder = Feeder(make_policy(more=TALLIED))
    a_shopper(feeder, "a", "web", "store", "fair", "phone", "web")
    assert feeder.customer("a")["segments"]["where"] == "mixed"


# The format before


#: A row as the version before wrote it, from its documentation: layout 1706455079, three event ids.
OLD_LAYOUT = (
    b'{"format":1,"currency":"USD","dimensions":{"lifecycle":["new","potential","regular","lapsed"]},'
    b'"attributes":["country","channel"]}'
)
OLD_ROW = bytes.fromhex(
    "2770b665 01000000 0036f97d2f0e0600 001019d2590e0600 001019d2590e0600 01000000 01000000 c607000000000000"
    "ea01000000000000 0000 0036f97d2f0e0600 00000000 00000000 001019d2590e0600 004079b37e0e0600 03"
    "1bf88612fc940a6c cc5661646d5a1187 ef26729619ba62b6"
)
OLD_VALUES = {"country": ["DE"], "channel": ["web"]}


#: The same with a row of format 2: D = 2, two bytes a label, four event ids.
LAYOUT_2 = (
    b'{"format":2,"currency":"USD","dimensions":{"lifecycle":["new","potential","regular","lapsed"],'
    b'"channel":["online","store","mixed"]},"attributes":["country"],"numbers":["income"],'
    b'"tallies":{"channel/orders/forever":2}}'
)
ROW_2 = bytes.fromhex(
    "7f0047aa030000000036f97d2f0e0600001019d2590e06000070f0ef6d0e06000200000000000000ba0900000000000000000000"
    "000000000100000001000000c201000000000000000002000036f97d2f0e06000070f0ef6d0e0600000000000036f97d2f0e0600"
    "000000000070e7400036f97d2f0e0600000000000000f03f000000000000f03f041bf88612fc940a6ccc5661646d5a118774531a"
    "7a761b3561ec897a6f3476f8e6"
)


def old_rows() -> tuple[list[tuple[str, bytes]], dict[int, Layout]]:
    """One customer of the format before, with the layout by the id under which it is stored."""
    layout_id = zlib.crc32(OLD_LAYOUT)
    assert OLD_ROW[:4] == layout_id.to_bytes(4, "little")
    return [("c-1042", OLD_ROW)], {layout_id: Layout.parse(OLD_LAYOUT)}


def test_rows_of_the_format_before_are_read() -> None:
    """What they do not have is as if nothing of it had ever been seen."""
    rows, layouts = old_rows()
    table = CustomerTable(make_policy(numbers=["income"], more=TALLIED))
    (group,) = unpack(rows, layouts)
    (row,) = load(table, group, OLD_VALUES).tolist()
    assert (table.sequence[row], table.orders[row], table.refunds[row]) == (1, 1, 1)
    assert (table.gross[row], table.refunded[row]) == (1990, 490)
    assert table.labels[0][table.label[row, 0]] == "new"
    assert table.label[row, 1] == NO_LABEL
    found = {name: table.values[name].text(int(table.value[a][row])) for a, name in enumerate(table.attributes)}
    assert found == {"country": "DE", "channel": "web"}
    assert (table.activation[row], table.surveys[row], table.score[row]) == (0, 0, 0)
    assert np.isnan(table.number[0][row])
    assert weights_of(table, TALLY, "c-1042") == {}
    assert remembered(table, "c-1042") == hashes(["s-1", "p-1", "r-1"])


def test_rows_of_format_2_are_read() -> None:
    """Their labels take two bytes each, and mean the same."""
    table = CustomerTable(make_policy(keep=["country"], numbers=["income"], more=TALLIED.replace("where", "channel")))
    layout = Layout.parse(LAYOUT_2)
    (group,) = unpack([("c-1042", ROW_2)], {zlib.crc32(LAYOUT_2): layout})
    (row,) = load(table, group, {"country": ["DE"], TALLY: ["web", "shop"]}).tolist()
    assert [labels[code] for labels, code in zip(table.labels, table.label[row], strict=True)] == ["new", "mixed"]
    assert (table.sequence[row], table.orders[row], table.surveys[row]) == (3, 2, 1)
    assert [column[row] for column in table.number] == [48_000]
    assert weights_of(table, TALLY, "c-1042") == {"web": 1, "shop": 1}
    assert remembered(table, "c-1042") == hashes(["s-1", "p-1", "p-2", "s-2"])


@pytest.mark.parametrize(("labels", "width"), [(1, 1), (128, 1), (129, 2)])
def test_labels_take_a_byte_where_their_codes_fit(labels: int, width: int) -> None:
    """One dimension of very many labels widens those of all."""
    texts = tuple(f"label-{number}" for number in range(labels))
    head = Layout("USD", {"few": ("a", "b"), "many": texts}, ()).head
    assert head["label"].itemsize == 2 * width
    record = np.zeros(1, dtype=head)
    record["label"] = [[NO_LABEL, labels - 1]]
    assert record["label"].tolist() == [[NO_LABEL, labels - 1]]


def test_rows_of_both_formats_lie_side_by_side() -> None:
    """A row keeps its format until it is written again."""
    rows, layouts = old_rows()
    feeder = Feeder(make_policy(more=TALLIED))
    feeder.feed(purchase("new", "1", at(0), channel="store"))
    table = CustomerTable(feeder.policy)
    for group in unpack([*rows, *stored(feeder)], {**layouts, **feeder.store.header(0).layouts}):
        load(table, group, {**OLD_VALUES, TALLY: ["store"]})
    assert table.orders[table.rows].tolist() == [1, 1]
    layout = layout_of(table)
    again = dict(zip(table.index.names(table.rows), pack(table, layout, table.rows), strict=True))
    assert {row[:4] for row in again.values()} == {layout.id.to_bytes(4, "little")}
    assert layout.format == FORMAT == 3


def test_a_layout_of_the_format_before_is_written_as_it_was_read() -> None:
    """Its fields are those of then: rows of it are as long as they were."""
    layout = Layout.parse(OLD_LAYOUT)
    assert (layout.format, layout.numbers, layout.tallies) == (1, (), {})
    assert layout.head.itemsize == 57 + 10 + 24
    assert Layout.parse(layout.json) == layout
