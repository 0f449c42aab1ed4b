"""Replay: recorded events through the processor that workers run, in process."""

import random
from collections.abc import Iterable
from typing import Any

import orjson
import pytest

from models.changes import SegmentChanged
from models.instants import parse
from models.policy import Policy, default_policy
from streams.generator import Population, generate
from streams.recorded import recorded_event
from streams.replay import Replay, Replayed
from streams.replay import replay as replay_under
from tests.unit.build import Event, at, erasure, make_policy, purchase, refund, signup, text, tick

EVENTS = list(generate(Population(customers=150, seed=3, refund_share=0.1)))
UNTIL = "2025-06-01T00:00:00Z"
LIFECYCLE = make_policy()
#: Clusters are learned from fewer customers than there are, so that it matters who is drawn.
KIND = '\n[dimensions.kind]\nengine = "cluster"\nclusters = 3\nsample = 100\nfeatures = ["recency_days", "monetary"]\n'
CLUSTERS = make_policy(more=KIND)
POLICIES = {"lifecycle": LIFECYCLE, "default": default_policy(), "clusters": CLUSTERS}


def replay(events: Iterable[Event], policy: Policy = LIFECYCLE, **how: Any) -> list[SegmentChanged]:
    """The changes of the lifecycle alone, if no policy is given."""
    return replay_under(events, policy, **how)


def run(values: list[Any], shards: int = 1, batch_size: int = 5000, until: int | None = None) -> Replayed:
    """A replay of events, or of raw lines, with everything it found."""
    feeder = Replay(make_policy(), shards, batch_size)
    raw = [value if isinstance(value, bytes) else orjson.dumps(value) for value in values]
    progress = list(feeder.feed(recorded_event(value, "lines.ndjson", line) for line, value in enumerate(raw, start=1)))
    assert progress == [*range(batch_size, len(raw), batch_size), *([len(raw)] if raw else [])]
    return feeder.finish(until)


def without_decided_at(changes: list[SegmentChanged]) -> list[dict[str, Any]]:
    return [{name: value for name, value in change.items() if name != "decided_at"} for change in changes]


def test_replay_gives_the_changes_of_events() -> None:
    """Events as on the topics go in, changes as published come out, in the order in which they took effect."""
    changes = replay([signup("a", "1", at(0)), purchase("b", "2", at(1), "2.50"), tick(at(40))])
    assert [(c["customer_id"], c["from"], c["to"], c["cause"], c["effective_at"]) for c in changes] == [
        ("a", None, "new", "signup", text(at(0))),
        ("b", None, "new", "purchase", text(at(1))),
        ("a", "new", "potential", "time", text(at(30))),
    ]
    assert changes[1]["rfm"] == {"recency_days": 0, "frequency": 1, "monetary": "2.50", "currency": "USD"}
    assert not any(change["backfill"] for change in changes)


def test_no_events_have_no_changes() -> None:
    """Nothing in, nothing out, with and without an end."""
    assert replay([]) == []
    assert replay([], until=UNTIL) == []
    assert replay([], shards=4) == []


def test_events_may_be_any_iterable() -> None:
    """A generator of events is read once."""
    assert len(replay(purchase(c, c, at(0)) for c in "abc")) == 3


def test_until_ends_the_replay() -> None:
    """Time reaches the instant given, and deadlines before it pass; one exactly at it does not."""
    events = [purchase("a", "1", at(0))]
    assert len(replay(events)) == 1
    assert len(replay(events, until=text(at(90)))) == 1
    changes = replay(events, until=text(at(90, 1)))
    assert [change["effective_at"] for change in changes] == [text(at(0)), text(at(90))]
    assert changes[1]["decided_at"] == text(at(90, 1))
    assert replay(events, until="2024-12-31T23:00:00-01:00")[1]["decided_at"] == "2025-01-01T00:00:00Z"


def test_an_end_in_the_past_is_no_step_back() -> None:
    """An until before the last event changes nothing."""
    events = [purchase("a", "1", at(0)), purchase("b", "2", at(100))]
    assert replay(events, until=text(at(5))) == replay(events)


