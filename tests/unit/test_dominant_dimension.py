"""The dominant engine: the group with the most orders or revenue, when it is far enough ahead."""

from typing import Any

import pytest

from models.dimensions import dimensions_of
from models.instants import FOREVER
from models.policy import Policy, parse_policy
from models.table import OTHER
from tests.unit.test_engines import deadlines_of, labels_of, table_of


def policy_of(more: str = "", by: str = "orders") -> Policy:
    return parse_policy(
        f'[dimensions.taste]\nengine = "dominant"\nof = "category"\nby = "{by}"\n{more}\n'
        'groups = {food = ["bread", "milk"], toys = ["lego"], books = ["book"]}'
    )


def label_of(policy: Policy, weights: dict[str, Any]) -> str | None:
    """One customer's segment, beside one without any purchase."""
    table = table_of(policy, {"weights": {policy.tallies[0].name: weights}}, {})
    label, nothing = labels_of(dimensions_of(policy)[0], table, 0)
    assert nothing is None
    assert deadlines_of(dimensions_of(policy)[0], table, 0) == [FOREVER, FOREVER]
    return label


@pytest.mark.parametrize(
    ("more", "weights", "label"),
    [
        ("", {"bread": 1}, "food"),
        ("", {"bread": 1, "MILK": 1, "lego": 1}, "food"),
        ("", {"bread": 1, "lego": 1}, "mixed"),
        ("", {"bread": 2, "lego": 2, "book": 1}, "mixed"),
        ("", {"bread": 2, "lego": 3, "book": 1}, "toys"),
        ("", {"nails": 9, "book": 1}, "books"),
        ("", {"nails": 9}, None),
        ("", {"lego": 0}, None),
        ('other = "rest"', {"nails": 9, "book": 1, OTHER: 2}, "rest"),
        ('other = "rest"', {"nails": 1, OTHER: 1, "book": 2}, "mixed"),
        ('other = "toys"', {"nails": 2, "lego": 1, "book": 2}, "toys"),
        ('mixed = "food"', {"lego": 1, "book": 1}, "food"),
        ("margin = 20", {"bread": 3, "lego": 2}, "food"),
        ("margin = 20.000001", {"bread": 3, "lego": 2}, "mixed"),
        ("margin = 33.333333", {"bread": 2, "lego": 1}, "food"),
        ("margin = 33.333334", {"bread": 2, "lego": 1}, "mixed"),
        ("margin = 7", {"bread": 107, "lego": 93}, "food"),
        ("margin = 20", {"bread": 3, "lego": 2, "nails": 99}, "food"),
        ('margin = 20\nother = "rest"', {"bread": 3, "lego": 2, "nails": 1}, "mixed"),
        ("margin = 100", {"bread": 3, "lego": 0}, "food"),
        ("margin = 100", {"bread": 1e15, "lego": 1}, "mixed"),
        ('half_life = "30d"', {"bread": 2.0**900, "lego": 2.0**899}, "food"),
        ('half_life = "30d"', {"bread": 2.0**-1000, "lego": 2.0**-999}, "toys"),
        ('half_life = "30d"\nmargin = 50', {"bread": 2.0**-1000, "lego": 2.0**-999}, "mixed"),
    ],
)
def test_the_leader_must_be_ahead(more: str, weights: dict[str, Any], label: str | None) -> None:
    """The leading group by the margin of the whole, else mixed; what is in no group counts nowhere."""
    assert label_of(policy_of(more), weights) == label


def test_a_dictionary_without_any_group() -> None:
    """Where no text is in a group, nobody has a segment."""
    assert label_of(policy_of(), {"nails": 1, "screws": 2}) is None
    policy = policy_of()
    assert labels_of(dimensions_of(policy)[0], table_of(policy, {}), 0) == [None]


def test_labels_are_the_groups_other_and_mixed() -> None:
    """``other`` and ``mixed`` are one segment each, unless they are one of the groups."""
    assert dimensions_of(policy_of('other = "rest"'))[0].labels == ("food", "toys", "books", "rest", "mixed")
    assert dimensions_of(policy_of('other = "rest"\nmixed = "rest"'))[0].labels == ("food", "toys", "books", "rest")


@pytest.mark.parametrize(
    ("more", "by", "weights", "reason"),
    [
        ("", "orders", {"bread": 1, "milk": 1, "lego": 1}, "2 of 3 orders are food, 1 of 3 orders are toys"),
        ("", "orders", {"bread": 3, "nails": 1}, "3 of 3 orders are food"),
        ("", "revenue", {"bread": 200, "lego": 100}, "67 % of revenue is food, 33 % of revenue is toys"),
        ('half_life = "90d"', "orders", {"bread": 0.75, "lego": 0.25},
         "75 % of recent orders is food, 25 % of recent orders is toys"),
        ("", "orders", {"nails": 1}, "no category of purchases counts"),
        ("", "orders", {}, "no category of purchases counts"),
    ],
)  # fmt: skip
def test_reasons(more: str, by: str, weights: dict[str, Any], reason: str) -> None:
    """How much the two leading groups have of what counts."""
    policy = policy_of(more, by)
    table = table_of(policy, {"weights": {policy.tallies[0].name: weights}})
    assert dimensions_of(policy)[0].reason(table, 0, 0) == reason


def test_dimensions_count_apart() -> None:
    """Two dimensions of one text by orders and by revenue each read their own tally."""
    groups = 'groups = {food = ["bread"], toys = ["lego"]}'
    engine = f'engine = "dominant"\nof = "category"\n{groups}'
    policy = parse_policy("\n".join(f'[dimensions.{by}]\nby = "{by}"\n{engine}' for by in ("orders", "revenue")))
    weights = {
        "category/orders/forever": {"bread": 2, "lego": 1},
        "category/revenue/forever": {"lego": 900, "bread": 5},
    }
    table = table_of(policy, {"weights": weights})
    assert [labels_of(dimension, table, 0) for dimension in dimensions_of(policy)] == [["food"], ["toys"]]
