"""Clusters against the plain reference: one customer, one event and one day at a time."""

from collections.abc import Mapping
from math import log1p
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from models.activation import Activation
from models.clusters import ClusterModel
from models.instants import NEVER, parse
from models.policy import parse_policy
from models.population import Cutoffs
from streams.store.memory import MemoryStore
from tests.unit.build import DAY, Event, Feeder, at, purchase, refund, tick

FEATURES = ("recency_days", "orders", "monetary", "tenure_days")
LAST = 150

POLICY = """
[dimensions.kind]
engine = "cluster"
clusters = {clusters}
features = ["recency_days", "orders", "monetary", "tenure_days"]
margin = {margin}
"""


class Clustering(NamedTuple):
    """Centres in standardised units, what standardises, and the margin in percent."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    centres: tuple[tuple[float, ...], ...]
    margin: int


class Plain:
    """One customer."""

    def __init__(self, by: Clustering) -> None:
        self.by = by
        self.bought: list[int] = []
        self.net = 0
        self.label: int | None = None
        self.moves: list[tuple[int | None, int, str, int]] = []
        self.day = 0

    def relabel(self, instant: int, cause: str, effective_at: int) -> None:
        """Ask whether another centre is near enough."""
        if not self.bought:
            return
        recency, tenure = ((instant - since) // DAY for since in (self.bought[-1], self.bought[0]))
        values = (recency, len(self.bought), self.net / 100, tenure)
        logs = [round(log1p(abs(value)), 9) * (1 if value > 0 else -1) for value in values]
        point = [(log - mean) / scale for log, mean, scale in zip(logs, self.by.mean, self.by.scale, strict=True)]
        squares = [_square(point, centre) for centre in self.by.centres]
        nearest = squares.index(min(squares))
        if self.label is not None:
            own, here = squares[self.label], self.by.centres[self.label]
            if not any(
                own - other > self.by.margin / 100 * _square(here, centre)
                for other, centre in zip(squares, self.by.centres, strict=True)
            ):
                return
        if nearest != self.label:
            self.moves.append((self.label, nearest, cause, effective_at))
            self.label = nearest

    def pass_days(self, until: int) -> None:
        """Ask at the turn of each of the customer's days, those since the last and since the first purchase."""
        turns = {since + days * DAY for since in (*self.bought[:1], *self.bought[-1:]) for days in range(1, LAST + 1)}
        for turn in sorted(turn for turn in turns if self.day < turn <= until):
            self.relabel(turn, "time", turn - 1)
        self.day = max(self.day, until)


def _square(one: Any, other: Any) -> float:
    return sum((a - b) * (a - b) for a, b in zip(one, other, strict=True))


#: Some centres differ by next to nothing.
numbers = st.tuples(st.integers(-20, 20), st.sampled_from([0, 0, 0, 1, -2])).map(lambda n: n[0] / 10 + n[1] / 1000)


@st.composite
def clusterings(draw: st.DrawFn) -> Clustering:
    """Two to four centres that differ."""
    points = st.tuples(numbers, numbers, numbers, numbers)
    centres = draw(st.lists(points, min_size=2, max_size=4, unique=True))
    scale = draw(st.tuples(*[st.sampled_from([0.5, 0.7, 1.5])] * 4))
    return Clustering((2.1, 0.9, 1.7, 3.0), scale, tuple(centres), draw(st.sampled_from([0, 5, 10, 60])))


@st.composite
def in_time_order(draw: st.DrawFn) -> list[Event]:
    """Purchases and refunds of two customers."""
    events = []
    days = st.tuples(st.integers(0, 60), st.integers(0, 3))
    for number, (day, second) in enumerate(sorted(draw(st.lists(days, min_size=1, max_size=12)))):
        kind = draw(st.sampled_from([purchase, purchase, purchase, refund]))
        amount = f"{draw(st.integers(0, 3000)) / 100:.2f}"
        instant = at(day, second * 1_000_000 + number)
        events.append(kind(draw(st.sampled_from("ab")), f"e{number}", instant, amount))
    return events


def moves_of(events: list[Event], by: Clustering, until: int) -> dict[str, Any]:
    """Every customer's moves."""
    customers: dict[str, Plain] = {}
    for event in events:
        customer = customers.setdefault(event["customer_id"], Plain(by))
        instant = parse(event["occurred_at"])
        customer.pass_days(instant)
        customer.net += int(event["amount"].replace(".", "")) * (1 if event["kind"] == "purchase" else -1)
        if event["kind"] == "purchase":
            customer.bought.append(instant)
        customer.relabel(instant, event["kind"], instant)
    for customer in customers.values():
        customer.pass_days(until)
    return {name: customer.moves for name, customer in customers.items() if customer.moves}


@settings(max_examples=150)
@given(in_time_order(), clusterings(), st.integers(1, 5), st.booleans())
def test_moves_equal_the_plain_reference(events: list[Event], by: Clustering, size: int, reload: bool) -> None:
    """Every move, its cause and instant are the reference's, whatever the batches, and over any restart."""
    count = len(by.centres)
    model = ClusterModel(
        version=7, as_of=at(0), features=FEATURES, mean=by.mean, scale=by.scale, centres=by.centres,
        titles=tuple("abcd"[:count]), shares=(1 / count,) * count, samples=1, drifts=0, error=0.0, silhouette=0.0,
    )  # fmt: skip
    policy = parse_policy(POLICY.format(clusters=count, margin=by.margin) + '[population]\nevery = "9999d"')
    store = MemoryStore()
    cutoffs = Cutoffs(at(0), clusters={"kind": model})
    store.activate(Activation(1, "policy", 1, NEVER, NEVER, True, cutoffs), policy.text)
    feeder, found = Feeder(policy, store=store), dict[str, Any]()
    batches = [events[start : start + size] for start in range(0, len(events), size)]
    for batch in [*batches, [tick(at(LAST))]]:
        for change in feeder.feed(*batch):
            assert_told(change, model)
            found.setdefault(change["customer_id"], []).append(
                (code(change["from"]), code(change["to"]), change["cause"], parse(change["effective_at"]))
            )
        if reload:
            feeder.load()
    assert found == moves_of(events, by, at(LAST))


def assert_told(change: Mapping[str, Any], model: ClusterModel) -> None:
    """The change says the model's version and title."""
    assert change["model_version"] == 7
    assert change["title"] == model.titles[code(change["to"]) or 0]


def code(label: str | None) -> int | None:
    """``c2`` is 1."""
    return None if label is None else int(label[1:]) - 1
