"""What every engine must do, checked on random customers: one suite that all eight pass, and any further one would."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

from models.clusters import ClusterModel
from models.dimensions import Dimension, dimensions_of
from models.engines import Scored
from models.instants import DAY, FOREVER, NEVER
from models.policy import Policy, parse_policy
from models.population import Cutoffs
from models.table import NO_LABEL, NO_VALUE, CustomerTable
from tests.support.tables import columns_of, make_known

#: 2024-01-01T00:00Z, which the random customers lie around.
START: Final = 1_704_067_200_000_000
END: Final = START + 1500 * DAY

POLICY: Final = parse_policy("""
[attributes]
keep = ["country", "hobby"]
numbers = ["birth_year", "income"]

[dimensions.lifecycle]
engine = "lifecycle"

[dimensions.region]
engine = "attribute"
of = "country"
other = "elsewhere"
groups = {europe = ["DE", "FR"], america = ["US", "ca"]}
[dimensions.sport]
engine = "attribute"
of = "hobby"
groups = {team = ["football", "rugby"], alone = ["running"]}

[dimensions.age]
engine = "bands"
of = "age"
bands = {child = 0, young = 17.5, adult = 30, old = 60}
[dimensions.income]
engine = "bands"
of = "income"
bands = {low = 0, middle = 20000, high = 60000.5}
[dimensions.spend]
engine = "bands"
of = "monetary"
bands = {owed = -10, some = 0.01, much = 400}
[dimensions.basket]
engine = "bands"
of = "average_order"
bands = {small = 5, middle = 30, large = 99.99}
[dimensions.buys]
engine = "bands"
of = "orders"
bands = {never = 0, once = 1, often = 4}
[dimensions.returns]
engine = "bands"
of = "refunds"
bands = {few = 0, many = 2}
[dimensions.csi]
engine = "bands"
of = "satisfaction"
bands = {unhappy = 0, neutral = 50, happy = 80}
[dimensions.pace]
engine = "bands"
of = "orders_per_month"
bands = {slow = 0.05, steady = 0.7, fast = 3}
[dimensions.recency]
engine = "bands"
of = "recency_days"
bands = {hot = 0, warm = 14, cold = 90.5, gone = 365}
[dimensions.tenure]
engine = "bands"
of = "tenure_days"
bands = {fresh = 1, settled = 365, old = 1000000000}

[dimensions.category]
engine = "dominant"
of = "category"
by = "revenue"
half_life = "180d"
margin = 10
groups = {food = ["bread", "milk"], toys = ["lego"]}
other = "rest"
[dimensions.hobbies]
engine = "dominant"
of = "hobby"
groups = {team = ["football", "rugby"], alone = ["running"]}

[dimensions.value]
engine = "pareto"
classes = {a = 80, b = 15, c = 5}
[dimensions.rfm]
engine = "rfm"

[dimensions.group]
engine = "cluster"
clusters = 4
[dimensions.kin]
engine = "cluster"
clusters = 3
features = ["tenure_days", "recency_days", "satisfaction", "income"]
margin = 0

