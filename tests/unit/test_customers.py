"""Stored customers in the form that people read."""

from models.policy import Policy
from streams.customers import customer_of
from tests.unit.build import Feeder, at, make_policy, purchase, refund, signup, text


def shard_of(policy: Policy | None = None) -> Feeder:
    feeder = Feeder(policy)
    feeder.feed(
        signup("a", "1", at(0, 1), country="DE"),
        purchase("a", "2", at(1), "12.50", channel="web"),
        refund("a", "3", at(2), "20.00"),
        refund("b", "4", at(3), "1.00"),
    )
    return feeder


def test_a_customer_is_described_in_full() -> None:
    """Instants are RFC 3339, amounts decimal text of the base currency, attributes and labels are named."""
    assert customer_of(shard_of().store, 0, "a") == {
        "customer_id": "a",
        "signed_up_at": text(at(0, 1)),
        "first_purchase_at": text(at(1)),
        "last_purchase_at": text(at(1)),
        "orders": 1,
        "refunds": 1,
        "gross": "12.50",
        "refunded": "20.00",
        "net": "-7.50",
        "currency": "USD",
        "attributes": {"country": "DE", "channel": "web"},
        "segments": {"lifecycle": "new"},
    }


def test_what_is_not_known_is_absent() -> None:
    """A customer without purchase, signup, attribute and segment has None for them, or leaves them out."""
    customer = customer_of(shard_of().store, 0, "b")
    assert customer is not None
    assert [customer[name] for name in ("signed_up_at", "first_purchase_at", "last_purchase_at")] == [None] * 3
    assert (customer["attributes"], customer["segments"]) == ({}, {"lifecycle": None})


def test_an_unknown_customer_is_none() -> None:
    """Of a customer who was never seen there is nothing, also in a store that holds nothing."""
    assert customer_of(shard_of().store, 0, "c") is None
    assert customer_of(Feeder().store, 0, "a") is None


def test_one_customer_is_described_as_among_all() -> None:
    """Read alone or with all others, a customer is the same."""
    feeder = shard_of(make_policy(base="USD", keep=[], dimensions={"one": ("1d", 2, "2d"), "two": ("1d", 3, "9d")}))
    feeder.advance(at(4))
    every = feeder.customers()
    assert every["a"]["segments"] == {"one": "lapsed", "two": "new"}
    assert {name: customer_of(feeder.store, 0, name) for name in every} == every
