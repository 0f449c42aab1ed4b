"""Generate synthetic customer events (signup, purchase, refund, survey, profile) that are realistic and repeatable.

Sources of the formulas:
- When customers buy: the BG/NBD model. P. Fader, B. Hardie, K. L. Lee, "Counting Your Customers the Easy Way:
  An Alternative to the Pareto/NBD Model", Marketing Science 24(2), 2005, 275-284.
- How much they spend: the gamma-gamma model. P. Fader, B. Hardie, "The Gamma-Gamma Model of Monetary Value",
  2013, http://www.brucehardie.com/notes/025/gamma_gamma.pdf.
Everything else here (countries, channels, attributes, refunds, surveys, profiles) is invented, with plain made-up
weights.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

COUNTRIES = {"US": 0.30, "DE": 0.14, "GB": 0.13, "FR": 0.11, "ES": 0.08,
             "IT": 0.07, "PL": 0.06, "NL": 0.05, "BR": 0.04, "JP": 0.02}  # fmt: skip
CHANNELS = {"online": 0.65, "store": 0.35}
CATEGORIES = {"grocery": 0.32, "fashion": 0.23, "home": 0.20, "electronics": 0.14, "sports": 0.11}
GENDERS = {"female": 0.50, "male": 0.47, "other": 0.03}
EDUCATIONS = {"secondary": 0.45, "bachelor": 0.35, "master": 0.17, "doctorate": 0.03}
FAMILY_STATUSES = {"single": 0.38, "married": 0.46, "divorced": 0.11, "widowed": 0.05}
HOBBIES = {"reading": 0.24, "cooking": 0.20, "running": 0.16, "gym": 0.15, "gardening": 0.14, "fashion": 0.11}
SCORES = {1: 0.04, 2: 0.06, 3: 0.15, 4: 0.35, 5: 0.40}  # 5: very satisfied
INDUSTRIES = {"": 0.40, "services": 0.22, "technology": 0.14, "health": 0.13, "trade": 0.11}  # "": unknown

USUAL_CHANNEL = 0.85  # chance that a purchase uses the customer's preferred channel; else any channel
USUAL_CATEGORY = 0.70  # the same for the category
SIGNUP_TO_PURCHASE_DAYS = 3.0  # mean (exponential) wait between a signup and the first purchase
REFUND_DAYS = (1.0, 30.0)  # a refund comes this long after its purchase, uniformly
FULL_REFUND = 0.6  # share of refunds that return the whole amount; the rest return 10 % to 90 %
SURVEY_DAYS = (1.0, 10.0)  # a survey is answered this long after its purchase, uniformly
MEDIAN_INCOME, INCOME_SIGMA = 42_000, 0.45  # a year's, log-normal, in `currency`
NEXT_FAMILY_STATUS = {"single": "married", "married": "divorced", "divorced": "married", "widowed": "married"}
RAISE = (0.05, 0.40)  # share by which a new income exceeds the old one, uniformly
LETTERS = {"signup": "s", "purchase": "p", "refund": "r", "survey": "v", "profile": "a"}  # of event ids
MS_PER_DAY = 86_400_000

Event = dict[str, Any]
Table = dict[str, float]  # value -> probability
Rng = np.random.Generator
Texts = NDArray[np.str_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Population:
    """Who is simulated, and when; the same population always gives the same events (for one NumPy version).

    customers: how many, each with at least one event if the window is long enough. seed: any integer >= 0.
    start, days: the window [start, start + days); what would happen later is left out, refunds included.
    acquisition_days: customers join uniformly over this first part of the window (at most `days`).
    signup_share: share of customers with a signup event before their first purchase; the others' first event
    is a purchase. never_buys: share of the signed-up customers that never buy.
    refund_share: share of purchases refunded once, partly or fully, 1 to 30 days later.
    survey_share: share of purchases followed by an answered survey 1 to 10 days later, scores 1 to 5.
    profile_share: share of the signed-up customers who send one profile event, uniformly over the rest of the
    window, with another family status or a higher income.
    currency: ISO 4217 code, the same for all amounts.
    r, alpha, a, b: BG/NBD, time in weeks. Purchases per week ~ Gamma(shape r, rate alpha); the chance to
    leave after a repeat purchase ~ Beta(a, b). The paper's estimates for CDNOW (0.243, 4.414, 0.793, 2.426)
    give 1.4 repeat purchases in 52 weeks; the defaults are no estimate but a livelier shop, with 4.3.
    p, q, gamma: gamma-gamma, in `currency`; the defaults are the CDNOW estimates. The mean amount is
    p * gamma / (q - 1), here 35.22.
    """

    customers: int = 1000
    seed: int = 1
    start: datetime = datetime(2024, 1, 1, tzinfo=UTC)
    days: int = 365
    acquisition_days: int = 180
    signup_share: float = 0.8
    never_buys: float = 0.1
    refund_share: float = 0.03
    survey_share: float = 0.1
    profile_share: float = 0.05
    currency: str = "USD"
    r: float = 0.8
    alpha: float = 6.0
    a: float = 0.8
    b: float = 6.0
    p: float = 6.25
    q: float = 3.74
    gamma: float = 15.44

    def __post_init__(self) -> None:
        if self.start.utcoffset() is None:
            raise ValueError("start must be timezone-aware")
        if min(self.customers, self.seed, self.acquisition_days) < 0 or self.days < 1:
            raise ValueError("customers, seed and acquisition_days must not be negative, days not below 1")
        shares = (self.signup_share, self.never_buys, self.refund_share, self.survey_share, self.profile_share)
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError(
                "signup_share, never_buys, refund_share, survey_share and profile_share must lie in [0, 1]"
            )
        shapes = (self.r, self.alpha, self.a, self.b, self.p, self.q - 1, self.gamma)
        if not all(0 < shape < np.inf for shape in shapes):
            raise ValueError("model parameters must be positive, and q above 1, else no mean amount exists")


def generate(population: Population) -> Iterator[Event]:
    """Yield all events by `occurred_at`; at equal times in the order of LETTERS, each kind by event id.

    Only signups and profiles carry attributes. All random numbers are drawn before the first event.
    """
    pop, n = population, population.customers
    rng = np.random.Generator(np.random.PCG64(pop.seed))
    joined = np.sort(rng.uniform(0, min(pop.acquisition_days, pop.days), n))
    signed_up = rng.random(n) < pop.signup_share
    first = joined + np.where(signed_up, rng.exponential(SIGNUP_TO_PURCHASE_DAYS, n), 0.0)
    first[signed_up & (rng.random(n) < pop.never_buys)] = np.inf
    country, channel, category = (_draw(rng, table, n) for table in (COUNTRIES, CHANNELS, CATEGORIES))

    members = np.flatnonzero(signed_up)
    signups = {
        "customer_id": _ids("c", members, 6),
        "occurred_at": _timestamps(pop, joined[members]),
        "country": country[members].tolist(),
        "channel": channel[members].tolist(),
        "attributes": _attributes(rng, pop, members.size),
    }

    who, when = _purchase_times(rng, pop, first)
    m = who.size
    nu = rng.gamma(pop.q, 1 / pop.gamma, n)
    spend = rng.gamma(pop.p, 1.0, m) / nu[who]  # so spend ~ Gamma(shape p, rate nu)
    cents = np.maximum(np.rint(spend * 100), 1).astype(np.int64)
    purchases = {
        "customer_id": _ids("c", who, 6),
        "order_id": _ids(f"gen-{pop.seed}-o-", np.arange(m), 7),
        "occurred_at": _timestamps(pop, when),
        "amount": _amounts(cents),
        "currency": [pop.currency] * m,
        "country": country[who].tolist(),
        "channel": _mostly(rng, channel[who], USUAL_CHANNEL, CHANNELS),
        "category": _mostly(rng, category[who], USUAL_CATEGORY, CATEGORIES),
    }

    refunded_at = when + rng.uniform(*REFUND_DAYS, m)
    returned = np.where(rng.random(m) < FULL_REFUND, 1.0, rng.uniform(0.1, 0.9, m))
    orders = np.flatnonzero((rng.random(m) < pop.refund_share) & (refunded_at < pop.days))
    orders = orders[np.argsort(refunded_at[orders], kind="stable")]
    refunds = {name: [column[i] for i in orders.tolist()] for name, column in purchases.items()}
    refunds["occurred_at"] = _timestamps(pop, refunded_at[orders])
    refunds["amount"] = _amounts(np.maximum((cents * returned)[orders], 1).astype(np.int64))

    # Drawn after all of the above: purchases and refunds do not depend on these.
    known = signups["attributes"]
    for attributes, more in zip(known, _more_attributes(rng, members.size), strict=True):
        attributes.update(more)
    surveys = _surveys(rng, pop, purchases["customer_id"], when)
    profiles = _profiles(rng, pop, joined[members], signups["customer_id"], known)

    kinds = dict(zip(LETTERS, (signups, purchases, refunds, surveys, profiles), strict=True))
    streams = [_events(pop, kind, columns) for kind, columns in kinds.items()]
    yield from heapq.merge(*streams, key=itemgetter("occurred_at"))  # stable: earlier streams win ties


def _purchase_times(rng: Rng, pop: Population, first: Floats) -> tuple[Ints, Floats]:
    """BG/NBD: customer and day of each purchase, by day; `first` is the day of each first purchase."""
    rate = np.maximum(rng.gamma(pop.r, 1 / pop.alpha, pop.customers) / 7, 1e-300)  # per day; never exactly 0
    dropout = rng.beta(pop.a, pop.b, pop.customers)
    buyers = np.flatnonzero(first < pop.days)
    now = first[buyers]
    stay = np.full(buyers.size, True)  # as in the paper, nobody leaves after the first purchase
    whos, whens = [buyers], [now]
    while buyers.size:  # one round: the next purchase of everyone still active
        buyers, now = buyers[stay], now[stay]
        now = now + rng.standard_exponential(buyers.size) / rate[buyers]
        buyers, now = buyers[now < pop.days], now[now < pop.days]
        stay = rng.random(buyers.size) >= dropout[buyers]
        whos.append(buyers)
        whens.append(now)
    who, when = np.concatenate(whos), np.concatenate(whens)
    order = np.lexsort((who, when))
    return who[order], when[order]


def _surveys(rng: Rng, pop: Population, customers: list[str], when: Floats) -> dict[str, list[Any]]:
    """Answers to some of the purchases' surveys, by time."""
    answered_at = when + rng.uniform(*SURVEY_DAYS, when.size)
    score = rng.choice(list(SCORES), when.size, p=list(SCORES.values()))
    asked = np.flatnonzero((rng.random(when.size) < pop.survey_share) & (answered_at < pop.days))
    asked = asked[np.argsort(answered_at[asked], kind="stable")]
    return {
        "customer_id": [customers[i] for i in asked.tolist()],
        "occurred_at": _timestamps(pop, answered_at[asked]),
        "score": score[asked].tolist(),
    }


