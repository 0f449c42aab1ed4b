"""The synthetic event generator: repeatable, well-formed, and true to the models it cites."""

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from streams import generator
from streams.generator import Population, generate

ORDER_FIELDS = [
    "event_id",
    "kind",
    "customer_id",
    "order_id",
    "occurred_at",
    "amount",
    "currency",
    "country",
    "channel",
    "category",
]
SIGNUP_FIELDS = ["event_id", "kind", "customer_id", "occurred_at", "country", "channel", "attributes"]
FIELDS = {
    "signup": SIGNUP_FIELDS,
    "purchase": ORDER_FIELDS,
    "refund": ORDER_FIELDS,
    "survey": ["event_id", "kind", "customer_id", "occurred_at", "score"],
    "profile": ["event_id", "kind", "customer_id", "occurred_at", "attributes"],
}
ATTRIBUTES = ["gender", "birth_year", "education", "family_status", "industry", "income", "hobby"]
EVENTS = list(generate(Population()))
CDNOW = {"r": 0.243, "alpha": 4.414, "a": 0.793, "b": 2.426}  # table 2 of Fader, Hardie and Lee (2005)


def of_kind(kind: str, events: list[dict[str, Any]] = EVENTS) -> list[dict[str, Any]]:
    return [event for event in events if event["kind"] == kind]


def digest(events: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(events).encode()).hexdigest()


def hypergeometric(a: float, b: float, c: float, z: float) -> float:
    """Gauss's 2F1 by its series, for 0 <= z < 1."""
    term = total = 1.0
    k = 0
    while abs(term) > 1e-13 * abs(total):
        term *= (a + k) * (b + k) / ((c + k) * (k + 1)) * z
        total += term
        k += 1
    return total


def expected_repeats(t: float, r: float, alpha: float, a: float, b: float) -> float:
    """E[X(t)]: repeat purchases in t weeks of a random customer (Fader, Hardie and Lee 2005, equation 9)."""
    tail = (alpha / (alpha + t)) ** r * hypergeometric(r, b, a + b - 1, t / (alpha + t))
    return float((a + b - 1) / (a - 1) * (1 - tail))


def test_same_seed_gives_identical_events() -> None:
    """Two runs of one population give equal events with equal field order."""
    assert digest(list(generate(Population()))) == digest(EVENTS)


@pytest.mark.parametrize("hash_seed", ["0", "4242"])
def test_events_do_not_depend_on_the_process(hash_seed: str) -> None:
    """Another process with another hash seed and time zone gives the same events."""
    code = (
        "import hashlib, json; from streams.generator import Population, generate;"
        "print(hashlib.sha256(json.dumps(list(generate(Population()))).encode()).hexdigest())"
    )
    root = str(Path(generator.__file__).parents[1])
    env = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": root, "TZ": "Asia/Tokyo"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == digest(EVENTS)


def test_other_seed_gives_other_events() -> None:
    """Another seed changes the ids and also the times and amounts."""
    other = list(generate(Population(seed=2)))
    assert not {e["event_id"] for e in EVENTS} & {e["event_id"] for e in other}
    for field in ("occurred_at", "amount"):
        assert [e[field] for e in of_kind("purchase")] != [e[field] for e in of_kind("purchase", other)]


def test_events_come_in_time_order_inside_the_window() -> None:
    """occurred_at never decreases, is RFC 3339 UTC with milliseconds, and lies in [start, start + days)."""
    times = [event["occurred_at"] for event in EVENTS]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time) for time in times)
    moments = [datetime.fromisoformat(time) for time in times]
    assert moments == sorted(moments)
    start = datetime(2024, 1, 1, tzinfo=UTC)
    assert start <= moments[0]
    assert moments[-1] < start + timedelta(days=365)


