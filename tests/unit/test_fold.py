"""Folding a round into the table: totals, surveys, attributes, tallies, and what it says has changed."""

import math
from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.batch import EventBatch, rounds
from models.events import ROLE_OF_KIND, ROLES
from models.fold import LANDMARK, MOST_DOUBLINGS, Folded, codes_of, fold
from models.instants import DAY, FOREVER, NEVER
from models.money import LARGEST_TOTAL
from models.policy import Policy
from models.records import Reader, read
from models.table import MOST_TALLIED, NO_VALUE, OTHER, CustomerTable
from tests.support.tables import columns_of, ids_of
from tests.unit.build import Event, at, erasure, make_policy, profile, purchase, record, refund, signup, survey, tick

DOMINANT = """
[dimensions.taste]
engine = "dominant"
of = "category"
groups = { home = ["home"] }
[dimensions.way]
engine = "dominant"
of = "channel"
by = "revenue"
half_life = "30d"
groups = { online = ["online"] }
"""
#: As a Kafka timestamp: no event is ahead of it.
YEAR_10000 = 253_402_300_800_000
BY_ORDERS, BY_REVENUE = "category/orders/forever", "channel/revenue/2592000s"
POLICY = make_policy(keep=["country", "family"], numbers=["income"], more=DOMINANT)


def batch_of(events: Sequence[Event], policy: Policy = POLICY) -> EventBatch:
    """The events of all topics as one batch, in the order given."""
    reader = Reader(policy, 0, 1, FOREVER)
    batches = []
    for role in ROLES:
        records = [record(each, i, YEAR_10000) for i, each in enumerate(events) if ROLE_OF_KIND[each["kind"]] == role]
        batch, refusals = read(role, records, reader)
        assert refusals == []
        batches.append(batch)
    together = EventBatch.concat(batches)
    return together.take(np.argsort(together.offset))


def fold_all(table: CustomerTable, *events: Event) -> list[Folded]:
    """Fold one batch, round by round."""
    batch = batch_of(events, table.policy)
    codes = codes_of(table, batch)
    rows = table.place(batch.customer)
    return [fold(table, batch, part, rows[part], codes) for part in rounds(rows)]


def folded(*events: Event, policy: Policy = POLICY) -> CustomerTable:
    """A table that has had the events in one batch."""
    table = CustomerTable(policy)
    fold_all(table, *events)
    return table


def changed(table: CustomerTable, *events: Event) -> set[str]:
    """What one round of the events changed."""
    (only,) = fold_all(table, *events)
    return set(only.changed)


def texts(table: CustomerTable, customer: str) -> dict[str, str | None]:
    """A customer's kept texts."""
    row = table.index[customer]
    return {name: table.values[name].text(table.value[i][row]) for i, name in enumerate(table.attributes)}


def tally(table: CustomerTable, name: str, customer: str) -> dict[str, float]:
    """A customer's weight of each text of a tally."""
    weights = table.tally[name][table.index[customer]].tolist()
    return {text: weight for text, weight in zip(table.values[name].texts, weights, strict=False) if weight}


def test_each_kind_adds_what_it_says() -> None:
    """Purchases, refunds, signups and surveys have totals of their own, and none touches another's."""
    table = folded(
        signup("a", "1", at(0)), purchase("a", "2", at(3), "10"), purchase("a", "3", at(1), "5"),
        refund("a", "4", at(9), "2.50"), survey("a", "5", at(9), 4), survey("a", "6", at(9), "4.25"),
    )  # fmt: skip
    columns = ("signed_up_at", "first_purchase_at", "last_purchase_at", "orders", "gross", "refunds", "refunded",
               "surveys", "score")  # fmt: skip
    assert [int(getattr(table, name)[0]) for name in columns] == [at(0), at(1), at(3), 2, 1500, 1, 250, 2, 825]
    assert len(ids_of(table, 0)) == 6


def test_a_survey_says_nothing_else() -> None:
    """A customer known by a survey alone has neither purchases nor a signup."""
    table = folded(survey("a", "1", at(0), 100, country="DE"))
    assert (table.orders[0], table.signed_up_at[0], table.surveys[0], table.score[0]) == (0, FOREVER, 1, 10_000)
    assert texts(table, "a") == {"country": None, "family": None}
    assert not table.is_blank(np.array([0])).any()


