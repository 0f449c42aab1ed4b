"""Plain purchases: what nearly every record on the purchases topic is, decoded in a quarter of pydantic's time.

pydantic says what an event is (models/events.py). Here is decided only whether all records of a batch are so plain that
they must be events: no other fields than the known ones, all of them as expected. If any is not, pydantic judges the
batch, so that both give the same events, and every refusal comes from there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Final, Literal

import msgspec

from models.events import AMOUNT, ATTRIBUTES, CURRENCY, LONGEST_TEXT
from models.instants import RFC3339

_NULL: Final = msgspec.Raw(b"null")


class _Purchase(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    kind: Literal["purchase", "refund"]
    event_id: str
    customer_id: str
    order_id: str
    occurred_at: str
    amount: str | int | float
    currency: str
    country: str | None = None
    channel: str | None = None
    category: str | None = None
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
        self._columns["amount"] = [each if isinstance(each, str) else str(each) for each in self.column("amount")]
        raw = self.column("attributes")
        if any(each is not _NULL for each in raw):
            raw = [None if each is _NULL else ATTRIBUTES.validate_json(bytes(each)) for each in raw]
        self._columns["attributes"] = [None if each is _NULL else each for each in raw]

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
        return events if _within_bounds(events) else None
    except (ValueError, TypeError, RecursionError):
        return None


def _within_bounds(events: PlainPurchases) -> bool:
    """Whether all texts are as models/events.py asks."""
    if not len(events):
        return True
    customers = events.column("customer_id")
    return (
        all(_are_texts(events.column(name)) for name in ("event_id", "customer_id", "order_id"))
        and all(_are_texts(set(events.column(name)) - {None}) for name in ("country", "channel", "category"))
        and "\0" not in "".join(customers)
        and all(map(_CURRENCY.fullmatch, set(events.column("currency"))))
        and _are_shaped(events.column("amount"), _AMOUNT)
        and _are_shaped(events.column("occurred_at"), _INSTANT)
    )


def _are_texts(texts: Any) -> bool:
    lengths = list(map(len, texts))
    return not lengths or (min(lengths) > 0 and max(lengths) <= LONGEST_TEXT)


def _are_shaped(texts: Sequence[str], shape: re.Pattern[bytes]) -> bool:
    """Whether every text matches; none of what matches has a line break."""
    shapes = "\n".join(texts).encode().translate(_ALIKE).split(b"\n")
    return len(shapes) == len(texts) and all(map(shape.fullmatch, set(shapes)))