def test_equal_times_are_ordered_signup_then_purchase() -> None:
    """When all join at the same instant, the signups come first, then the purchases by event id."""
    events = list(generate(Population(customers=50, acquisition_days=0, signup_share=0.5)))
    at_start = [event for event in events if event["occurred_at"] == "2024-01-01T00:00:00.000Z"]
    kinds = [event["kind"] for event in at_start]
    assert set(kinds) == {"signup", "purchase"}
    assert kinds == sorted(kinds, reverse=True)
    purchase_ids = [event["event_id"] for event in of_kind("purchase", at_start)]
    assert purchase_ids == sorted(purchase_ids)


def test_ids_are_unique_and_name_the_seed() -> None:
    """No event id repeats, no two purchases share an order, and ids have the documented form."""
    ids = [event["event_id"] for event in EVENTS]
    orders = [event["order_id"] for event in of_kind("purchase")]
    assert len(set(ids)) == len(ids)
    assert len(set(orders)) == len(orders)
    assert all(re.fullmatch(r"gen-1-[sprva]-\d{7}", event_id) for event_id in ids)
    assert all(re.fullmatch(r"c\d{6}", event["customer_id"]) for event in EVENTS)


def test_events_have_exactly_the_documented_fields() -> None:
    """Each kind has its fields in order, survives JSON, and draws its values from the published lists."""
    assert json.loads(json.dumps(EVENTS)) == EVENTS
    for event in EVENTS:
        assert list(event) == FIELDS[event["kind"]]
        assert event.get("channel", "online") in generator.CHANNELS
        assert event.get("country", "US") in generator.COUNTRIES
        assert event.get("category", "home") in generator.CATEGORIES
        assert event.get("currency", "USD") == "USD"