def test_a_profile_changes_attributes_only() -> None:
    """It is no signup, but it is remembered like any event."""
    table = folded(profile("a", "1", at(0), country="DE", attributes={"family": "single", "income": 42_000}))
    assert (table.orders[0], table.signed_up_at[0], len(ids_of(table, 0))) == (0, FOREVER, 1)
    assert texts(table, "a") == {"country": "DE", "family": "single"}
    assert [column[0] for column in table.number] == [42_000]
    again = profile("a", "1", at(5), country="FR", attributes={"income": 1})
    (only,) = fold_all(table, again)
    assert (only.counted.tolist(), only.changed) == ([False], frozenset())
    assert (texts(table, "a")["country"], table.number[0][0]) == ("DE", 42_000)


def test_a_duplicate_changes_nothing() -> None:
    """Whatever its kind, an event whose id is remembered adds nothing."""
    events = [
        signup("a", "1", at(0), attributes={"income": 5}), survey("b", "2", at(0)), refund("c", "3", at(0)),
        purchase("d", "4", at(0), category="home", channel="online"),
    ]  # fmt: skip
    table = folded(*events)
    counted = columns_of(table, "orders", "refunds", "surveys", "score", "number")
    before = {name: column[table.rows] for name, column in counted.items()}
    (only,) = fold_all(table, *events)
    assert not only.counted.any()
    assert not only.overflowed.any()
    assert only.changed == frozenset()
    for name, column in counted.items():
        np.testing.assert_array_equal(column[table.rows], before[name])
    assert tally(table, BY_ORDERS, "d") == {"home": 1}


def test_changed_names_the_kinds_that_were_counted() -> None:
    """Each kind is named once it was counted of any row; a profile has no name of its own."""
    table = CustomerTable(POLICY)
    assert changed(table, purchase("a", "1", at(0)), purchase("b", "2", at(0))) == {"purchases"}
    assert changed(table, refund("a", "3", at(0))) == {"refunds"}
    assert changed(table, signup("a", "4", at(0)), survey("b", "5", at(0))) == {"signups", "surveys"}
    assert changed(table, profile("a", "6", at(0))) == set()


def test_changed_names_attributes_with_another_value() -> None:
    """A value that is confirmed, or that is older than the one known, is no change."""
    table = CustomerTable(POLICY)
    assert changed(table, profile("a", "1", at(1), country="DE", attributes={"income": 5})) == {"country", "income"}
    assert changed(table, profile("a", "2", at(2), country="DE", attributes={"income": 5})) == set()
    assert changed(table, profile("a", "3", at(0), country="FR", attributes={"income": 9})) == set()
    assert changed(table, profile("a", "4", at(3), attributes={"family": "single"})) == {"family"}
    assert changed(table, purchase("a", "5", at(3), country="FR")) == {"purchases", "country"}
    assert changed(table, profile("a", "6", at(1), country="DE"), profile("b", "7", at(1), country="DE")) == {"country"}


def test_confirming_a_value_makes_it_newer() -> None:
    """A value that was said again holds against one said in between."""
    table = folded(*(profile("a", e, at(day), country=c, attributes={"income": n})
                     for e, day, c, n in (("1", 0, "DE", 5), ("2", 9, "DE", 5), ("3", 4, "FR", 7))))  # fmt: skip
    assert (texts(table, "a")["country"], table.number[0][0]) == ("DE", 5)
    assert (table.value_at[0][0], table.number_at[0][0]) == (at(9), at(9))


def test_of_equal_instants_the_greater_wins() -> None:
    """Texts are compared as texts and numbers as numbers, however they were met."""
    values = [("b", 9), ("aa", 100), ("c", -3)]
    for order in permutations(values):
        table = folded(*(
            profile("a", f"{i}", at(0), country=text, attributes={"income": number})
            for i, (text, number) in enumerate(order)
        ))  # fmt: skip
        assert (texts(table, "a")["country"], table.number[0][0]) == ("c", 100)


def test_what_was_never_said_stays_absent() -> None:
    """Without a value an attribute is NO_VALUE or NaN, at no instant."""
    table = folded(purchase("a", "1", at(0)))
    assert [column[0] for column in table.value] == [NO_VALUE, NO_VALUE]
    assert math.isnan(table.number[0][0])
    assert (table.value_at[0][0], table.number_at[0][0]) == (NEVER, NEVER)


