"""The policy: read from TOML; whatever is wrong in it is named, with what it may be."""

import re
from decimal import Decimal

import pytest
from pydantic import ValidationError

from models.dimensions import dimensions_of
from models.errors import PolicyError
from models.policy import Policy, default_policy, default_policy_text, parse_policy
from models.policy_lines import problems

DAY = 86_400_000_000
DEFAULT = default_policy_text()
TEXT = """
version = 1
[money]
base = "USD"
[money.rates]
# EUR = "1.08"
[events]
allowed_skew = "5m"
remembered_ids = 16
[attributes]
keep = ["country", "channel"]
numbers = ["income"]
max_values = 10000
[population]
every = "7d"
settle = "10m"
[dimensions.lifecycle]
engine = "lifecycle"
potential_after = "30d"
regular_orders = 3
lapse_after = "90d"
"""


def changed(old: str, new: str) -> str:
    """A policy's text with one part replaced."""
    assert TEXT.count(old) == 1
    return TEXT.replace(old, new)


def test_default_policy_is_the_documented_one() -> None:
    """The default policy loads, has every engine, and says what the documentation says of it."""
    policy = default_policy()
    assert policy.version == 1
    assert (policy.money.base, policy.money.rates) == ("USD", {})
    assert policy.events.allowed_skew == 300_000_000
    assert policy.events.remembered_ids == 16
    assert set(policy.attributes.keep) >= {"country", "channel", "gender", "education", "family_status", "industry"}
    assert policy.attributes.numbers == ("birth_year", "income")
    assert policy.attributes.max_values == 10_000
    assert (policy.population.every, policy.population.settle) == (7 * DAY, 600_000_000)
    assert policy.needs_population
    engines = {dimension.engine for dimension in policy.dimensions.values()}
    assert engines == {"lifecycle", "attribute", "bands", "dominant", "pareto", "rfm", "cluster", "rules"}
    assert next(iter(policy.dimensions)) == "lifecycle"
    lifecycle = policy.dimensions["lifecycle"]
    assert policy.text == DEFAULT
    assert (lifecycle.potential_after, lifecycle.regular_orders, lifecycle.lapse_after) == (30 * DAY, 3, 90 * DAY)


def test_only_dimensions_are_required() -> None:
    """A policy that names a dimension with its engine and nothing else gets every other default."""
    policy = parse_policy('[dimensions.lifecycle]\nengine = "lifecycle"')
    assert policy.dimensions == parse_policy(TEXT).dimensions
    assert not policy.needs_population
    assert policy.population == default_policy().population
    assert policy.money == default_policy().money
    assert policy.events == default_policy().events
    assert policy.attributes.keep == ()


def test_equal_texts_are_equal_policies() -> None:
    """The same text gives an equal policy, another setting an unequal one."""
    assert parse_policy(TEXT) == parse_policy(TEXT)
    assert parse_policy(changed("regular_orders = 3", "regular_orders = 4")) != parse_policy(TEXT)


def test_a_policy_cannot_be_changed() -> None:
    """A policy and its sections are frozen."""
    policy = default_policy()
    with pytest.raises(ValidationError, match="frozen"):
        policy.version = 2
    with pytest.raises(ValidationError, match="frozen"):
        policy.dimensions["lifecycle"].regular_orders = 2


@pytest.mark.parametrize(
    ("written", "microseconds"),
    [("45s", 45_000_000), ("5m", 300_000_000), ("36h", 129_600_000_000), ("30d", 30 * DAY), ("2w", 14 * DAY),
     ("89 d", 89 * DAY)],
)  # fmt: skip
def test_durations_have_units(written: str, microseconds: int) -> None:
    """A duration is a whole number of seconds, minutes, hours, days or weeks."""
    policy = parse_policy(changed('potential_after = "30d"', f'potential_after = "{written}"'))
    assert policy.dimensions["lifecycle"].potential_after == microseconds


def test_rates_are_exact() -> None:
    """A rate is the decimal that was written; the converter has it and the base."""
    policy = parse_policy(changed('# EUR = "1.08"', 'EUR = "1.083"\nJPY = "0.000000000001"'))
    assert policy.money.rates == {"EUR": Decimal("1.083"), "JPY": Decimal("1E-12")}
    assert policy.converter.one("100", "EUR") == 10_830
    assert policy.converter.one("1", "USD") == 100
    assert policy.converter is policy.converter


