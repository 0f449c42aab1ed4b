"""Purchases that are read without pydantic are what pydantic says they are; all others are left to it."""

import json
import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from models.events import ATTRIBUTES, VALUES, Kind
from models.instants import parse_column
from models.money import Converter
from models.purchases import purchases
from tests.properties.test_any_input import altered, broken, good, json_values, odd_texts
from tests.unit.build import at, purchase, refund

#: What a purchase may say, and what is just beyond it.
texts = st.text(max_size=6) | odd_texts | st.sampled_from(
    ["a" * 256, "a" * 257, "ü" * 256, "ü" * 257, "a\nb", "[", "\\", '"', "\x7f", "\ud800", "\0"]
)  # fmt: skip
amounts = st.sampled_from(
    ["1", "1.50", "1.500000", "0.0000001", "1.0000001", "9" * 13, "9" * 14, "٣", "1\n", "1e3", "", ".5", "5.", "007.5",
     "1.005", "9999999999999.99", "10000000000000", "1000000000000.01", "-1", "1.5.0",
     1, 0, 12.5, 0.0001, 0.00001, 1e-5, 1e15, 10**13, 123456789012345, 0.1234, -1, -0.0, True]
)  # fmt: skip
DATES = r"[0-9]{4}-(0[0-9]|1[0-3])-([0-2][0-9]|3[0-2])T([01][0-9]|2[0-4]):[0-6][0-9]:[0-6][0-9]"
ZONES = r"(\.[0-9]{1,10})?(Z|[+-][0-9]{2}:[0-6][0-9])?"
instants = st.from_regex(DATES + ZONES, fullmatch=True) | st.sampled_from(
    ["2024-01-01T00:00:00Z", "2024-01-01T00:00:00.1+05:30", "2024-01-01T00:00:00Z\n", "2024-01-01 00:00:00Z",
     "2024-01-01T00:00:00Z\n2024-01-01T00:00:00Z", "2024-02-30T00:00:00Z", "２024-01-01T00:00:00Z",
     "2024-02-29T23:59:59.9999999-23:59", "2023-02-29T00:00:00Z", "1900-02-29T00:00:00Z", "2000-02-29T00:00:00Z",
     "0000-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-00:01", "1969-12-31T23:59:59.999999Z",
     "2024-01-01T00:00:00", "2024-01-01T00:00:00.5", "2024-01-01T00:00:00.Z",
     "2024-01-01T00:00:00+0530", "2024-01-01T00:00:00z"]
)  # fmt: skip
EXACT: list[dict[str, Any]] = [purchase("a", "p", at(0), country="DE"), refund("a", "r", at(1))]


MONEY = Converter("USD", {"EUR": Decimal("1.1"), "JPY": Decimal("0.007")})


@st.composite
def purchases_(draw: st.DrawFn) -> bytes:
    """A purchase with any texts, and any spacing and escapes that JSON allows."""
    event = dict(draw(st.sampled_from(EXACT)))
    for name in draw(st.sets(st.sampled_from(["event_id", "customer_id", "order_id", "country", "category"]))):
        event[name] = draw(texts | st.none())
    if draw(st.booleans()):
        event["currency"] = draw(st.sampled_from(["EUR", "JPY", "XXX", "usd", "US", "USDX", "ÜSD", None]))
    if draw(st.booleans()):
        event["amount"] = draw(amounts)
    if draw(st.booleans()):
        event["occurred_at"] = draw(instants)
    if draw(st.booleans()):
        event["attributes"] = draw(st.none() | st.dictionaries(texts, json_values | texts, max_size=2))
    spaces = draw(st.sampled_from([None, 1]))
    text = json.dumps(event, indent=spaces, ensure_ascii=draw(st.booleans()))
    # Numbers with zeros at their end, which Python does not write.
    text = re.sub(r"(?<=[0-9])(?=,|})", lambda _: draw(st.sampled_from(["", "0", ".0", "00", ".10"])), text, count=1)
    return text.encode(errors="surrogatepass")


def by_pydantic(value: bytes) -> dict[str, Any] | None:
    """The event, or None if it is refused."""
    try:
        event: dict[str, Any] = VALUES["purchases"].validate_json(value)
    except ValidationError:
        return None
    return event


