"""The attribute engine: groups of an attribute's texts, other texts, and none."""

import numpy as np
import pytest

from models.dimensions import dimensions_of
from models.instants import FOREVER
from models.policy import parse_policy
from models.table import OTHER
from tests.unit.test_engines import labels_of, table_of

TEXT = """
[attributes]
keep = ["hobby", "country"]
max_values = 3
[dimensions.region]
engine = "attribute"
of = "country"
groups = {europe = ["DE", "Türkei"], asia = ["JP"]}
"""
STRICT = parse_policy(TEXT)
OPEN = parse_policy(TEXT + 'other = "elsewhere"')
INTO_GROUP = parse_policy(TEXT + 'other = "asia"')


@pytest.mark.parametrize(
    ("text", "strict", "open_", "into_group"),
    [
        ("DE", "europe", "europe", "europe"),
        ("de", "europe", "europe", "europe"),
        ("TÜRKEI", "europe", "europe", "europe"),
        ("JP", "asia", "asia", "asia"),
        ("FR", None, "elsewhere", "asia"),
        (OTHER, None, "elsewhere", "asia"),
        ("", None, "elsewhere", "asia"),
    ],
)
def test_texts_have_groups(text: str, strict: str | None, open_: str, into_group: str) -> None:
    """A text belongs to its group whatever its case; one of no group is ``other``, or nothing without that."""
    for policy, expected in ((STRICT, strict), (OPEN, open_), (INTO_GROUP, into_group)):
        (dimension,) = dimensions_of(policy)
        table = table_of(policy, {"texts": {"country": text}}, {"texts": {"hobby": "DE"}})
        assert labels_of(dimension, table, 0) == [expected, None]


def test_labels_are_the_groups_and_other() -> None:
    """``other`` is one segment more unless it is one of the groups."""
    assert [dimensions_of(policy)[0].labels for policy in (STRICT, OPEN, INTO_GROUP)] == [
        ("europe", "asia"),
        ("europe", "asia", "elsewhere"),
        ("europe", "asia"),
    ]


def test_time_moves_nobody() -> None:
    """There is no deadline; only the attribute is read."""
    (dimension,) = dimensions_of(OPEN)
    table = table_of(OPEN, {"texts": {"country": "DE"}}, {})
    assert dimension.deadline(table, table.rows, np.array([0, 1])).tolist() == [FOREVER, FOREVER]
    assert dimension.reads == {"country"}


def test_the_reason_is_the_value() -> None:
    """The value is named as it is known."""
    (dimension,) = dimensions_of(OPEN)
    table = table_of(OPEN, {"texts": {"country": "de"}}, {})
    assert [dimension.reason(table, row, 0) for row in (0, 1)] == ["country de", "no country"]
