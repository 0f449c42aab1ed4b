"""The settings of dimensions: what each engine refuses, and what a dimension may name of the rest of the policy."""

import re
from collections import Counter
from decimal import Decimal

import pytest

from models.engines import BandsPolicy, ClusterPolicy, DominantPolicy, Engine, RfmPolicy, standard_rfm_groups
from models.errors import PolicyError
from models.policy import Policy, Tally, parse_policy

DAY = 86_400_000_000
HEAD = '[attributes]\nkeep = ["country", "hobby"]\nnumbers = ["income"]\n'
LIFECYCLE = '[dimensions.lifecycle]\nengine = "lifecycle"\n'

#: The list of the scheme, group after group, as it is published.
PUBLISHED = """
champions 555 554 544 545 454 455 445
loyal 543 444 435 355 354 345 344 335
potential_loyalist 553 551 552 541 542 533 532 531 452 451 442 441 431 453 433 432 423 353 352 351 342 341 333 323
new 512 511 422 421 412 411 311
promising 525 524 523 522 521 515 514 513 425 424 413 414 415 315 314 313
need_attention 535 534 443 434 343 334 325 324
about_to_sleep 331 321 312 221 213 231 241 251
at_risk 255 254 245 244 253 252 243 242 235 234 225 224 153 152 145 143 142 135 134 133 125 124
cant_lose 155 154 144 214 215 115 114 113
hibernating 332 322 233 232 223 222 132 123 122 212 211
lost 111 112 121 131 141 151
"""


def parsed(engine: str, settings: str, head: str = HEAD) -> Engine:
    """The one dimension of a policy."""
    return parse_policy(f'{head}[dimensions.d]\nengine = "{engine}"\n{settings}').dimensions["d"]


def test_every_rfm_code_is_in_exactly_one_group() -> None:
    """The eleven standard groups are the published ones and an exact partition of all 125 codes."""
    published = {line.split()[0]: line.split()[1:] for line in PUBLISHED.strip().splitlines()}
    groups = standard_rfm_groups()
    assert list(groups) == list(published)
    assert {name: sorted(codes) for name, codes in groups.items()} == {n: sorted(c) for n, c in published.items()}
    every = Counter(code for codes in groups.values() for code in codes)
    assert every == Counter(f"{r}{f}{m}" for r in range(1, 6) for f in range(1, 6) for m in range(1, 6))
    assert len(every) == 125
    rfm = parsed("rfm", "")
    assert isinstance(rfm, RfmPolicy)
    assert rfm.groups == groups
    assert rfm.labels == tuple(published)


def codes(*, without: str = "", also: str = "") -> str:
    every = [f"{r}{f}{m}" for r in range(1, 6) for f in range(1, 6) for m in range(1, 6)]
    return str([code for code in every if code != without] + ([also] if also else []))