def test_a_total_too_large_is_refused_whole() -> None:
    """The event that would overflow adds nothing, not even its attributes and its id."""
    table = folded(purchase("a", "1", at(0)), refund("b", "2", at(0)))
    table.gross[0] = table.refunded[1] = LARGEST_TOTAL - 99
    (only,) = fold_all(
        table, purchase("a", "3", at(1), "1", country="DE", category="home"), refund("b", "4", at(1), "0.99"),
        signup("c", "5", at(1)),
    )  # fmt: skip
    assert only.overflowed.tolist() == [True, False, False]
    assert only.counted.tolist() == [False, True, True]
    assert only.changed == {"refunds", "signups"}
    assert (table.orders[0], texts(table, "a")["country"], tally(table, BY_ORDERS, "a")) == (1, None, {})
    assert table.refunded[1] == LARGEST_TOTAL


def test_orders_are_tallied_by_text() -> None:
    """Each purchase counts one for its text; without one it counts nowhere, and so does what is no purchase."""
    table = folded(
        purchase("a", "1", at(0), category="home"), purchase("a", "2", at(1), category="home"),
        purchase("a", "3", at(1), category="food"), purchase("a", "4", at(2)),
        refund("a", "5", at(3), category="home"), purchase("b", "6", at(3), category="food"),
    )  # fmt: skip
    assert tally(table, BY_ORDERS, "a") == {"home": 2, "food": 1}
    assert tally(table, BY_ORDERS, "b") == {"food": 1}
    assert tally(table, BY_REVENUE, "a") == {}


@pytest.mark.parametrize(
    ("days", "power"), [(0, 0), (30 - 1e-6, 0), (30, 1), (-1e-6, -1), (-30, -1), (-31, -2), (300, 10), (315, 10)]
)
def test_revenue_doubles_with_every_half_life(days: float, power: int) -> None:
    """Minor units times two to the number of whole half-lives since the landmark."""
    table = folded(purchase("a", "1", LANDMARK + round(days * DAY), "3.00", channel="online"))
    assert tally(table, BY_REVENUE, "a") == {"online": 300 * 2.0**power}


def test_the_landmark_is_the_start_of_2020() -> None:
    """An instant of its own, not the first event's, so that all tables agree."""
    assert purchase("a", "1", LANDMARK)["occurred_at"] == "2020-01-01T00:00:00Z"


def test_weights_stay_in_range() -> None:
    """Centuries from the landmark every instant weighs the same, and no total is infinite."""
    table = CustomerTable(POLICY)
    for number, year in enumerate((1, 1900, 2100, 9999)):
        event = {**purchase("a", f"e{number}", at(0), "9999999999999.99", channel="online"),
                 "occurred_at": f"{year:04}-06-01T00:00:00Z"}  # fmt: skip
        fold_all(table, event, {**event, "customer_id": f"y{year}"})
    assert tally(table, BY_REVENUE, "y1900") == {"online": 999_999_999_999_999 * 2.0**-MOST_DOUBLINGS}
    assert tally(table, BY_REVENUE, "y9999") == {"online": 999_999_999_999_999 * 2.0**MOST_DOUBLINGS}
    assert math.isfinite(LARGEST_TOTAL * 2.0**MOST_DOUBLINGS * 100)
    assert math.isfinite(tally(table, BY_REVENUE, "a")["online"])


def test_a_tally_grows_with_its_texts() -> None:
    """New texts get columns, up to a limit; what is beyond it counts together as "(other)"."""
    table = CustomerTable(POLICY)
    fold_all(table, *(purchase("a", f"e{i}", at(i), category=f"c{i:03}") for i in range(MOST_TALLIED + 6)))
    counted = tally(table, BY_ORDERS, "a")
    assert sum(counted.values()) == MOST_TALLIED + 6
    assert counted.pop(OTHER) == 6
    assert counted == {f"c{i:03}": 1 for i in range(MOST_TALLIED)}


def test_codes_are_those_of_the_dictionaries() -> None:
    """Every event has a code of each kept text; a tally's are of purchases only, and it keeps no other texts."""
    table = CustomerTable(POLICY)
    batch = batch_of([
        signup("a", "1", at(0), country="DE", channel="web"), purchase("b", "2", at(0), country="FR", channel="online"),
        tick(at(0)), refund("c", "3", at(0), country="DE", channel="store"), erasure("d", "4", at(0)),
        purchase("e", "5", at(0), country="DE", category="home"),
    ])  # fmt: skip
    codes = codes_of(table, batch)
    assert {name: column.tolist() for name, column in codes.items()} == {
        "country": [0, 1, -1, 0, -1, 0],
        "family": [-1] * 6,
        BY_ORDERS: [-1, -1, -1, -1, -1, 0],
        BY_REVENUE: [-1, 0, -1, -1, -1, -1],
    }
    assert {column.dtype for column in codes.values()} == {np.dtype(np.int32)}
    assert {name: values.texts for name, values in table.values.items()} == {
        "country": ["DE", "FR"], "family": [], BY_ORDERS: ["home"], BY_REVENUE: ["online"],
    }  # fmt: skip


