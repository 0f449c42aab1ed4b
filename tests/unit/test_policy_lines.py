"""Where things stand in a policy's text: lines of keys, problems with line and key, and warnings."""

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.policy import default_policy_text, parse_policy
from models.policy_lines import key_lines, problems, warnings

DOCUMENT = '''# A comment with = and [brackets]
version = 1 # another
title = """many
lines with "quotes" and = [ { """"
raw = \'\'\'
[not.a.table]
key = 'no' \'\'\'
when = 1979-05-27 07:32:00
"quoted = key"."and \\u0041" = 1
a.b . c = [ # a comment ]
  1, [2,
  3], { d = "]", 'e f' = { g = 1.5e3 } },

]

[x.y] # a table
k = -0.5
[[x.list]]
n = 1
[x.list.sub]
m = 2
[[x.list]]
n = 3
[[x.list.deep]]
o = []
[[x.list.deep]]
[x]
late = true
'''


def paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every key and array element of a parsed document."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield (*path, key)
        yield from paths(each, (*path, key))


def test_every_key_has_its_line() -> None:
    """Whatever stands between: comments, texts and arrays over several lines, quoted and dotted keys, inline tables."""
    lines = key_lines(DOCUMENT)
    assert set(lines) == set(paths(tomllib.loads(DOCUMENT)))
    rows = DOCUMENT.splitlines()
    assert rows[lines["version",] - 1] == "version = 1 # another"
    assert (lines["title",], lines["raw",], lines["when",]) == (3, 5, 8)
    assert lines["quoted = key", "and A"] == 9
    assert [lines["a", "b", "c", i] for i in range(3)] == [11, 11, 12]
    assert (lines["a", "b", "c", 1, 1], lines["a", "b", "c", 2, "e f", "g"]) == (12, 12)
    assert (lines["x", "y"], lines["x", "y", "k"], lines["x",]) == (16, 17, 27)
    assert [lines["x", "list", i, "n"] for i in range(2)] == [19, 23]
    assert (lines["x", "list", 0, "sub", "m"], lines["x", "list", 1, "deep", 1]) == (21, 26)


def test_the_default_policy_is_read_to_its_end() -> None:
    """Every key of a long file is found."""
    text = default_policy_text()
    assert set(key_lines(text)) == set(paths(tomllib.loads(text)))
    assert problems(text) == []