[dimensions.mood]
engine = "rules"
otherwise = "plain"
[[dimensions.mood.rules]]
segment = "sporty"
when = [{attribute = "hobby", is = ["Running", "football"]}, {measure = "age", below = 50}]
[[dimensions.mood.rules]]
segment = "leaving"
when = [{dimension = "lifecycle", is = ["regular", "new"]}, {measure = "recency_days", from = 60, below = 90}]
[[dimensions.mood.rules]]
segment = "fast"
when = [{measure = "orders_per_month", from = 2}, {dimension = "value", not = ["c"]}]
[[dimensions.mood.rules]]
segment = "sporty"
when = [{attribute = "country", not = ["DE"]}, {measure = "satisfaction", from = 90}]
""")


def model_of(
    features: tuple[str, ...], mean: tuple[float, ...], scale: tuple[float, ...], *centres: tuple[float, ...]
) -> ClusterModel:
    """The first version of a clustering with these numbers."""
    count = len(centres)
    return ClusterModel(
        version=1, as_of=START, features=features, mean=mean, scale=scale, centres=centres,
        titles=tuple(f"title {code}" for code in range(count)), shares=(1 / count,) * count, samples=1000, drifts=0,
        error=1.0, silhouette=0.4,
    )  # fmt: skip


CUTOFFS: Final = Cutoffs(
    scores={
        "value": {"monetary": (5_000, 40_000)},
        "rfm": {
            "recency": (0, 10 * DAY, 60 * DAY + 1, 200 * DAY),
            "orders": (1, 1, 3, 5),
            "monetary": (100, 4_000, 20_000, 60_000),
        },
    },
    clusters={
        "group": model_of(
            ("recency_days", "orders", "monetary"), (4.5, 1.2, 4), (1.5, 0.5, 2), (-1, 1, 0.5), (1, -0.5, 0.2),
            (0.4, 0.3, -1), (0, 0.5, 1),
        ),
        "kin": model_of(
            ("tenure_days", "recency_days", "satisfaction", "income"), (5, 4, 3.5, 9), (1.5, 1.2, 1, 4),
            (-1, -1, 0, 0.3), (0.5, 1, 0.4, 0), (1, 0.2, -1, -0.2),
        ),
    },
)  # fmt: skip
DIMENSIONS: Final = {dimension.name: dimension for dimension in dimensions_of(POLICY, CUTOFFS)}
every = pytest.mark.parametrize("dimension", DIMENSIONS.values(), ids=list(DIMENSIONS))


def add(table: CustomerTable, *customers: Mapping[str, Any]) -> None:
    """Add customers ``c0``, ``c1`` … with some columns set.

    ``texts`` and ``numbers`` are attributes by name, ``weights`` the weights of texts by tally, ``segments`` the labels
    that they bear by dimension.
    """
    names = [f"c{len(table) + i}" for i in range(len(customers))]
    for row, customer in zip(table.place(names).tolist(), customers, strict=True):
        columns = dict(customer)
        for name, text in columns.pop("texts", {}).items():
            table.value[table.attributes.index(name)][row] = table.values[name].code(text)
        for name, number in columns.pop("numbers", {}).items():
            table.number[table.numbers.index(name)][row] = number
        for name, weights in columns.pop("weights", {}).items():
            for text, weight in weights.items():
                code = table.values[name].code(text)
                table.widen(name, code + 1)
                table.tally[name][row, code] = weight
        for name, segment in columns.pop("segments", {}).items():
            d = table.dimensions.index(name)
            table.label[row, d] = table.label_code(d, segment)
        for name, value in columns.items():
            getattr(table, name)[row] = value


def table_of(policy: Policy, *customers: Mapping[str, Any]) -> CustomerTable:
    """A table of these customers; see ``add``."""
    table = CustomerTable(policy)
    add(table, *customers)
    return table


def labels_of(dimension: Dimension, table: CustomerTable, at: int) -> list[str | None]:
    """The segments of all customers of a table at one instant."""
    codes = dimension.label(table, table.rows, np.full(len(table), at, dtype=np.int64)).tolist()
    return [None if code == NO_LABEL else dimension.labels[code] for code in codes]


def deadlines_of(dimension: Dimension, table: CustomerTable, at: int) -> list[int]:
    """The deadlines of all customers of a table, asked at one instant."""
    found: list[int] = dimension.deadline(table, table.rows, np.full(len(table), at, dtype=np.int64)).tolist()
    return found


def random_table(seed: int, customers: int = 300) -> CustomerTable:
    """Customers with anything known or absent, some of them with purchases in the first and last years there are."""
    rng = np.random.default_rng(seed)
    table = CustomerTable(POLICY)
    rows = table.place([f"c{i}" for i in range(customers)])
    make_known(table, rows)
    table.signed_up_at[rows] = np.where(
        rng.random(customers) < 0.5, START + rng.integers(-200 * DAY, 400 * DAY, customers), FOREVER
    )
    table.orders[rows] = rng.integers(0, 8, customers) * (rng.random(customers) < 0.8)
    last = START + rng.integers(-400 * DAY, 400 * DAY, customers)
    # Whole days meet bounds exactly, and the ends of time must not overflow.
    last[::3] = START + rng.integers(-400, 400, len(last[::3])) * DAY
    last[::50] = rng.choice([253_402_300_799_999_999, -62_135_596_800_000_000], len(last[::50]))
    first = last - rng.integers(0, 300 * DAY, customers) * (table.orders[rows] > 1)
    buyer = table.orders[rows] > 0
    table.last_purchase_at[rows] = np.where(buyer, last, NEVER)
    table.first_purchase_at[rows] = np.where(buyer, first, FOREVER)
    table.gross[rows] = np.where(buyer, rng.integers(0, 90_000, customers), 0)
    table.refunds[rows] = rng.integers(0, 4, customers)
    table.refunded[rows] = table.refunds[rows] * rng.integers(0, 2_000, customers)
    table.surveys[rows] = rng.integers(0, 3, customers)
    table.score[rows] = table.surveys[rows] * rng.integers(0, 10_001, customers)
    for a, texts in enumerate((["DE", "US", "fr", "CA", "JP"], ["football", "Running", "chess"])):
        for text in texts:
            table.values[table.attributes[a]].code(text)
        table.value[a][rows] = rng.integers(NO_VALUE, len(texts), customers)
    absent = rng.random((customers, 2)) < 0.2
    numbers = np.stack([rng.integers(1930, 2030, customers), rng.integers(-500, 900, customers) * 100], axis=1)
    for n, values in enumerate(np.where(absent, np.nan, numbers).T):
        table.number[n][rows] = values
    for name, texts in zip(
        table.tally, (["lego", "MILK", "nails", "bread"], ["chess", "rugby", "running"]), strict=True
    ):
        for text in texts:
            table.values[name].code(text)
        table.widen(name, len(texts))
        weights = rng.integers(0, 4, (customers, table.tally[name].shape[1]))
        weights[:, len(texts) :] = 0
        table.tally[name][rows] = np.where(buyer[:, None], weights, 0)
    for d, labels in enumerate(table.labels):
        table.label[rows, d] = rng.integers(NO_LABEL, len(labels), customers)
    return table


def instants(seed: int, customers: int, of: int = 1) -> NDArray[np.int64]:
    """Instants, one or more for each customer, from before most of what happened until long after it."""
    rng = np.random.default_rng(1000 + seed)
    found = START + rng.integers(-500 * DAY, 900 * DAY, (of, customers))
    found[:, ::4] = START + rng.integers(-500, 900, found[:, ::4].shape) * DAY
    return found if of > 1 else found[0]


@every
@pytest.mark.parametrize("seed", [0, 1])
def test_labels_are_codes(dimension: Dimension, seed: int) -> None:
    """A label is an int16 code of one of the policy's segments or NO_LABEL, and random customers meet all of them."""
    table = random_table(seed, 2000)
    labels = dimension.label(table, table.rows, instants(seed, 2000))
    assert labels.dtype == np.int16
    assert dimension.labels == POLICY.dimensions[dimension.name].labels
    assert set(labels.tolist()) <= set(range(NO_LABEL, len(dimension.labels)))
    unreachable = {"old"} if dimension.name == "tenure" else set()
    missing = set(dimension.labels) - {dimension.labels[code] for code in labels.tolist() if code != NO_LABEL}
    assert missing == unreachable


