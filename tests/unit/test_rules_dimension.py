"""The rules engine: conditions in order, and the instants at which time decides them otherwise."""

from typing import Any

import pytest

from models.dimensions import dimensions_of
from models.instants import DAY, FOREVER, parse
from models.policy import Policy, parse_policy
from tests.unit.test_engines import add, deadlines_of, labels_of, table_of

START = parse("2024-01-01T00:00:00Z")
HEAD = """
[attributes]
keep = ["hobby"]
numbers = ["birth_year", "income"]
[dimensions.lifecycle]
engine = "lifecycle"
[dimensions.mood]
engine = "rules"
"""


def policy_of(*rules: str, otherwise: str = "") -> Policy:
    """Rules as ``segment: conditions``."""
    lines = [HEAD, f'otherwise = "{otherwise}"' if otherwise else ""]
    for rule in rules:
        segment, _, when = rule.partition(": ")
        lines += ["[[dimensions.mood.rules]]", f'segment = "{segment}"', f"when = [{when}]"]
    return parse_policy("\n".join(lines))


def moods(policy: Policy, at: int, *customers: dict[str, Any]) -> list[str | None]:
    return labels_of(dimensions_of(policy)[-1], table_of(policy, *customers), at)


def test_the_first_rule_that_holds_wins() -> None:
    """Rules overlap as they may; their order decides, one segment may have several, and otherwise is the last."""
    rules = (
        'rich: {measure = "income", from = 100}',
        'poor: {measure = "income", below = 10}',
        'sporty: {attribute = "hobby", is = ["running"]}',
        'rich: {measure = "income", from = 50}, {attribute = "hobby", is = ["golf"]}',
    )
    customers = [
        {"numbers": {"income": income}, "texts": {"hobby": hobby}}
        for income, hobby in [(100, "running"), (60, "running"), (60, "golf"), (49, "golf"), (9, "golf")]
    ]
    assert moods(policy_of(*rules), START, *customers) == ["rich", "sporty", "rich", None, "poor"]
    found = moods(policy_of(*rules, otherwise="plain"), START, *customers, {})
    assert found == ["rich", "sporty", "rich", "plain", "poor", "plain"]
    assert dimensions_of(policy_of(*rules, otherwise="poor"))[-1].labels == ("rich", "poor", "sporty")


@pytest.mark.parametrize(
    ("condition", "customer", "holds"),
    [
        ('{measure = "income", from = 10, below = 20}', {"numbers": {"income": 10}}, True),
        ('{measure = "income", from = 10, below = 20}', {"numbers": {"income": 20}}, False),
        ('{measure = "income", from = 10, below = 20}', {"numbers": {"income": 9.9}}, False),
        ('{measure = "income", below = 20}', {"numbers": {"income": -1e300}}, True),
        ('{measure = "income", below = 20}', {}, False),
        ('{measure = "income", from = -5}', {}, False),
        ('{measure = "recency_days", below = 20}', {}, False),
        ('{measure = "recency_days", below = 20}', {"orders": 1, "last_purchase_at": START}, True),
        ('{measure = "orders", below = 1}', {}, True),
        ('{measure = "age", below = 40}', {"numbers": {"birth_year": 1984}}, False),
        ('{measure = "age", below = 40}', {}, False),
        ('{measure = "orders_per_month", below = 40}', {}, False),
        ('{measure = "average_order", from = 10, below = 20.5}', {"orders": 2, "gross": 4099}, True),
        ('{measure = "average_order", from = 10, below = 20.5}', {"orders": 2, "gross": 4100}, False),
        ('{attribute = "hobby", is = ["Golf", "polo"]}', {"texts": {"hobby": "golf"}}, True),
        ('{attribute = "hobby", is = ["Golf", "polo"]}', {"texts": {"hobby": "chess"}}, False),
        ('{attribute = "hobby", is = ["Golf", "polo"]}', {}, False),
        ('{attribute = "hobby", not = ["Golf", "polo"]}', {"texts": {"hobby": "GOLF"}}, False),
        ('{attribute = "hobby", not = ["Golf", "polo"]}', {"texts": {"hobby": "chess"}}, True),
        ('{attribute = "hobby", not = ["Golf", "polo"]}', {}, False),
        ('{dimension = "lifecycle", is = ["new", "lapsed"]}', {"segments": {"lifecycle": "lapsed"}}, True),
        ('{dimension = "lifecycle", is = ["new", "lapsed"]}', {"segments": {"lifecycle": "regular"}}, False),
        ('{dimension = "lifecycle", is = ["new", "lapsed"]}', {"segments": {"lifecycle": "retired"}}, False),
        ('{dimension = "lifecycle", is = ["new", "lapsed"]}', {}, False),
        ('{dimension = "lifecycle", not = ["new"]}', {"segments": {"lifecycle": "regular"}}, True),
        ('{dimension = "lifecycle", not = ["new"]}', {"segments": {"lifecycle": "retired"}}, True),
        ('{dimension = "lifecycle", not = ["new"]}', {"segments": {"lifecycle": "new"}}, False),
        ('{dimension = "lifecycle", not = ["new"]}', {}, False),
    ],
)
def test_conditions(condition: str, customer: dict[str, Any], holds: bool) -> None:
    """A measure lies in [from, below), a text or segment is or is not one of some; what is absent meets nothing."""
    assert moods(policy_of(f"yes: {condition}"), START, customer) == ["yes" if holds else None]