_KEYS = st.text("ab_", min_size=1, max_size=3) | st.text('a."\\ =#', min_size=1, max_size=3)
_VALUES = st.recursive(
    st.text("ab\"'\\#[]{},=\n", max_size=6) | st.integers(-9, 9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=8,
)


def toml(value: Any, gap: str) -> str:
    """A value as TOML, with ``gap`` wherever an array may have one."""
    if isinstance(value, list):
        return f"[{gap}" + "".join(f"{toml(each, gap)}{gap},{gap}" for each in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{quoted(key)} = {toml(each, gap)}" for key, each in value.items()) + " }"
    return quoted(value) if isinstance(value, str) else str(value)


def quoted(text: str) -> str:
    """A text as a basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


@given(st.dictionaries(_KEYS, _VALUES, max_size=4), st.sampled_from([" ", "\n", " # ]\n", "\r\n"]))
def test_any_document(values: dict[str, Any], gap: str) -> None:
    """The scanner finds exactly the keys that tomllib finds, each not before the key that holds it."""
    text = "\n".join(f"{quoted(key)} = {toml(each, gap)}" for key, each in values.items())
    lines = key_lines(text)
    assert set(lines) == set(paths(tomllib.loads(text)))
    assert all(line >= lines.get(path[:-1], 1) for path, line in lines.items())
    assert max(lines.values(), default=1) <= text.count("\n") + 1


WRONG = """version = 0
speed = 1

[attributes]
keep = [
    "country",
    "event_id",
]

[dimensions.lifecycle]
engine = "lifecycle"
lapse_after = "x"

[dimensions.odd]
engine = "nope"

[dimensions.none]

[dimensions.spend]
engine = "bands"
of = "orders"
bands = { low = 2, high = 1 }

[dimensions.style]
engine = "rules"
[[dimensions.style.rules]]
segment = "sporty"
when = [
    { measure = "orders", from = 1 },
    { measure = "orders" },
]
"""


def test_every_problem_has_its_line_and_key() -> None:
    """In the order of lines, with the value where it is short; what is missing is told at its table."""
    assert [str(problem) for problem in problems(WRONG)] == [
        "1: version: must be greater than or equal to 1 (it is 0)",
        "2: speed: is not a setting of this policy; check the spelling",
        "5: attributes.keep: cannot keep event_id: every event has its own",
        '12: dimensions.lifecycle.lapse_after: must be a duration such as "30d": a whole number with s, m, h, d or w '
        "(it is 'x')",
        "15: dimensions.odd.engine: must be one of 'lifecycle', 'attribute', 'bands', 'dominant', 'pareto', 'rfm', "
        "'cluster', 'rules' (it is 'nope')",
        "17: dimensions.none.engine: is required",
        "22: dimensions.spend.bands: must have ascending lower bounds",
        "30: dimensions.style.rules.0.when.1: a measure needs from, below or both, and neither is nor not",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("version = \n", "1: the policy is not valid TOML: Invalid value (column 11)"),
        ("version = 1\n[a\n", '2: the policy is not valid TOML: Expected \']\' at the end of a table declaration '
         "(column 3)"),
        ("a = [1,\n2", "2: the policy is not valid TOML: Unclosed array (at the end)"),
        ("", "1: dimensions: is required"),
        ("version = 1\ndimensions = 3", "2: dimensions: must be a valid dictionary (it is 3)"),
        ('[dimensions]\n"A b".engine = "rfm"', "2: dimensions.A b: must match pattern '^[a-z][a-z0-9_]{0,47}$' "
         "(it is 'A b')"),
    ],
)  # fmt: skip
def test_one_problem(text: str, told: str) -> None:
    """A syntax error has its line too."""
    assert [str(problem) for problem in problems(text)] == [told]


RULES = """[dimensions.spend]
engine = "bands"
of = "{of}"
bands = {{ low = 0, high = 10 }}
[dimensions.style]
engine = "rules"
[[dimensions.style.rules]]
segment = "one"
when = [{{ measure = "orders", from = 1 }}]
[[dimensions.style.rules]]
segment = "two"
when = [
    {{ dimension = "spend", is = ["low"] }},
    {{ {condition} }},
]
"""


@pytest.mark.parametrize(
    ("of", "condition", "line", "key"),
    [
        ("orders", 'measure = "luck", from = 1', 14, "dimensions.style.rules.1.when.1.measure"),
        ("orders", 'attribute = "hobby", is = ["golf"]', 14, "dimensions.style.rules.1.when.1.attribute"),
        ("orders", 'dimension = "spend", is = ["most"]', 14, "dimensions.style.rules.1.when.1.is"),
        ("orders", 'dimension = "later", is = ["most"]', 14, "dimensions.style.rules.1.when.1.dimension"),
        ("luck", 'measure = "orders", from = 1', 3, "dimensions.spend.of"),
        ("age", 'measure = "orders", from = 1', 3, "dimensions.spend.of"),
    ],
)
def test_what_the_rest_of_the_policy_does_not_have(of: str, condition: str, line: int, key: str) -> None:
    """Is told at the key that names it."""
    (problem,) = problems(RULES.format(of=of, condition=condition))
    assert problem[:2] == (line, key)


def rules(*conditions: str) -> list[str]:
    """The warnings about rules of these conditions."""
    text = '[attributes]\nkeep = ["hobby"]\n[dimensions.life]\nengine = "lifecycle"\n'
    text += '[dimensions.style]\nengine = "rules"\n'
    for number, condition in enumerate(conditions):
        text += f'[[dimensions.style.rules]]\nsegment = "s{number}"\nwhen = [{condition}]\n'
    return [f"{problem.key}: {problem.sentence}" for problem in warnings(text, parse_policy(text))]


NEVER_REACHED = ["dimensions.style.rules.1: is never reached: rule 1 holds whenever rule 2 does"]


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ('{ measure = "orders", from = 2 }', '{ measure = "orders", from = 2 }'),
        ('{ measure = "orders", from = 2 }', '{ measure = "orders", from = 3, below = 9 }'),
        ('{ measure = "orders", below = 9 }', '{ measure = "orders", below = 8 }, { measure = "refunds", from = 1 }'),
        ('{ attribute = "hobby", is = ["golf", "gym"] }', '{ attribute = "hobby", is = ["GOLF"] }'),
        ('{ attribute = "hobby", not = ["golf"] }', '{ attribute = "hobby", is = ["gym"] }'),
        ('{ dimension = "life", not = ["new"] }', '{ dimension = "life", not = ["lapsed", "new"] }'),
    ],
)
def test_a_rule_that_is_never_reached(wide: str, narrow: str) -> None:
    """An earlier one holds whenever it does."""
    assert rules(wide, narrow) == NEVER_REACHED


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('{ measure = "orders", from = 2 }', '{ measure = "orders", from = 1 }'),
        ('{ measure = "orders", from = 2, below = 5 }', '{ measure = "orders", from = 2 }'),
        ('{ measure = "orders", below = 5 }', '{ measure = "refunds", below = 5 }'),
        ('{ measure = "orders", from = 2 }, { measure = "refunds", from = 1 }', '{ measure = "orders", from = 2 }'),
        ('{ attribute = "hobby", is = ["golf"] }', '{ attribute = "hobby", not = ["gym"] }'),
        ('{ attribute = "hobby", is = ["golf"] }', '{ attribute = "hobby", is = ["golf", "gym"] }'),
        ('{ dimension = "life", not = ["new"] }', '{ dimension = "life", is = ["new", "lapsed"] }'),
    ],
)
def test_a_rule_that_may_be_reached(first: str, second: str) -> None:
    """Is no warning."""
    assert rules(first, second) == []


def test_groups_of_nothing_and_groups_that_are_mixed() -> None:
    """Each with the line of its key; ``other`` needs no texts."""
    text = """[attributes]
keep = ["country"]
[dimensions.region]
engine = "attribute"
of = "country"
other = "rest"
[dimensions.region.groups]
here = ["DE"]
there = []
rest = []
[dimensions.shop]
engine = "dominant"
of = "channel"
mixed = "online"
groups = { online = ["web"], store = ["store"] }
"""
    assert [str(problem) for problem in warnings(text, parse_policy(text))] == [
        "9: dimensions.region.groups.there: has no texts, so nobody is in it",
        "14: dimensions.shop.mixed: online is a group too; who has no leader will count there",
    ]