@every
def test_rows_are_independent(dimension: Dimension) -> None:
    """A row gets the same label and deadline alone, among others and in any order."""
    table, at = random_table(2), instants(2, 300)
    labels, deadlines = dimension.label(table, table.rows, at), dimension.deadline(table, table.rows, at)
    some = np.random.default_rng(5).permutation(300)[:77]
    for rows in (some, some[:1], some[:0]):
        assert dimension.label(table, rows, at[rows]).tolist() == labels[rows].tolist()
        assert dimension.deadline(table, rows, at[rows]).tolist() == deadlines[rows].tolist()
        assert dimension.deadline(table, rows, at[rows]).dtype == np.int64


def state(table: CustomerTable) -> dict[str, Any]:
    """Everything that a table holds, by name."""
    columns = {name: column[table.rows].copy() for name, column in columns_of(table).items()}
    columns |= {"label": table.label.copy(), "seen": table.seen.oldest_first(table.rows)}
    weights = {f"tally {name}": value.copy() for name, value in table.tally.items()}
    texts = {f"texts {name}": np.array(values.texts) for name, values in table.values.items()}
    return columns | weights | texts | {"labels": np.array([label for labels in table.labels for label in labels])}


@every
def test_engines_only_look(dimension: Dimension) -> None:
    """Labelling changes neither the table nor what it was asked with."""
    table, at = random_table(3), instants(3, 300)
    before, asked, rows = state(table), at.copy(), table.rows
    dimension.label(table, rows, at)
    dimension.deadline(table, rows, at)
    dimension.reason(table, 7, int(at[7]))
    for name, column in state(table).items():
        np.testing.assert_array_equal(column, before[name], err_msg=name)
    assert (at == asked).all()
    assert (rows == table.rows).all()


