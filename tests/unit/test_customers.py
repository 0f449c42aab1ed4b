"""Stored customers as people and other programs read them."""

from typing import Any

import pytest

from models.errors import StateError
from streams.customers import customer_of, customers_of
from streams.store.memory import MemoryStore
from tests.unit.build import Feeder, at, erasure, make_policy, profile, purchase, refund, signup, survey, text
from tests.unit.fakes import switch


def every(feeder: Feeder) -> dict[str, dict[str, Any]]:
    return {each["customer_id"]: each for each in customers_of(feeder.store, 0)}


def test_a_customer_in_full() -> None:
    """Instants as RFC 3339, amounts as decimal texts, codes as the texts they stand for."""
    feeder = Feeder()
    feeder.feed(
        signup("a", "1", at(0), country="DE"),
        purchase("a", "2", at(1, 5), "10.00", channel="web"),
        purchase("a", "3", at(3), "0.50"),
        refund("a", "4", at(4), "12.75"),
    )
    assert customer_of(feeder.store, 0, "a") == {
        "customer_id": "a",
        "signed_up_at": text(at(0)),
        "first_purchase_at": text(at(1, 5)),
        "last_purchase_at": text(at(3)),
        "orders": 2,
        "refunds": 1,
        "gross": "10.50",
        "refunded": "12.75",
        "net": "-2.25",
        "currency": "USD",
        "surveys": 0,
        "satisfaction": None,
        "attributes": {"country": "DE", "channel": "web"},
        "segments": {"lifecycle": "new"},
    }


def test_what_is_not_known_is_absent() -> None:
    """No purchase and no signup: null; no value of an attribute: not there; no segment: null."""
    feeder = Feeder()
    feeder.feed(refund("a", "1", at(0), "1.00"))
    found = customer_of(feeder.store, 0, "a")
    assert found is not None
    assert (found["signed_up_at"], found["first_purchase_at"], found["last_purchase_at"]) == (None, None, None)
    assert found["attributes"] == {}
    assert found["segments"] == {"lifecycle": None}
    assert (found["orders"], found["refunds"], found["net"]) == (0, 1, "-1.00")


def test_nobody_is_none() -> None:
    """A customer who is not stored, never was or is erased, is None; an unknown shard has no customers."""
    feeder = Feeder()
    assert customer_of(feeder.store, 0, "a") is None
    assert customer_of(MemoryStore(), 5, "a") is None
    assert list(customers_of(MemoryStore(), 5)) == []
    feeder.feed(purchase("a", "1", at(0)))
    feeder.feed(erasure("a", "2", at(1)))
    assert customer_of(feeder.store, 0, "a") is None
    assert every(feeder) == {}


def test_all_and_one_agree() -> None:
    """Each customer looks the same in a list and alone."""
    feeder = Feeder()
    events = [purchase(f"c{i}", f"{i}", at(i), f"{i}.25", country=f"C{i % 4}") for i in range(30)]
    feeder.feed(*events, signup("s", "s", at(2)))
    found = every(feeder)
    assert len(found) == 31
    assert all(customer_of(feeder.store, 0, name) == each for name, each in found.items())


@pytest.mark.parametrize(
    ("base", "amount", "shown"), [("JPY", "1200", "1200"), ("KWD", "1.234", "1.234"), ("USD", "5", "5.00")]
)
def test_amounts_have_the_decimals_of_the_currency(base: str, amount: str, shown: str) -> None:
    """As ISO 4217 gives them, in the base currency the rows were written in."""
    feeder = Feeder(make_policy(base=base))
    feeder.feed(purchase("a", "1", at(0), amount, currency=base))
    found = customer_of(feeder.store, 0, "a")
    assert found is not None
    assert (found["gross"], found["net"], found["currency"]) == (shown, shown, base)


def test_rows_of_several_policies_lie_side_by_side() -> None:
    """Each row is read by the layout it was written in."""
    feeder = Feeder(make_policy(keep=["country"]))
    feeder.feed(purchase("old", "1", at(0), country="DE", channel="web"))
    # Whoever is not moved by it stays as written.
    assert switch(feeder, make_policy(keep=["channel", "country"], numbers=["income"])) == []
    feeder.feed(purchase("new", "2", at(1), country="FR", channel="shop"))
    found = every(feeder)
    assert len(feeder.store.header(0).layouts) == 2
    assert found["old"]["attributes"] == {"country": "DE"}
    assert found["new"]["attributes"] == {"channel": "shop", "country": "FR"}


def test_a_policy_with_another_dimension_shows_with_everybody() -> None:
    """A new dimension labels every customer, and so every row is written anew."""
    feeder = Feeder()
    feeder.feed(purchase("a", "1", at(0)), refund("b", "2", at(0)))
    lifecycle = ("30d", 3, "90d")
    changes = switch(feeder, make_policy(dimensions={"fast": ("1d", 2, "7d"), "lifecycle": lifecycle}))
    assert [(each["customer_id"], each["dimension"], each["to"], each["cause"]) for each in changes] == [
        ("a", "fast", "new", "policy")
    ]
    assert every(feeder)["a"]["segments"] == {"fast": "new", "lifecycle": "new"}
    # Nothing has changed for whoever has no segment, and their row says so in its own layout.
    assert every(feeder)["b"]["segments"] == {"lifecycle": None}


def test_any_text_is_a_customer_id() -> None:
    """Ids are shown as they were sent."""
    names = ["ä€😀", " ", "a:b{c}", "x" * 256, '"quoted"', "-"]
    feeder = Feeder()
    feeder.feed(*(purchase(name, f"{i}", at(i)) for i, name in enumerate(names)))
    assert set(every(feeder)) == set(names)
    assert all(customer_of(feeder.store, 0, name) for name in names)


def test_a_damaged_row_is_told() -> None:
    """The sentence names the customer."""
    feeder = Feeder()
    feeder.feed(purchase("a", "1", at(0)))
    shard = feeder.store._shards[0]
    shard.customers["a"] = shard.customers["a"][:-1]
    with pytest.raises(StateError, match="the stored row of customer 'a' is damaged"):
        customer_of(feeder.store, 0, "a")
    shard.customers["a"] = b"nonsense"
    with pytest.raises(StateError, match="layout that is not stored"):
        every(feeder)


def test_numbers_and_satisfaction() -> None:
    """Numeric attributes are numbers among the attributes; satisfaction is the mean score to two decimals."""
    feeder = Feeder(make_policy(keep=["country"], numbers=["income", "birth_year"]))
    feeder.feed(
        signup("a", "1", at(0), country="DE", attributes={"income": 48_500.5}),
        survey("a", "2", at(1), 4),
        survey("a", "3", at(2), "4.25"),
        survey("a", "4", at(3), 5),
        profile("b", "5", at(4), attributes={"birth_year": 1980}),
    )
    found = every(feeder)
    assert found["a"]["attributes"] == {"country": "DE", "income": 48_500.5}
    assert (found["a"]["surveys"], found["a"]["satisfaction"]) == (3, 4.42)
    assert found["b"]["attributes"] == {"birth_year": 1980.0}
    assert (found["b"]["surveys"], found["b"]["satisfaction"]) == (0, None)