@settings(max_examples=3000)
@given(st.lists(purchases_() | good | altered() | broken(), max_size=4))
@example([b'{"kind":"purchase","kind":"refund"}'])
@example([json.dumps({**EXACT[0], "occurred_at": "2024-01-01T00:00:00.5"}).encode()])
def test_what_is_read_is_what_pydantic_says(values: list[bytes]) -> None:
    read = purchases(values, "USD")
    foreign = {i: (amount, currency) for i, amount, currency in read.priced}
    free = dict(read.attributes)
    for i in set(range(len(values))).difference(read.odd):
        event = by_pydantic(values[i])
        if i in free:
            try:
                said = ATTRIBUTES.validate_json(free[i])
            except ValidationError:
                assert event is None
                continue
            assert event is not None
            assert event["attributes"] == said
        assert event is not None, values[i]
        assert event.get("attributes") is None or i in free
        assert Kind(read.kind[i]).name.lower() == event["kind"]
        assert (read.event_id[i], read.customer_id[i]) == (event["event_id"], event["customer_id"])
        assert read.occurred_at[i] == parse_column([event["occurred_at"]])[0]
        for name, (distinct, place) in read.texts.items():
            assert distinct[place[i]] == event.get(name)
        amount, currency = foreign.get(i, (event["amount"], event["currency"]))
        assert (float(amount), currency) == (float(event["amount"]), event["currency"])
        if i not in foreign:
            assert read.amount[i] == MONEY.one(event["amount"], event["currency"])


@pytest.mark.parametrize(
    ("field", "value"),
    [("amount", "12.50"), ("amount", 12.5), ("amount", 12), ("amount", "0012"), ("amount", "12.500000"),
     ("occurred_at", "2024-02-29T23:59:59.123456789+05:30"), ("occurred_at", "2024-12-31T00:00:00Z"),
     ("country", "Österreich"), ("country", None), ("attributes", {"x": 10**30, "}": "\\\""}), ("attributes", None),
     ("customer_id", "ü" * 256)],
)  # fmt: skip
def test_an_ordinary_purchase_is_read(field: str, value: object) -> None:
    """Without pydantic: otherwise all of this would be for nothing."""
    event = {**EXACT[0], field: value}
    for text in (json.dumps(event, ensure_ascii=False), json.dumps(event, ensure_ascii=False, indent=2)):
        assert not purchases([text.encode()] * 2, "USD").odd


def test_another_currency_is_left_to_the_converter() -> None:
    values = [
        json.dumps(purchase("a", str(i), at(0), amount="1.5", currency=c)).encode()
        for i, c in enumerate(["USD", "EUR"])
    ]
    read = purchases(values, "USD")
    assert (read.odd, read.priced, read.amount[0]) == ([], [(1, "1.5", "EUR")], 150)


def test_many_different_texts() -> None:
    """More than are found without making an object."""
    named = [f"c{i % 40}" for i in range(200)]
    values = [json.dumps(purchase("a", str(i), at(0), country=name)).encode() for i, name in enumerate(named)]
    distinct, place = purchases(values, "USD").texts["country"]
    assert distinct == [None, *dict.fromkeys(named)]
    assert [distinct[i] for i in place] == named


@pytest.mark.parametrize(
    "value",
    [None, b"", b"[]", b"{}", b"{", b'{"', b'{"kind":"tick","occurred_at":"2024-01-01T00:00:00Z"}', b"\xff", b"\0"],
)
def test_all_else_is_left_to_pydantic(value: bytes | None) -> None:
    assert purchases([json.dumps(EXACT[0]).encode(), value], "USD").odd == [1]


def test_every_part_of_a_purchase_is_left_to_pydantic() -> None:
    """Nothing is read beyond the end of a record, wherever it was cut."""
    whole = json.dumps(purchase("a", "p", at(0), country="DE", amount=1.5, attributes={"a": "b"})).encode()
    parts = [whole[:end] for end in range(len(whole))]
    assert purchases(parts, "USD").odd == list(range(len(parts)))
    nul = [whole[:end] + b"\0" + whole[end + 1 :] for end in range(len(whole))]
    assert purchases(nul, "USD").odd == list(range(len(nul)))