@every
@pytest.mark.parametrize("seed", [4, 5])
def test_deadlines_foretell_every_label(dimension: Dimension, seed: int) -> None:
    """Followed from one to the next, deadlines only advance, and a label holds up to its deadline, at it, too."""
    table, at, rng = random_table(seed), instants(seed, 300), np.random.default_rng(seed)
    rows, place = table.rows, table.dimensions.index(dimension.name)
    for _ in range(250):
        # A label may depend on the one before.
        label = table.label[rows, place] = dimension.label(table, rows, at)
        deadline = dimension.deadline(table, rows, at)
        assert (deadline >= at).all()
        assert (deadline <= FOREVER).all()
        until = np.maximum(np.minimum(deadline, END), at)
        for asked in (at, until, rng.integers(at, until + 1), np.minimum(at + DAY, until)):
            assert dimension.label(table, rows, asked).tolist() == label.tolist()
        at = np.where(deadline < END, deadline + 1, END)
        if (at == END).all():
            break
    else:
        pytest.fail("deadlines do not come to an end")


def test_time_moves_what_it_must() -> None:
    """Of the dimensions of this policy, exactly those that ask how old something is have deadlines."""
    table, at = random_table(6), instants(6, 300)
    moved = {name for name, d in DIMENSIONS.items() if (d.deadline(table, table.rows, at) != FOREVER).any()}
    assert moved == {"lifecycle", "age", "pace", "recency", "tenure", "rfm", "group", "kin", "mood"}
    scored = {name for name, each in POLICY.dimensions.items() if isinstance(each, Scored)}
    assert set(POLICY.moving) == moved | scored


def replace(table: CustomerTable, other: CustomerTable, what: str) -> None:
    """Put what fold() calls ``what``, or a dimension's labels, of another table into this one."""
    columns = {
        "purchases": ("orders", "gross", "first_purchase_at", "last_purchase_at"),
        "refunds": ("refunds", "refunded"),
        "signups": ("signed_up_at",),
        "surveys": ("surveys", "score"),
        "": ("sequence", "changed_at", "deadline", "soonest", "value_at", "number_at"),
    }
    if what in columns:
        theirs = columns_of(other, *columns[what])
        for name, column in columns_of(table, *columns[what]).items():
            column[:] = theirs[name][:]
    if what == "":
        table.seen = other.seen
    if what == "purchases":
        for name, weights in other.tally.items():
            table.tally[name][:] = weights
    if what in table.attributes:
        table.value[table.attributes.index(what)] = other.value[table.attributes.index(what)]
    if what in table.numbers:
        table.number[table.numbers.index(what)] = other.number[table.numbers.index(what)]
    if what in table.dimensions:
        table.label[:, table.dimensions.index(what)] = other.label[:, table.dimensions.index(what)]