@pytest.mark.parametrize(
    ("engine", "settings", "sentence"),
    [
        ("lifecycle", 'lapse_after = "10d"', "potential_after must be shorter than lapse_after"),
        ("attribute", 'of = "country"', "groups: is required"),
        ("attribute", 'of = "country"\ngroups = {}', "groups: .*at least 1 item"),
        ("attribute", 'of = "country"\ngroups = {a = ["DE"], b = ["de"]}', "groups names de more than once"),
        ("attribute", 'of = "country"\ngroups = {a = "DE"}', r"groups\.a: must be a valid tuple"),
        ("attribute", 'of = "country"\ngroups = {1a = ["DE"]}', r"groups\.1a.*must match"),
        ("attribute", 'of = "country"\ngroups = {a = [""]}', r"groups\.a\.0: .*at least 1 character"),
        ("attribute", 'of = "city"\ngroups = {a = ["x"]}', "the attribute city is not kept; add it to attributes.keep"),
        ("attribute", 'of = "income"\ngroups = {a = ["x"]}', "the attribute income is not kept"),
        ("attribute", 'of = "country"\ngroups = {a = ["x"]}\nmargin = 5', "margin: is not a setting"),
        ("bands", 'of = "income"', "bands: is required"),
        ("bands", 'of = "income"\nbands = {}', "bands: .*at least 1 item"),
        ("bands", 'of = "income"\nbands = {a = 1, b = 1}', "bands: must have ascending lower bounds"),
        ("bands", 'of = "income"\nbands = {a = 2, b = 1}', "bands: must have ascending lower bounds"),
        ("bands", 'of = "income"\nbands = {a = true}', r"bands\.a: must be a number"),
        ("bands", 'of = "income"\nbands = {a = "1e5"}', r"bands\.a: must be a number with at most 15 digits"),
        ("bands", 'of = "income"\nbands = {a = 0.1234567}', r"bands\.a: must be a number with at most 15 digits"),
        ("bands", 'of = "income"\nbands = {a = inf}', r"bands\.a: must be a number with at most 15 digits"),
        ("bands", 'of = "city"\nbands = {a = 1}', "city is no measure and not in attributes.numbers; .*recency_days"),
        ("bands", 'of = "hobby"\nbands = {a = 1}', "hobby is no measure and not in attributes.numbers"),
        ("bands", 'of = "age"\nbands = {a = 1}', "age is counted from the attribute birth_year; add it"),
        ("dominant", 'of = "city"\ngroups = {a = ["x"]}', "the attribute city is not kept"),
        ("dominant", 'of = "category"\ngroups = {a = ["x"]}\nby = "weight"', "by: must be 'orders' or 'revenue'"),
        (
            "dominant",
            'of = "category"\ngroups = {a = ["x"]}\nmargin = 101',
            "margin: must be less than or equal to 100",
        ),
        (
            "dominant",
            'of = "category"\ngroups = {a = ["x"]}\nmargin = -1',
            "margin: must be greater than or equal to 0",
        ),
        ("dominant", 'of = "category"\ngroups = {a = ["x"]}\nhalf_life = "29d"', 'half_life: must be at least "30d"'),
        ("pareto", "classes = {a = 100}", "classes: .*at least 2 items"),
        ("pareto", "classes = {a = 80, b = 19}", "classes: must be percentages above 0 that add up to 100"),
        ("pareto", "classes = {a = 100, b = 0}", "classes: must be percentages above 0 that add up to 100"),
        ("pareto", 'classes = {a = 80, b = 20}\ndwell = "1"', "dwell: must be a duration"),
        ("rfm", f"groups = {{a = {codes(without='333')}}}", "groups: must cover all 125 codes; 333 is missing"),
        ("rfm", f"groups = {{a = {codes(also='333')}}}", "groups: must name each code once; 333 is there twice"),
        ("rfm", f"groups = {{a = {codes(also='611')}}}", "groups: must be codes from 111 to 555; 611 is none"),
        ("cluster", "clusters = 1", "clusters: must be greater than or equal to 2"),
        ("cluster", "clusters = 51", "clusters: must be less than or equal to 50"),
        ("cluster", "clusters = 10\nsample = 199", "sample must be at least 20 for each cluster, 200"),
        ("cluster", "sample = 5001", "sample: must be less than or equal to 5000"),
        ("cluster", "features = []", "features: .*at least 1 item"),
        ("cluster", 'features = ["orders", "orders"]', "features: must name each measure once"),
        ("cluster", 'features = ["age", "orders"]', "features: cannot be age; use orders and tenure_days"),
        ("cluster", 'features = ["city"]', "city is no measure and not in attributes.numbers"),
        ("cluster", "margin = 101", "margin: must be less than or equal to 100"),
        ("cluster", "profiles = {c6 = {}}", "profiles names c6; the segments are c1, c2, c3, c4, c5"),
        ("rules", "", "rules: is required"),
        ("rules", "rules = []", "rules: .*at least 1 item"),
        ("rules", 'rules = [{segment = "a", when = []}]', r"rules\.0\.when: .*at least 1 item"),
    ],
)
def test_each_engine_refuses(engine: str, settings: str, sentence: str) -> None:
    """The error begins with the dimension's key and says what it may be."""
    with pytest.raises(PolicyError) as refused:
        parsed(engine, settings)
    assert re.search(rf"^(policy: )?dimensions\.d.*{sentence}", str(refused.value), re.MULTILINE), str(refused.value)


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        ("{}", "must name one measure, attribute or dimension"),
        ('{measure = "orders", attribute = "hobby", from = 1}', "must name one measure, attribute or dimension"),
        ('{measure = "orders"}', "a measure needs from, below or both, and neither is nor not"),
        ('{measure = "orders", from = 1, is = ["a"]}', "a measure needs from, below or both, and neither is nor not"),
        ('{measure = "orders", from = 2, below = 2}', "from must be less than below"),
        ('{attribute = "hobby"}', "an attribute or dimension needs either is or not"),
        ('{attribute = "hobby", is = ["a"], not = ["b"]}', "an attribute or dimension needs either is or not"),
        ('{attribute = "hobby", is = ["a"], from = 1}', "an attribute or dimension needs either is or not"),
        ('{attribute = "hobby", are = ["a"]}', "are: is not a setting"),
        ('{attribute = "city", is = ["a"]}', "the attribute city is not kept"),
        ('{measure = "age", below = 3}', "age is counted from the attribute birth_year"),
        ('{measure = "luck", below = 3}', "luck is no measure"),
        ('{dimension = "d", is = ["a"]}', r"only dimensions above its own \(lifecycle\), not d"),
        ('{dimension = "below", is = ["a"]}', r"only dimensions above its own \(lifecycle\), not below"),
        ('{dimension = "lifecycle", is = ["gone", "new"]}', "lifecycle has no segment gone; it has new, potential"),
        ('{dimension = "lifecycle", not = ["gone"]}', "lifecycle has no segment gone; it has new, potential"),
    ],
)
def test_conditions_are_refused(condition: str, sentence: str) -> None:
    """A condition names one thing that the policy has, and asks of it what can be asked."""
    below = LIFECYCLE.replace("lifecycle]", "below]")
    with pytest.raises(PolicyError, match=f"dimensions.*{sentence}"):
        parse_policy(
            f"{HEAD}{LIFECYCLE}[dimensions.d]\nengine = 'rules'\n"
            f"[[dimensions.d.rules]]\nsegment = 'a'\nwhen = [{condition}]\n{below}"
        )