def _profiles(
    rng: Rng, pop: Population, joined: Floats, customers: list[str], known: list[dict[str, Any]]
) -> dict[str, list[Any]]:
    """Some members' news, by time: each has either another family status or a higher income."""
    size = joined.size
    at = joined + rng.random(size) * (pop.days - joined)
    higher, raised = rng.random(size) < 0.5, rng.uniform(*RAISE, size)
    sending = np.flatnonzero(rng.random(size) < pop.profile_share)
    sending = sending[np.argsort(at[sending], kind="stable")]
    news: list[dict[str, Any]] = []
    for i in sending.tolist():
        if higher[i]:
            income = known[i]["income"]
            news.append({"income": income + max(round(income * raised[i] / 100), 1) * 100})
        else:
            news.append({"family_status": NEXT_FAMILY_STATUS[known[i]["family_status"]]})
    return {
        "customer_id": [customers[i] for i in sending.tolist()],
        "occurred_at": _timestamps(pop, at[sending]),
        "attributes": news,
    }


def _events(pop: Population, kind: str, columns: dict[str, list[Any]]) -> Iterator[Event]:
    """Rows of one kind of event, numbered in the order given."""
    for number, row in enumerate(zip(*columns.values(), strict=True)):
        event_id = f"gen-{pop.seed}-{LETTERS[kind]}-{number:07d}"
        yield {"event_id": event_id, "kind": kind, **dict(zip(columns, row, strict=True))}