def test_signup_attributes() -> None:
    """Every signup carries the attributes; the industry is known for some only; ages are 18 to 79.

    Incomes are whole hundreds around 42,000.
    """
    attributes = [event["attributes"] for event in of_kind("signup")]
    assert all(list(row) == [name for name in ATTRIBUTES if name in row] for row in attributes)
    assert all(set(ATTRIBUTES) - set(row) <= {"industry"} for row in attributes)
    assert 0.5 < sum("industry" in row for row in attributes) / len(attributes) < 0.7
    assert all(1945 <= row["birth_year"] <= 2006 for row in attributes)
    assert {row["hobby"] for row in attributes} == set(generator.HOBBIES)
    incomes = sorted(row["income"] for row in attributes)
    assert all(income > 0 and income % 100 == 0 for income in incomes)
    assert incomes[len(incomes) // 2] == pytest.approx(42_000, rel=0.05)
    assert incomes[len(incomes) // 4] / incomes[len(incomes) // 2] == pytest.approx(math.exp(-0.6745 * 0.45), rel=0.07)


def test_surveys_follow_their_purchase() -> None:
    """About `survey_share` of the purchases have one, 1 to 10 days later, mostly with a 4 or a 5."""
    surveys, purchases = of_kind("survey"), of_kind("purchase")
    bought: dict[str, list[datetime]] = {}
    for event in purchases:
        bought.setdefault(event["customer_id"], []).append(datetime.fromisoformat(event["occurred_at"]))
    for event in surveys:
        when = datetime.fromisoformat(event["occurred_at"])
        waits = [(when - then) / timedelta(days=1) for then in bought[event["customer_id"]]]
        assert any(0.999999 <= wait <= 10 for wait in waits)
    assert len(surveys) / len(purchases) == pytest.approx(0.1, abs=0.02)
    scores = Counter(event["score"] for event in surveys)
    assert set(scores) == {1, 2, 3, 4, 5}
    assert (scores[4] + scores[5]) / len(surveys) == pytest.approx(0.75, abs=0.08)


def test_profiles_change_something_of_a_member() -> None:
    """About `profile_share` of the members send one, with another family status or a higher income than before."""
    events = list(generate(Population(customers=3000, survey_share=0)))
    signups = {event["customer_id"]: event for event in of_kind("signup", events)}
    profiles = of_kind("profile", events)
    for event in profiles:
        signup = signups[event["customer_id"]]
        assert event["occurred_at"] >= signup["occurred_at"]
        ((name, value),) = event["attributes"].items()
        if name == "income":
            assert value > signup["attributes"][name]
            assert value % 100 == 0
        else:
            assert name == "family_status"
            assert value in generator.FAMILY_STATUSES
            assert value != signup["attributes"][name]
    assert len({event["customer_id"] for event in profiles}) == len(profiles)
    assert len(profiles) / len(signups) == pytest.approx(0.05, abs=0.02)
    assert {name for event in profiles for name in event["attributes"]} == {"income", "family_status"}


def test_new_kinds_leave_the_others_as_they_were() -> None:
    """Surveys and profiles are added to a population's events, which are otherwise the same with and without them."""
    for more in ({"survey_share": 0.0, "profile_share": 0.0}, {"survey_share": 1.0, "profile_share": 1.0}):
        events = list(generate(Population(**more)))  # type: ignore[arg-type]
        for kind in ("signup", "purchase", "refund"):
            assert of_kind(kind, events) == of_kind(kind)
        assert bool(of_kind("survey", events)) == bool(of_kind("profile", events)) == bool(more["survey_share"])


def test_refunds_follow_and_never_exceed_their_purchase() -> None:
    """A refund names an earlier order of the same customer, returns at most its amount, and does so once."""
    purchases = {event["order_id"]: event for event in of_kind("purchase")}
    refunds = of_kind("refund")
    full = 0
    for refund in refunds:
        order = purchases[refund["order_id"]]
        assert refund["customer_id"] == order["customer_id"]
        assert refund["occurred_at"] > order["occurred_at"]
        assert Decimal("0.01") <= Decimal(refund["amount"]) <= Decimal(order["amount"])
        full += refund["amount"] == order["amount"]
    assert max(Counter(refund["order_id"] for refund in refunds).values()) == 1
    assert 0.015 < len(refunds) / len(purchases) < 0.045
    assert 0 < full < len(refunds)


def test_amounts_are_positive_decimals_with_two_digits() -> None:
    """Amounts are plain decimal text of at least 0.01, also when the drawn spend is far below a cent."""
    tiny = list(generate(Population(customers=100, refund_share=1.0, gamma=1e-6)))
    amounts = [event["amount"] for event in [*EVENTS, *tiny] if "amount" in event]
    assert all(re.fullmatch(r"\d+\.\d\d", amount) and Decimal(amount) >= Decimal("0.01") for amount in amounts)
    assert {event["amount"] for event in tiny if "amount" in event} == {"0.01"}


def test_signups_come_first_and_some_members_never_buy() -> None:
    """About `signup_share` sign up, each before any purchase; about `never_buys` of them never buy."""
    events = list(generate(Population(customers=5000)))
    first_kind: dict[str, str] = {}
    for event in events:
        first_kind.setdefault(event["customer_id"], event["kind"])
    signups = [event["customer_id"] for event in of_kind("signup", events)]
    buyers = {event["customer_id"] for event in of_kind("purchase", events)}
    assert len(set(signups)) == len(signups)
    assert all(first_kind[customer] == "signup" for customer in signups)
    assert len(first_kind) == 5000
    assert len(signups) / 5000 == pytest.approx(0.8, abs=0.03)
    assert len(set(signups) - buyers) / len(signups) == pytest.approx(0.1, abs=0.03)


def test_joins_are_spread_over_the_acquisition_days() -> None:
    """Signups fall in the first `acquisition_days` only, uniformly: their mean day is the middle."""
    start = datetime(2024, 1, 1, tzinfo=UTC)
    days = [(datetime.fromisoformat(e["occurred_at"]) - start) / timedelta(days=1) for e in of_kind("signup")]
    assert max(days) < 180
    assert sum(days) / len(days) == pytest.approx(90, abs=8)


def test_customers_keep_to_their_preferences() -> None:
    """A customer has one country, and buys mostly through one channel and in one category."""
    by_customer: dict[str, list[dict[str, Any]]] = {}
    for event in of_kind("purchase"):
        by_customer.setdefault(event["customer_id"], []).append(event)
    regulars = [events for events in by_customer.values() if len(events) >= 8]
    assert len(regulars) > 50
    assert all(len({event["country"] for event in events}) == 1 for events in regulars)
    for field, least in (("channel", 0.85), ("category", 0.65)):
        top = sum(Counter(event[field] for event in events).most_common(1)[0][1] for events in regulars)
        assert least < top / sum(map(len, regulars)) < 1


@pytest.mark.parametrize("parameters", [CDNOW, {"r": 0.8, "alpha": 6.0, "a": 0.8, "b": 6.0}])
@pytest.mark.parametrize("weeks", [13, 52])
def test_repeat_purchases_match_the_bgnbd_expectation(parameters: dict[str, Any], weeks: int) -> None:
    """When all start at day 0, the mean of repeat purchases is within 4 standard errors of E[X(t)]."""
    n = 8000
    cohort = Population(
        customers=n, days=7 * weeks, acquisition_days=0, signup_share=0, refund_share=0, survey_share=0, seed=5,
        **parameters,
    )  # fmt: skip
    counts = [bought - 1 for bought in Counter(event["customer_id"] for event in generate(cohort)).values()]
    assert len(counts) == n
    mean = sum(counts) / n
    error = math.sqrt(sum((count - mean) ** 2 for count in counts) / n / n)
    assert abs(mean - expected_repeats(weeks, **parameters)) < 4 * error < 0.12 * mean


def test_mean_amount_matches_the_gamma_gamma_expectation() -> None:
    """The mean first purchase is near p * gamma / (q - 1), 35.22 for the defaults."""
    events = generate(Population(customers=20_000, days=1, acquisition_days=0, signup_share=0, alpha=1e9))
    amounts = [float(event["amount"]) for event in events]
    assert len(amounts) == 20_000
    assert sum(amounts) / len(amounts) == pytest.approx(6.25 * 15.44 / 2.74, rel=0.03)


def test_start_in_another_zone_is_the_same_instant() -> None:
    """The start is an instant: written in another time zone it gives the same events."""
    shifted = datetime(2024, 1, 1, 9, tzinfo=timezone(timedelta(hours=9)))
    assert digest(list(generate(Population(start=shifted)))) == digest(EVENTS)


def test_empty_populations_give_no_events() -> None:
    """No customers give no events."""
    assert list(generate(Population(customers=0))) == []


def test_short_window_is_kept() -> None:
    """A window shorter than the acquisition days holds all joins and no later event."""
    events = list(generate(Population(days=3, refund_share=1.0)))
    assert {event["occurred_at"][:10] for event in events} == {"2024-01-01", "2024-01-02", "2024-01-03"}
    assert len({event["customer_id"] for event in events}) == 1000
    assert of_kind("refund", events)


@pytest.mark.filterwarnings("error")
def test_extreme_rates() -> None:
    """Customers who almost never return, or who all leave at once, are simulated without warnings."""
    rare = Population(customers=200, signup_share=0, refund_share=0, survey_share=0, r=0.001)
    assert len(list(generate(rare))) < 220
    leaving = Population(customers=200, signup_share=0, refund_share=0, survey_share=0, r=50.0, a=1000.0, b=1e-3)
    assert max(Counter(event["customer_id"] for event in generate(leaving)).values()) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"start": datetime(2024, 1, 1, tzinfo=UTC).replace(tzinfo=None)},
        {"customers": -1},
        {"seed": -1},
        {"days": 0},
        {"refund_share": 1.1},
        {"signup_share": -0.1},
        {"never_buys": math.nan},
        {"survey_share": 1.5},
        {"profile_share": -0.1},
        {"alpha": 0.0},
        {"q": 1.0},
    ],
)
def test_impossible_parameters_are_refused(wrong: dict[str, Any]) -> None:
    """A population that cannot be simulated is refused when it is made."""
    with pytest.raises(ValueError, match=next(iter(wrong)) + "|model parameters"):
        Population(**wrong)
