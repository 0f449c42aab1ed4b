"""Plain purchases: what nearly every record on the purchases topic is, decoded in a quarter of pydantic's time.

pydantic says what an event is (models/events.py). Here is decided only whether all records of a batch are so plain that
they must be events: no other fields than the known ones, all of them as expected. If any is not, pydantic judges the
batch, so that both give the same events, and every refusal comes from there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Annotated, Any, Final, Literal

import msgspec

from models.events import AMOUNT, ATTRIBUTES, CURRENCY, LONGEST_TEXT
from models.instants import RFC3339

_NULL: Final = msgspec.Raw(b"null")
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_TEXT)]


class _Purchase(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    kind: Literal["purchase", "refund"]
    event_id: _Text
    customer_id: _Text
    order_id: _Text
    occurred_at: str
    amount: str | int | float
    currency: str
    country: _Text | None = None
    channel: _Text | None = None
    category: _Text | None = None
    attributes: msgspec.Raw = _NULL


_DECODE: Final = msgspec.json.Decoder(_Purchase).decode
_AMOUNT: Final = re.compile(AMOUNT.encode())
_CURRENCY: Final = re.compile(CURRENCY)
_INSTANT: Final = re.compile(RFC3339.encode())
#: Makes all digits alike: few different shapes are left to look at.
_ALIKE: Final = bytes.maketrans(b"123456789", b"000000000")


class PlainPurchases:
    """Events by field, like those that pydantic gives."""

    def __init__(self, events: Sequence[_Purchase]) -> None:
        self._columns: dict[str, list[Any]] = {}
        self._events = events
        amounts = self.column("amount")
        if set(map(type, amounts)) != {str}:
            self._columns["amount"] = [str(each) for each in amounts]
        raw = self.column("attributes")
        if raw.count(_NULL) == len(raw):
            self._columns["attributes"] = [None] * len(raw)
        else:
            self._columns["attributes"] = [ATTRIBUTES.validate_json(bytes(each)) for each in raw]

    def __len__(self) -> int:
        return len(self._events)

    def column(self, name: str, default: Any = None) -> list[Any]:
        """Each event's value of a field. What may be absent is None then, whatever the default."""
        known = self._columns.get(name)
        if known is None:
            get: Callable[[_Purchase], Any] = attrgetter(name)
            known = self._columns[name] = list(map(get, self._events))
        return known


def plain_purchases(values: Sequence[bytes | None]) -> PlainPurchases | None:
    """The events, if all values are plainly purchases and refunds; None if pydantic must say what they are."""
    try:
        events = PlainPurchases(list(map(_DECODE, values)))  # type: ignore[arg-type]
        return events if _is_in_shape(events) else None
    except (ValueError, TypeError, RecursionError):
        return None


def _is_in_shape(events: PlainPurchases) -> bool:
    """Whether what the decoder has not looked at is as models/events.py asks."""
    return (
        "\0" not in "".join(events.column("customer_id"))
        and all(map(_CURRENCY.fullmatch, set(events.column("currency"))))
        and _are_shaped(events.column("amount"), _AMOUNT)
        and _are_shaped(events.column("occurred_at"), _INSTANT)
    )


def _are_shaped(texts: Sequence[str], shape: re.Pattern[bytes]) -> bool:
    """Whether every text matches; what matches has no line break."""
    if len(set(map(len, texts))) == 1:
        # One producer's: most often all alike but for the digits.
        first = texts[0].encode().translate(_ALIKE)
        if "".join(texts).encode().translate(_ALIKE) == first * len(texts):
            return shape.fullmatch(first) is not None
    shapes = "\n".join(texts).encode().translate(_ALIKE).split(b"\n")
    return not texts or (len(shapes) == len(texts) and all(map(shape.fullmatch, set(shapes))))