def test_a_full_dictionary_takes_the_first() -> None:
    """What is kept of too many texts depends on the order of the events, on nothing else."""
    policy = make_policy(keep=["country"], max_values=2)
    table = folded(*(profile(c, c, at(0), country=c) for c in ("zz", "mm", "aa", "zz2")), policy=policy)
    assert table.values["country"].texts == ["zz", "mm", OTHER]
    assert [texts(table, c)["country"] for c in ("zz", "mm", "aa", "zz2")] == ["zz", "mm", OTHER, OTHER]


def test_a_policy_without_attributes_or_tallies() -> None:
    """Nothing is kept, and nothing is reported, but the totals."""
    table = CustomerTable(make_policy(keep=[]))
    assert codes_of(table, batch_of([purchase("a", "1", at(0), country="DE")], table.policy)) == {}
    assert changed(table, purchase("a", "1", at(0), country="DE")) == {"purchases"}


def test_an_empty_round() -> None:
    """A round of nothing, or of an empty batch, changes nothing."""
    table = CustomerTable(POLICY)
    batch = batch_of([])
    nothing = np.empty(0, dtype=np.int64)
    only = fold(table, batch, nothing, nothing, codes_of(table, batch))
    assert (len(only.counted), len(only.overflowed), only.changed) == (0, 0, frozenset())


_SHARED = {
    "day": st.sampled_from([-900, 0, 0, 1, 31, 62]),
    "country": st.sampled_from([None, "a", "b", "c"]),
    "income": st.sampled_from([None, -0.0, 0, 1, "1.5"]),
}
_EVENTS = st.lists(
    st.fixed_dictionaries(
        {
            **_SHARED,
            "kind": st.sampled_from(["purchase", "purchase", "refund", "signup", "profile", "survey"]),
            "customer": st.sampled_from("xy"),
            "channel": st.sampled_from([None, "online", "store"]),
            # With 34 doublings between the days, sums of up to 16 of these fit the 53 bits of a double.
            "amount": st.integers(0, 2**15),
            "repeats": st.integers(1, 2),
        }
    ),
    max_size=8,
)
_BUILDERS = {"purchase": purchase, "refund": refund, "signup": signup, "profile": profile, "survey": survey}


def measures(table: CustomerTable, customer: str) -> object:
    """All that is known about a customer, without codes."""
    if customer not in table.index:
        return None
    row = table.index[customer]
    columns = ("signed_up_at", "first_purchase_at", "last_purchase_at", "orders", "refunds", "gross", "refunded",
               "surveys", "score", "value_at", "number_at", "number")  # fmt: skip
    known = {name: column[row].tobytes() for name, column in columns_of(table, *columns).items()}
    tallies = {name: tally(table, name, customer) for name in table.tally}
    return known, texts(table, customer), tallies, sorted(ids_of(table, row))


@given(_EVENTS, st.randoms(use_true_random=False), st.integers(1, 5))
def test_order_does_not_matter(drawn: list[dict[str, object]], random: object, size: int) -> None:
    """Any permutation of the events, in batches of any size, with repetitions, ends in the same measures."""
    events = []
    for number, each in enumerate(drawn):
        more: dict[str, object] = {"country": each["country"], "attributes": {"income": each["income"]}}
        if each["kind"] in ("purchase", "refund"):
            cents = int(each["amount"])  # type: ignore[call-overload]
            more |= {"amount": f"{cents // 100}.{cents % 100:02}", "channel": each["channel"], "category": "home"}
        event = _BUILDERS[str(each["kind"])](str(each["customer"]), f"e{number}", at(each["day"]), **more)  # type: ignore[operator,arg-type]
        events += [event] * int(each["repeats"])  # type: ignore[call-overload]
    one, other = CustomerTable(POLICY), CustomerTable(POLICY)
    fold_all(one, *events)
    random.shuffle(events)  # type: ignore[attr-defined]
    for first in range(0, len(events), size):
        fold_all(other, *events[first : first + size])
    for customer in "xy":
        assert measures(one, customer) == measures(other, customer)