def test_a_replay_ends_at_the_last_instant_that_any_shard_has_seen() -> None:
    """Without an end, customers of every shard lapse by the last event of all."""
    events = [*(purchase(f"c{i}", f"{i}", at(0)) for i in range(20)), purchase("c0", "x", at(100))]
    for shards in (1, 7):
        assert sum(change["to"] == "lapsed" for change in replay(events, shards=shards)) == 20


def test_ticks_reach_every_shard() -> None:
    """A tick moves the time of all shards, and its customer, if it names one, does not matter."""
    events = [purchase(f"c{i}", f"{i}", at(0)) for i in range(20)]
    for end in (tick(at(91)), {**tick(at(91)), "customer_id": "c3"}):
        changes = replay([*events, end, tick(at(95))], shards=5)
        lapses = [change for change in changes if change["cause"] == "time"]
        assert len(lapses) == 20
        assert {change["decided_at"] for change in lapses} == {text(at(91))}


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        ({**purchase("a", "2", at(1)), "amount": "-5"}, r"event 2 cannot be used: amount: .* \(invalid_field\)"),
        ({"kind": "purchase"}, r"event 2 cannot be used: event_id: is missing, and required \(missing_field\)"),
        ({**purchase("a", "2", at(1)), "currency": "SEK"}, r"event 2 cannot be used: no rate .* \(unknown_currency\)"),
        ({**purchase("a", "2", at(1)), "customer_id": None}, r"event 2 cannot be used: .*\(missing_field\)"),
        ({}, "event 2 cannot be used: "),
    ],
)
@pytest.mark.parametrize("shards", [1, 4])
def test_a_dead_letter_is_an_error(event: Event, sentence: str, shards: int) -> None:
    """An event that a worker would refuse raises ValueError with its place, the reason and the code."""
    with pytest.raises(ValueError, match=sentence):
        replay([purchase("a", "1", at(0)), event, purchase("a", "3", at(2))], shards=shards)


def test_the_policy_is_the_default_one_or_the_one_given() -> None:
    """Another policy gives other changes."""
    events = [purchase("a", "1", at(0)), purchase("a", "2", at(1))]
    changes = replay_under(events)
    assert changes == replay(events, default_policy())
    assert {change["dimension"] for change in changes} > {"lifecycle"}
    assert [change["to"] for change in changes if change["dimension"] == "lifecycle"] == ["new"]
    policy = make_policy(dimensions={"pace": ("1d", 2, "3d")}, version=4)
    changes = replay(events, policy, until=text(at(5)))
    assert [(c["dimension"], c["to"], c["policy_version"]) for c in changes] == [
        ("pace", "new", 4), ("pace", "regular", 4), ("pace", "lapsed", 4),
    ]  # fmt: skip


def test_changes_are_in_the_order_of_files() -> None:
    """By effective_at, then the input's order with time's own changes last, then customer_id."""
    events = [
        signup("z", "1", at(0)), purchase("y", "2", at(0)), purchase("x", "3", at(0)), purchase("b", "4", at(90)),
        purchase("a", "5", at(90)), tick(at(200)),
    ]  # fmt: skip
    changes = replay(events, shards=3)
    assert [(change["customer_id"], change["to"]) for change in changes] == [
        ("z", "new"), ("y", "new"), ("x", "new"), ("z", "potential"), ("b", "new"), ("a", "new"),
        ("x", "lapsed"), ("y", "lapsed"), ("z", "lapsed"), ("a", "lapsed"), ("b", "lapsed"),
    ]  # fmt: skip


@pytest.mark.parametrize("batch_size", [1, 7, 100])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_batches_make_no_difference(policy: Policy, batch_size: int) -> None:
    """The same input gives the same bytes whatever the batch size, with population cut-offs and without."""
    whole = replay(EVENTS, policy, until=UNTIL)
    assert orjson.dumps(replay(EVENTS, policy, until=UNTIL, batch_size=batch_size)) == orjson.dumps(whole)
    assert bool({change["cause"] for change in whole} & {"population", "model"}) == policy.needs_population
    assert ("model" in {change["cause"] for change in whole}) == bool(policy.clusters)