def _attributes(rng: Rng, pop: Population, size: int) -> list[dict[str, Any]]:
    """Signup attributes, one dict per new member; `industry` only where it is known."""
    columns = {
        "gender": _draw(rng, GENDERS, size).tolist(),
        "birth_year": (pop.start.year - rng.integers(18, 80, size)).tolist(),
        "education": _draw(rng, EDUCATIONS, size).tolist(),
        "family_status": _draw(rng, FAMILY_STATUSES, size).tolist(),
        "industry": _draw(rng, INDUSTRIES, size).tolist(),
    }
    rows = zip(*columns.values(), strict=True)
    return [{name: value for name, value in zip(columns, row, strict=True) if value != ""} for row in rows]


def _more_attributes(rng: Rng, size: int) -> list[dict[str, Any]]:
    """Signup attributes beyond those of `_attributes`, one dict per new member."""
    incomes = np.rint(rng.lognormal(np.log(MEDIAN_INCOME), INCOME_SIGMA, size) / 100).astype(np.int64) * 100
    hobbies = _draw(rng, HOBBIES, size).tolist()
    return [{"income": income, "hobby": hobby} for income, hobby in zip(incomes.tolist(), hobbies, strict=True)]


def _draw(rng: Rng, table: Table, size: int) -> Texts:
    return rng.choice(np.array(list(table)), size, p=list(table.values()))


def _mostly(rng: Rng, usual: Texts, chance: float, table: Table) -> list[str]:
    """The usual value with this chance, else any value of the table."""
    return list(np.where(rng.random(usual.size) < chance, usual, _draw(rng, table, usual.size)).tolist())


def _ids(prefix: str, numbers: Ints, width: int) -> list[str]:
    return [f"{prefix}{number:0{width}d}" for number in numbers.tolist()]


def _amounts(cents: Ints) -> list[str]:
    return [f"{c // 100}.{c % 100:02d}" for c in cents.tolist()]


def _timestamps(pop: Population, days: Floats) -> list[str]:
    """RFC 3339 in UTC with milliseconds; of fixed width, so that text order is time order."""
    start = np.datetime64(pop.start.astimezone(UTC).replace(tzinfo=None), "ms")
    moments = start + (days * MS_PER_DAY).astype(np.int64).astype("timedelta64[ms]")
    return list(np.datetime_as_string(moments, unit="ms", timezone="UTC").tolist())