def test_several_retired_segments_are_none_of_the_policys() -> None:
    """Codes beyond the policy's own are no segment that a rule can name, however many there are."""
    policy = policy_of(
        'yes: {dimension = "lifecycle", not = ["lapsed"]}', 'no: {dimension = "lifecycle", is = ["lapsed"]}'
    )
    customers = [{"segments": {"lifecycle": name}} for name in ("gone", "older", "oldest", "lapsed")]
    assert moods(policy, START, *customers) == ["yes", "yes", "yes", "no"]


@pytest.mark.parametrize("many", [127, 128, 129, 400])
def test_any_number_of_segments_can_be_asked_for(many: int) -> None:
    """Codes are kept in as few bytes as they fit: the last of the policy's, retired ones and none are told apart."""
    groups = ", ".join(f's{i} = ["t{i}"]' for i in range(many))
    last = f"s{many - 1}"
    policy = parse_policy(f"""
[attributes]
keep = ["hobby"]
[dimensions.sort]
engine = "attribute"
of = "hobby"
groups = {{ {groups} }}
[dimensions.mood]
engine = "rules"
[[dimensions.mood.rules]]
segment = "yes"
when = [{{dimension = "sort", is = ["{last}"]}}]
[[dimensions.mood.rules]]
segment = "no"
when = [{{dimension = "sort", not = ["{last}"]}}]
""")
    known = [{"segments": {"sort": name}} for name in (last, "s0")]
    assert moods(policy, START, *known, {}) == ["yes", "no", None]
    customers = [*known, {"segments": {"sort": "gone"}}, {"segments": {"sort": "older"}}]
    assert moods(policy, START, *customers, {}) == ["yes", "no", "no", "no", None]
    table = table_of(policy, *customers)
    assert [table.labels[0][code] for code in table.label[:4, 0]] == [last, "s0", "gone", "older"]


def test_time_decides_at_each_bound() -> None:
    """The deadline is the earliest turn of any measure of any rule."""
    policy = policy_of(
        'soon: {measure = "recency_days", from = 60, below = 90}, {dimension = "lifecycle", is = ["regular"]}',
        'young: {measure = "age", below = 30}',
    )
    dimension = dimensions_of(policy)[-1]
    customer = {
        "orders": 3,
        "last_purchase_at": START,
        "segments": {"lifecycle": "regular"},
        "numbers": {"birth_year": 1995},
    }
    table = table_of(policy, customer)
    new_year = parse("2025-01-01T00:00:00Z")
    for asked, label, deadline in [
        (START, "young", START + 60 * DAY - 1),
        (START + 60 * DAY, "soon", START + 90 * DAY - 1),
        (START + 90 * DAY, "young", new_year - 1),
        (new_year, None, FOREVER),
    ]:
        assert labels_of(dimension, table, asked) == [label]
        assert deadlines_of(dimension, table, asked) == [deadline]
        assert labels_of(dimension, table, min(deadline, new_year)) == [label]
    add(table, {})
    assert deadlines_of(dimension, table, START)[1] == FOREVER


def test_rules_without_measures_have_no_deadlines() -> None:
    """Another dimension's deadline is its own."""
    policy = policy_of('yes: {dimension = "lifecycle", is = ["new"]}, {measure = "orders", from = 1}')
    dimension = dimensions_of(policy)[-1]
    table = table_of(policy, {"orders": 1, "last_purchase_at": START, "segments": {"lifecycle": "new"}})
    assert deadlines_of(dimension, table, START) == [FOREVER]
    assert dimension.reads == {"purchases", "lifecycle"}


def test_reasons() -> None:
    """The number of the rule and what its conditions found."""
    policy = policy_of(
        'rich: {measure = "income", from = 1000}',
        'soon: {measure = "recency_days", from = 60, below = 90}, {dimension = "lifecycle", is = ["regular"]}',
        'sporty: {attribute = "hobby", not = ["golf"]}, {measure = "monetary", below = 12.5}',
    )
    customers = [
        {"numbers": {"income": 1500.5}},
        {"orders": 3, "last_purchase_at": START - 64 * DAY, "segments": {"lifecycle": "regular"}},
        {"texts": {"hobby": "chess"}, "gross": 1249},
        {},
    ]
    table, dimension = table_of(policy, *customers), dimensions_of(policy)[-1]
    assert [dimension.reason(table, row, START) for row in range(4)] == [
        "rule 1: income 1500.5 at least 1000",
        "rule 2: recency_days 64 in [60, 90), lifecycle regular",
        "rule 3: hobby chess, monetary 12.49 below 12.5",
        "no rule holds",
    ]