@pytest.mark.parametrize("batch_size", [7, 5000])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_batches_make_no_difference_out_of_order(policy: Policy, batch_size: int) -> None:
    """Neither do they when events are late, redelivered and erased."""
    rng = random.Random(5)
    events = sorted(EVENTS, key=lambda event: parse(event["occurred_at"]) + rng.randrange(40) * 86_400_000_000)
    events += rng.sample(EVENTS, 50)
    events[400:400] = [
        erasure(event["customer_id"], f"x{i}", at(120)) for i, event in enumerate(rng.sample(EVENTS, 20))
    ]
    whole = replay(events, policy, batch_size=100)
    assert orjson.dumps(replay(events, policy, batch_size=batch_size)) == orjson.dumps(whole)
    causes = {change["cause"] for change in whole}
    lifecycle = {"signup", "purchase", "time", "late_event", "erasure"}
    assert causes >= lifecycle if policy.needs_population else causes == lifecycle


@pytest.mark.parametrize("shards", [2, 4, 13])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_shards_make_no_difference_in_time_order(policy: Policy, shards: int) -> None:
    """Input in time order gives the same changes on any number of shards, but for decided_at; cut-offs are alike."""
    one, many = replay(EVENTS, policy, until=UNTIL), replay(EVENTS, policy, until=UNTIL, shards=shards)
    assert ("model" in {change["cause"] for change in one}) == bool(policy.clusters)
    assert without_decided_at(many) == without_decided_at(one)
    assert many != one


def test_dead_letters_say_where_the_line_was() -> None:
    """A dead letter names the file and the line, keeps the line as it was, and they come in the input's order."""
    values = [b"garbage", purchase("a", "1", at(0)), {**purchase("b", "2", at(1)), "amount": "x"}, b"\xff", tick(at(2))]
    for shards in (1, 3):
        result = run(values, shards, batch_size=2)
        assert result.events == 5
        assert len(result.changes) == 1
        assert [(letter["topic"], letter["offset"], letter["code"]) for letter in result.dead_letters] == [
            ("lines.ndjson", 1, "invalid_json"), ("lines.ndjson", 3, "invalid_field"),
            ("lines.ndjson", 4, "invalid_json"),
        ]  # fmt: skip
        assert result.dead_letters[0]["value"] == "garbage"
        assert result.dead_letters[2]["encoding"] == "base64"


def test_a_bad_tick_is_one_dead_letter() -> None:
    """One line of the input is one dead letter, however many shards there are."""
    assert [letter["code"] for letter in run([{"kind": "tick"}], shards=4).dead_letters] == ["missing_field"]


def test_customers_and_segments_at_the_end() -> None:
    """The final customers come by customer_id, the segments' sizes sum all shards."""
    events = [
        purchase("b", "1", at(0), "4.00"),
        refund("b", "2", at(1), "1.50"),
        signup("a", "3", at(20)),
        purchase("c", "4", at(99)),
    ]
    for shards in (1, 4):
        result = run(events, shards)
        assert [customer["customer_id"] for customer in result.customers()] == ["a", "b", "c"]
        assert result.segments == {
            "lifecycle:new": (1, 100, 1),
            "lifecycle:potential": (1, 0, 0),
            "lifecycle:regular": (0, 0, 0),
            "lifecycle:lapsed": (1, 250, 1),
        }
    assert next(iter(run(events).customers())) == {
        "customer_id": "a",
        "signed_up_at": text(at(20)),
        "first_purchase_at": None,
        "last_purchase_at": None,
        "orders": 0,
        "refunds": 0,
        "gross": "0.00",
        "refunded": "0.00",
        "net": "0.00",
        "currency": "USD",
        "surveys": 0,
        "satisfaction": None,
        "attributes": {},
        "segments": {"lifecycle": "potential"},
    }
