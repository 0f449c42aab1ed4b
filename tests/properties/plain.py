"""The plain reference for dimensions beyond the lifecycle: one customer, one event at a time, no shared code.

A label is a function of the customer's events so far and an instant. What time does is found by asking at every
instant at which anything could turn. The definitions are those of DIMENSIONS in test_dimensions.py, written again.
Events must come in time order.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, NamedTuple

DAY = 86_400_000_000
MONTH = 2_629_800_000_000
LANDMARK = 18_262 * DAY
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Event = Mapping[str, Any]


class Move(NamedTuple):
    """One label move of a customer."""

    dimension: str
    before: str | None
    after: str | None
    cause: str
    effective_at: int


def instant_of(event: Event) -> int:
    """Microseconds since 1970."""
    return round((datetime.fromisoformat(event["occurred_at"]) - EPOCH).total_seconds() * 1_000_000)


def cents(event: Event) -> int:
    """The amount in cents."""
    return int(event["amount"].replace(".", ""))


class Plain:
    """One customer."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.segments: dict[str, str | None] = {}
        self.moves: list[Move] = []
        self.time = -(2**62)

    def bought(self) -> list[Event]:
        """Purchases so far."""
        return [event for event in self.events if event["kind"] == "purchase"]

    def latest(self, name: str) -> Any:
        """The attribute's latest value; at one instant, the greater."""
        known = []
        for event in self.events:
            value = event.get(name, event.get("attributes", {}).get(name))
            if value is not None:
                known.append((instant_of(event), value))
        return max(known)[1] if known else None

    def label(self, dimension: str, at: int) -> str | None:
        """The segment at an instant; dimensions above have been labelled."""
        found: str | None = RULES[dimension](self, at)
        return found

    def turns(self) -> set[int]:
        """Every first instant at which anything may be otherwise, if nothing happens."""
        if not self.events:
            return set()
        new_years = [datetime(year, 1, 1, tzinfo=UTC) - EPOCH for year in range(2023, 2027)]
        found = {round(since.total_seconds()) * 1_000_000 for since in new_years}
        bought = [instant_of(event) for event in self.bought()]
        signups = [instant_of(event) for event in self.events if event["kind"] == "signup"]
        for since in [*bought[-1:], *signups[:1]]:
            found |= {since + days * DAY + 1 for days in (10, 30)}
        if bought:
            found |= {bought[-1] + days * DAY for days in (0, 5, 10, 25)}
            found |= {bought[0] + len(bought) * MONTH // each + 1 for each in (1, 4)}
        return found

    def pass_time(self, until: int) -> None:
        """What time alone does up to an instant."""
        for turn in sorted(turn for turn in self.turns() if self.time < turn <= until):
            self._relabel(turn, "time", turn - 1)
        self.time = max(self.time, until)

    def apply(self, event: Event) -> None:
        """One event, after what time has done by then."""
        at = instant_of(event)
        self.pass_time(at)
        if event["kind"] == "erasure":
            for dimension, label in self.segments.items():
                if label is not None:
                    self.moves.append(Move(dimension, label, None, "erasure", at))
            self.events, self.segments = [], {}
            return
        self.events.append(event)
        self._relabel(at, event["kind"], at)

    def _relabel(self, at: int, cause: str, effective_at: int) -> None:
        for dimension in RULES:
            before, after = self.segments.get(dimension), self.label(dimension, at)
            self.segments[dimension] = after
            if before != after:
                self.moves.append(Move(dimension, before, after, cause, effective_at))


def _lifecycle(customer: Plain, at: int) -> str | None:
    bought = customer.bought()
    signups = [instant_of(event) for event in customer.events if event["kind"] == "signup"]
    if bought:
        if at > max(map(instant_of, bought)) + 30 * DAY:
            return "lapsed"
        return "regular" if len(bought) >= 2 else "new"
    if signups:
        if at > min(signups) + 30 * DAY:
            return "lapsed"
        return "potential" if at > min(signups) + 10 * DAY else "new"
    return None


def _spend(customer: Plain, at: int) -> str | None:
    amounts = [cents(event) for event in customer.bought()]
    if not amounts:
        return None
    return "large" if Fraction(sum(amounts), len(amounts)) >= 250 else "small"


def _recency(customer: Plain, at: int) -> str | None:
    bought = customer.bought()
    if not bought:
        return None
    days = Fraction(at - max(map(instant_of, bought)), DAY)
    return "cold" if days >= 25 else "warm" if days >= 5 else "hot"


def _pace(customer: Plain, at: int) -> str | None:
    bought = customer.bought()
    if not bought:
        return None
    months = max(Fraction(at - min(map(instant_of, bought)), MONTH), Fraction(1))
    pace = len(bought) / months
    return "weekly" if pace >= 4 else "monthly" if pace >= 1 else "rare"


def _age(customer: Plain, at: int) -> str | None:
    born = customer.latest("birth_year")
    if born is None:
        return None
    year = datetime.fromtimestamp(at // 1_000_000, tz=UTC).year
    return None if year < born else "adult" if year - born >= 30 else "young"


def _mood(customer: Plain, at: int) -> str | None:
    scores = [Fraction(str(event["score"])) for event in customer.events if event["kind"] == "survey"]
    if not scores:
        return None
    return "happy" if sum(scores) / len(scores) >= 3 else "unhappy"


def _region(customer: Plain, at: int) -> str | None:
    country = customer.latest("country")
    if country is None:
        return None
    return {"de": "dach", "at": "dach", "fr": "france"}.get(country.casefold(), "elsewhere")


def _leading(weights: Mapping[str, Fraction], margin: int) -> str | None:
    whole = sum(weights.values(), Fraction(0))
    if not whole:
        return None
    first, second, *_ = [*sorted(weights.items(), key=lambda each: -each[1]), ("", Fraction(0))]
    lead = first[1] - second[1]
    return first[0] if lead > 0 and 100 * lead >= margin * whole else "mixed"


def _taste(customer: Plain, at: int) -> str | None:
    weights: dict[str, Fraction] = {}
    for event in customer.bought():
        group = {"food": "food", "toys": "toys", "games": "toys"}.get(event.get("category", ""))
        if group is not None:
            doublings = (instant_of(event) - LANDMARK) // (30 * DAY)
            weights[group] = weights.get(group, Fraction(0)) + Fraction(2) ** doublings
    return _leading(weights, 10)


def _place(customer: Plain, at: int) -> str | None:
    weights: dict[str, Fraction] = {}
    for event in customer.bought():
        if "channel" in event:
            group = {"web": "online", "shop": "store"}.get(event["channel"], "other")
            weights[group] = weights.get(group, Fraction(0)) + cents(event)
    return _leading(weights, 0)


def _care(customer: Plain, at: int) -> str | None:
    bought = customer.bought()
    lifecycle = customer.segments.get("lifecycle")
    if lifecycle == "regular" and at - max(map(instant_of, bought)) >= 10 * DAY:
        return "save"
    if customer.latest("hobby") == "chess" and customer.segments.get("taste") == "toys":
        return "play"
    return None


def _last(customer: Plain, at: int) -> str | None:
    return "cared_for" if customer.segments.get("care") in ("save", "win") else "none_of_them"


#: In the order of the policy. Without value, nobody is won back.
RULES: dict[str, Callable[[Plain, int], str | None]] = {
    "lifecycle": _lifecycle,
    "spend": _spend,
    "recency": _recency,
    "pace": _pace,
    "age": _age,
    "mood": _mood,
    "region": _region,
    "taste": _taste,
    "place": _place,
    "care": _care,
    "last": _last,
}


def moves_of(events: Sequence[Event], until: int) -> dict[str, list[Move]]:
    """Every customer's moves, in order; a tick moves nobody by itself."""
    customers: dict[str, Plain] = {}
    for event in events:
        if event["kind"] != "tick":
            customers.setdefault(event["customer_id"], Plain()).apply(event)
    for customer in customers.values():
        customer.pass_time(until)
    return {name: customer.moves for name, customer in customers.items() if customer.moves}