@every
def test_reads_is_all_that_matters(dimension: Dimension) -> None:
    """Whatever else ``reads`` does not name may change without moving a label or deadline; all it names moves some."""
    table, other, at = random_table(7), random_table(8), instants(7, 300)
    rows = table.rows
    label, deadline = dimension.label(table, rows, at), dimension.deadline(table, rows, at)
    names = ["purchases", "refunds", "signups", "surveys", *table.attributes, *table.numbers, *table.dimensions]
    assert dimension.reads <= set(names)
    unread = random_table(7)
    for what in ["", *sorted(set(names) - dimension.reads - {dimension.name})]:
        replace(unread, other, what)
    assert dimension.label(unread, rows, at).tolist() == label.tolist()
    assert dimension.deadline(unread, rows, at).tolist() == deadline.tolist()
    for what in dimension.reads:
        read = random_table(7)
        replace(read, other, what)
        assert dimension.label(read, rows, at).tolist() != label.tolist(), what


@every
def test_every_label_has_a_reason(dimension: Dimension) -> None:
    """A reason is a short line of plain text, for customers with and without a segment."""
    table, at = random_table(9), instants(9, 300)
    for row in table.rows.tolist():
        reason = dimension.reason(table, row, int(at[row]))
        assert 0 < len(reason) <= 200
        assert reason.isprintable()
        assert "nan" not in reason
        assert "None" not in reason


def test_a_lifecycle_has_reasons() -> None:
    """Orders and the last of them, else the signup."""
    customers = [
        {"orders": 3, "last_purchase_at": START},
        {"orders": 1, "last_purchase_at": START + 13 * DAY},
        {"signed_up_at": START + DAY},
        {"refunds": 2},
    ]
    table = table_of(POLICY, *customers)
    reasons = [DIMENSIONS["lifecycle"].reason(table, row, START + 12 * DAY + 5) for row in range(4)]
    assert reasons == [
        "3 orders, last purchase 12 days before",
        "1 order, last purchase 0 days before",
        "no purchase, signed up 11 days before",
        "neither signup nor purchase",
    ]


@pytest.mark.parametrize("name", ["region", "sport", "category", "hobbies", "mood"])
def test_tables_have_dictionaries_of_their_own(name: str) -> None:
    """One dimension serves tables whose dictionaries have other codes for the same texts, and grow between calls."""
    dimension, tally, hobbies = DIMENSIONS[name], POLICY.tallies[0].name, POLICY.tallies[1].name

    def customer(country: str, hobby: str, category: str) -> dict[str, Any]:
        texts = {"country": country, "hobby": hobby}
        return {"texts": texts, "weights": {tally: {category: 1}, hobbies: {hobby: 1}}, "numbers": {"birth_year": 2000}}

    customers = [customer("DE", "rugby", "milk"), customer("US", "running", "lego"), customer("JP", "chess", "nails")]
    first, second = table_of(POLICY, *customers), table_of(POLICY, *reversed(customers))
    expected = labels_of(dimension, first, START)
    assert len(set(expected)) > 1
    assert labels_of(dimension, second, START) == expected[::-1]
    assert labels_of(dimension, first, START) == expected
    grown = table_of(POLICY)
    for i, each in enumerate(customers):
        add(grown, each)
        assert labels_of(dimension, grown, START) == expected[: i + 1]