def test_the_first_rule_cannot_name_a_dimension() -> None:
    """Where no dimension is above, the error says that there is none."""
    with pytest.raises(PolicyError, match=r"above its own \(none\), not x"):
        parsed("rules", 'rules = [{segment = "a", when = [{dimension = "x", is = ["y"]}]}]')


def test_numbers_are_as_written() -> None:
    """Bounds are exact decimals, whether written as numbers or in quotes."""
    bands = parsed("bands", 'of = "income"\nbands = {a = -1, b = 0.1, c = "0.300000"}')
    assert isinstance(bands, BandsPolicy)
    assert bands.bands == {"a": Decimal(-1), "b": Decimal("0.1"), "c": Decimal("0.3")}


@pytest.mark.parametrize(
    ("keep", "numbers", "sentence"),
    [
        (["a"], ["a"], "a is in keep and in numbers; name it in one of them"),
        ([], ["a", "a"], "must name each attribute once"),
        ([], ["amount"], "cannot keep amount: every event has its own"),
        ([], ["orders", "age"], "numbers cannot name age, orders, which is a measure"),
    ],
)
def test_numbers_are_attributes_of_their_own(keep: list[str], numbers: list[str], sentence: str) -> None:
    """A numeric attribute is kept as a number only, and is no measure."""
    with pytest.raises(PolicyError, match=sentence):
        parse_policy(f"[attributes]\nkeep = {keep}\nnumbers = {numbers}\n{LIFECYCLE}")


def test_events_carry_texts_that_need_not_be_kept() -> None:
    """A dominant dimension may count a purchase's country, channel or category, which are not kept for that."""
    for of in ("country", "channel", "category"):
        engine = parsed("dominant", f'of = "{of}"\ngroups = {{a = ["x"]}}', head="")
        assert isinstance(engine, DominantPolicy)
        assert engine.labels == ("a", "mixed")


def test_what_is_counted_is_shared() -> None:
    """Dominant dimensions that count the same text the same way share one tally, under one name."""

    def dominant(name: str, more: str = "") -> str:
        return f'[dimensions.{name}]\nengine = "dominant"\nof = "category"\ngroups = {{a = ["x"]}}\n{more}\n'

    policy = parse_policy(
        dominant("one")
        + dominant("two", "margin = 5")
        + dominant("three", 'by = "revenue"')
        + dominant("four", 'half_life = "30d"')
    )
    assert policy.tallies == (
        Tally("category", "orders", None),
        Tally("category", "revenue", None),
        Tally("category", "orders", 30 * DAY),
    )
    assert [tally.name for tally in policy.tallies] == [
        "category/orders/forever",
        "category/revenue/forever",
        "category/orders/2592000s",
    ]


def test_clusters_have_numbers() -> None:
    """What is learned by default, of which measures, and what the clusters are called."""
    engine = parsed("cluster", "")
    assert isinstance(engine, ClusterPolicy)
    assert engine.labels == ("c1", "c2", "c3", "c4", "c5")
    assert engine.features == ("recency_days", "orders", "monetary")
    assert (engine.sample, engine.margin, engine.dwell) == (1000, 10, None)
    assert parse_policy('[dimensions.d]\nengine = "cluster"').clusters == ("d",)
    assert parsed("cluster", 'features = ["income", "satisfaction"]').labels == engine.labels


def test_profiles_are_of_segments() -> None:
    """A profile belongs to a segment of its dimension; one of none is refused with those there are."""
    engine = parsed("lifecycle", 'profiles = {new = {title = "Newcomers", needs = ["a reason to return"]}}')
    assert engine.profiles["new"].title == "Newcomers"
    assert engine.profiles["new"].needs == ("a reason to return",)
    with pytest.raises(PolicyError, match="profiles names old; the segments are new, potential, regular, lapsed"):
        parsed("lifecycle", "profiles = {old = {}}")
    with pytest.raises(PolicyError, match=r"profiles\.new\.colour: is not a setting"):
        parsed("lifecycle", 'profiles = {new = {colour = "red"}}')


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        (LIFECYCLE, False),
        (LIFECYCLE + "viable = {customers = 5}", True),
        ('[dimensions.d]\nengine = "rfm"', True),
        ('[dimensions.d]\nengine = "cluster"', True),
        ('[dimensions.d]\nengine = "pareto"\nclasses = {a = 80, b = 20}', True),
    ],
)
def test_who_needs_the_population(text: str, needed: bool) -> None:
    """Scores and what must be viable depend on everybody else."""
    policy: Policy = parse_policy(text)
    assert policy.needs_population is needed