def test_dimensions_are_named_and_ordered_by_the_policy() -> None:
    """Each section below dimensions is one dimension; they keep the order in which they are written."""
    engine = "engine = 'lifecycle'\n"
    policy = parse_policy(
        f"[dimensions.slow]\n{engine}lapse_after = '300d'\n[dimensions.fast]\n{engine}regular_orders = 2"
    )
    assert [dimension.name for dimension in dimensions_of(policy)] == ["slow", "fast"]
    assert {dimension.labels for dimension in dimensions_of(policy)} == {("new", "potential", "regular", "lapsed")}


@pytest.mark.parametrize(
    ("old", "new", "key", "allowed"),
    [
        ("version = 1", "version = 0", "version", "greater than or equal to 1"),
        ("version = 1", "version = 2147483648", "version", "less than or equal to 2147483647"),
        ("version = 1", 'version = "1"', "version", "valid integer"),
        ("version = 1", "version = true", "version", "valid integer"),
        ("version = 1", "versions = 1", "versions", "not a setting of this policy; check the spelling"),
        ("[events]", "[event]", "event", "not a setting of this policy; check the spelling"),
        ('base = "USD"', 'base = "usd"', "money.base", r"\^\[A-Z\]\{3\}\$"),
        ('base = "USD"', "base = 1", "money.base", "valid string"),
        ('# EUR = "1.08"', "EUR = 1.08", "money.rates: EUR", 'a decimal in quotes, such as "1.08"'),
        ('# EUR = "1.08"', 'EUR = "1,08"', "money.rates: EUR", 'a decimal in quotes, such as "1.08"'),
        ('# EUR = "1.08"', 'EUR = "-1.08"', "money.rates: EUR", 'a decimal in quotes, such as "1.08"'),
        ('# EUR = "1.08"', 'EUR = "1e3"', "money.rates: EUR", 'a decimal in quotes, such as "1.08"'),
        ('# EUR = "1.08"', 'EUR = "0.0"', "money.rates: EUR", "more than 0"),
        ('# EUR = "1.08"', 'eur = "1.08"', "money.rates.eur", r"\^\[A-Z\]\{3\}\$"),
        ('allowed_skew = "5m"', "allowed_skew = 300", "events.allowed_skew", 'a duration such as "30d"'),
        ('allowed_skew = "5m"', 'allowed_skew = "0s"', "events.allowed_skew", "longer than 0 and at most 36500d"),
        ("remembered_ids = 16", "remembered_ids = 0", "events.remembered_ids", "greater than or equal to 1"),
        ("remembered_ids = 16", "remembered_ids = 256", "events.remembered_ids", "less than or equal to 255"),
        ('keep = ["country", "channel"]', 'keep = "country"', "attributes.keep", "valid tuple"),
        ('keep = ["country", "channel"]', 'keep = ["country", "country"]', "attributes.keep", "each attribute once"),
        ('keep = ["country", "channel"]', 'keep = ["Country"]', "attributes.keep.0", r"\^\[a-z\]\[a-z0-9_\]\{0,47\}\$"),
        ("max_values = 10000", "max_values = 0", "attributes.max_values", "greater than or equal to 1"),
        ("max_values = 10000", "max_values = 1.5", "attributes.max_values", "valid integer"),
        ("[dimensions.lifecycle]", "[dimensions.Lifecycle]", "dimensions.Lifecycle", r"\^\[a-z\]\[a-z0-9_\]\{0,47\}\$"),
        ('engine = "lifecycle"', 'engine = "magic"', "dimensions.lifecycle.engine", "must be one of 'lifecycle'"),
        ('engine = "lifecycle"', "", "dimensions.lifecycle.engine", "is required"),
        ('every = "7d"', 'every = "7"', "population.every", 'a duration such as "30d"'),
        ('settle = "10m"', 'settle = "7d"', "population", "settle must be shorter than every"),
        ('numbers = ["income"]', 'numbers = ["country"]', "attributes", "country is in keep and in numbers"),
        ('numbers = ["income"]', 'numbers = ["orders"]', "attributes", "cannot name orders, which is a measure"),
        ('numbers = ["income"]', 'numbers = ["amount"]', "attributes.numbers", "cannot keep amount"),
        ("regular_orders = 3", "regular_orders = 1", "dimensions.lifecycle.regular_orders", "equal to 2"),
        ("regular_orders = 3", "orders = 3", "dimensions.lifecycle.orders", "check the spelling"),
        ('lapse_after = "90d"', 'lapse_after = "90"', "dimensions.lifecycle.lapse_after", "with s, m, h, d or w"),
        ('lapse_after = "90d"', 'lapse_after = "1.5d"', "dimensions.lifecycle.lapse_after", "with s, m, h, d or w"),
        ('lapse_after = "90d"', 'lapse_after = "36501d"', "dimensions.lifecycle.lapse_after", "at most 36500d"),
        ('lapse_after = "90d"', 'lapse_after = "30d"', "dimensions.lifecycle", "potential_after must be shorter than"),
    ],
)  # fmt: skip
def test_each_wrong_setting_is_named_with_what_it_may_be(old: str, new: str, key: str, allowed: str) -> None:
    """It is one problem whose key is the wrong one, and which says what that may be; no such policy can be read."""
    (found,) = problems(changed(old, new))
    assert f"{found.key}: {found.sentence}".startswith(key)
    assert re.search(allowed, found.sentence)
    with pytest.raises(PolicyError, match=key.rpartition(".")[2]):
        parse_policy(changed(old, new))


