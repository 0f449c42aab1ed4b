"""Plain purchases are what pydantic says they are: the shortcut gives the same events, or leaves them to pydantic."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from models.events import VALUES
from models.plain import plain_purchases
from tests.properties.test_any_input import altered, broken, good, json_values, odd_texts
from tests.unit.build import at, purchase, refund

#: What a purchase may say, and what is just beyond it.
texts = (
    st.text(max_size=6) | odd_texts | st.sampled_from(["a" * 256, "ü" * 257, "a\nb", "[", "\\", '"', "\x7f", "\ud800"])
)
amounts = st.sampled_from(
    ["1", "1.50", "0.0000001", "1.0000001", "9" * 13, "9" * 14, "٣", "1\n", "1e3", 1, 12.5, 1e-5, 1e15, 10**13, -1,
     -0.0, True]
)  # fmt: skip
instants = st.sampled_from(
    ["2024-01-01T00:00:00Z", "2024-01-01T00:00:00.1+05:30", "2024-01-01T00:00:00Z\n", "2024-01-01 00:00:00Z",
     "2024-01-01T00:00:00Z\n2024-01-01T00:00:00Z", "2024-02-30T00:00:00Z", "２024-01-01T00:00:00Z"]
)  # fmt: skip
EXACT: list[dict[str, Any]] = [purchase("a", "p", at(0), country="DE"), refund("a", "r", at(1))]


TEXT_FIELDS = ["event_id", "customer_id", "order_id", "currency", "country", "category"]


@st.composite
def purchases(draw: st.DrawFn) -> bytes:
    """A purchase with any texts, and any spacing and escapes that JSON allows."""
    event = dict(draw(st.sampled_from(EXACT)))
    for name in draw(
        st.sets(st.sampled_from(["event_id", "customer_id", "order_id", "currency", "country", "category"]))
    ):
        event[name] = draw(texts | st.none())
    if draw(st.booleans()):
        event["amount"] = draw(amounts)
    if draw(st.booleans()):
        event["occurred_at"] = draw(instants)
    if draw(st.booleans()):
        event["attributes"] = draw(st.none() | st.dictionaries(texts, json_values | texts, max_size=2))
    spaces = draw(st.sampled_from([None, 1]))
    return json.dumps(event, indent=spaces, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")


def by_pydantic(value: bytes) -> dict[str, Any] | None:
    """The event, or None if it is refused."""
    try:
        event: dict[str, Any] = VALUES["purchases"].validate_json(value)
    except ValidationError:
        return None
    return event


FIELDS = ("kind", "event_id", "customer_id", "order_id", "occurred_at", "amount", "currency", "country", "channel",
          "category", "attributes")  # fmt: skip


@settings(max_examples=2000)
@given(st.lists(purchases() | good | altered() | broken(), max_size=3))
@example([b'{"kind":"purchase","kind":"refund"}'])
def test_what_is_plain_is_what_pydantic_says(values: list[bytes]) -> None:
    plain = plain_purchases(values)
    if plain is None:
        return
    expected = [by_pydantic(value) for value in values]
    assert len(plain) == len(expected)
    for name in FIELDS:
        said = [None if event is None else event.get(name) for event in expected]
        if name == "amount":  # 12.0 and 12 are one amount
            assert list(map(float, plain.column(name))) == [float(each) for each in said if each is not None]
        else:
            assert plain.column(name) == said


def test_an_ordinary_batch_is_plain() -> None:
    """The shortcut is taken: otherwise all of this would be for nothing."""
    values = [json.dumps(event).encode() for event in EXACT]
    events = plain_purchases(values)
    assert events is not None
    assert events.column("customer_id") == ["a", "a"]
    assert events.column("country") == ["DE", None]
    assert events.column("attributes") == [None, None]


def test_numbers_and_free_attributes_are_plain_too() -> None:
    events = plain_purchases([json.dumps(purchase("a", "p", at(0), amount=12.5, attributes={"x": 10**30})).encode()])
    assert events is not None
    assert events.column("amount") == ["12.5"]
    assert events.column("attributes") == [{"x": 10**30}]


@pytest.mark.parametrize(
    "value",
    [None, b"", b"[]", b"{}", b'{"kind":"tick","occurred_at":"2024-01-01T00:00:00Z"}', b"\xff"],
)
def test_all_else_is_left_to_pydantic(value: bytes | None) -> None:
    assert plain_purchases([json.dumps(EXACT[0]).encode(), value]) is None