def test_the_wrong_value_is_shown() -> None:
    """The line ends with the value that was found."""
    with pytest.raises(PolicyError, match=r"\(it is 256\)$"):
        parse_policy(changed("remembered_ids = 16", "remembered_ids = 256"))


def test_all_errors_are_named_at_once() -> None:
    """A policy with three wrong keys has three problems, one for each, and reading it tells all of them."""
    text = changed("version = 1", "version = 0").replace("[events]", "[event]").replace('"90d"', '"soon"')
    assert {found.key for found in problems(text)} == {"version", "event", "dimensions.lifecycle.lapse_after"}
    with pytest.raises(PolicyError) as refused:
        parse_policy(text)
    assert len(str(refused.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "dimensions: is required"),
        ("version = 3", "dimensions: is required"),
        ("dimensions = {}", "dimensions: .*at least 1 item"),
        ("dimensions = 1", "dimensions: must be a valid dictionary"),
        ("[money]\nrates = 5\n[dimensions.lifecycle]\nengine = 'lifecycle'", "money.rates: must be a valid dictionary"),
        ("money = 5\n[dimensions.lifecycle]\nengine = 'lifecycle'", "money: "),
        ("version = 1\nbase", "the policy is not valid TOML: "),
        ("version = 1\n\n[money\n", "the policy is not valid TOML: .*line 3"),
        ("version = 1\nversion = 2", "the policy is not valid TOML"),
    ],
)
def test_a_text_that_is_no_policy_is_refused(text: str, sentence: str) -> None:
    """No TOML, no dimension, or no table of them: each has its own sentence."""
    with pytest.raises(PolicyError, match=sentence):
        parse_policy(text)


def test_there_are_at_most_64_dimensions() -> None:
    """64 dimensions are accepted, one more is refused under its key."""
    sections = [f"[dimensions.d{number}]\nengine = 'lifecycle'" for number in range(65)]
    assert len(parse_policy("\n".join(sections[:64])).dimensions) == 64
    with pytest.raises(PolicyError, match=r"^dimensions: .*at most 64"):
        parse_policy("\n".join(sections))


def test_a_policy_is_read_strictly() -> None:
    """No value is turned into another type to make it fit."""
    with pytest.raises(ValidationError):
        Policy.model_validate({"version": "1", "dimensions": {"lifecycle": {"engine": "lifecycle"}}})


def test_fields_of_events_are_no_attributes() -> None:
    """What every event has as a field of its own cannot be kept as an attribute."""
    with pytest.raises(PolicyError, match=r"attributes\.keep: cannot keep amount, attributes"):
        parse_policy('[attributes]\nkeep = ["attributes", "amount"]\n[dimensions.d]\nengine = "lifecycle"')


def test_the_base_currency_has_no_rate() -> None:
    """A rate for the base itself would be ignored, so it is refused."""
    with pytest.raises(PolicyError, match="worth 1"):
        parse_policy('[money]\nbase = "USD"\n[money.rates]\nUSD = "2"\n[dimensions.d]\nengine = "lifecycle"')
