"""The wire forms of the input topics: what a producer may send, as typed dictionaries that pydantic validates.

TypedDict and not a model class, because building a dictionary costs a third of building an object. Unknown extra
fields are accepted and ignored; an optional field may be null, but for the kind.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any, Final, Literal, NotRequired

from pydantic import Discriminator, Field, Tag, TypeAdapter, WithJsonSchema
from typing_extensions import TypedDict

from models.instants import RFC3339


class Kind(IntEnum):
    """What a record is, as the number that columns carry."""

    TICK = 0
    PURCHASE = 1
    REFUND = 2
    SIGNUP = 3
    ERASURE = 4
    PROFILE = 5
    SURVEY = 6


#: Each kind's number: to ask an enumeration for a member takes as long as to compare a short column with it.
TICK, PURCHASE, REFUND, SIGNUP, ERASURE, PROFILE, SURVEY = map(int, Kind)


#: The input topics' roles, in the order that breaks ties of ``occurred_at`` when topics are merged: a signup comes
#: before a purchase of the same instant, an erasure after both.
Role = Literal["signups", "purchases", "erasures"]
ROLES: Final[tuple[Role, ...]] = ("signups", "purchases", "erasures")

#: Characters of an id or another text, at most.
LONGEST_TEXT: Final = 256
Text = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]
CustomerId = Annotated[
    str, Field(min_length=1, max_length=LONGEST_TEXT, pattern=r"^[^\u0000]*$", description="the record's key, as text")
]
Instant = Annotated[
    str,
    Field(pattern=RFC3339, description="RFC 3339 with an offset"),
    WithJsonSchema({"type": "string", "format": "date-time", "pattern": RFC3339}),
]
AMOUNT: Final = r"^[0-9]{1,13}(\.[0-9]{1,6})?$"
Amount = Annotated[
    str,
    Field(coerce_numbers_to_str=True, pattern=AMOUNT),
    WithJsonSchema(
        {
            "description": "not negative: the kind carries the sign",
            "anyOf": [{"type": "string", "pattern": AMOUNT}, {"type": "number", "minimum": 0}],
        }
    ),
]
_SCORE: Final = r"^(100(\.0{1,2})?|[0-9]{1,2}(\.[0-9]{1,2})?)$"
Score = Annotated[
    str,
    Field(coerce_numbers_to_str=True, pattern=_SCORE),
    WithJsonSchema(
        {
            "description": "0 to 100, with at most 2 decimals",
            "anyOf": [{"type": "string", "pattern": _SCORE}, {"type": "number", "minimum": 0, "maximum": 100}],
        }
    ),
]
CURRENCY: Final = r"^[A-Z]{3}$"
Currency = Annotated[str, Field(pattern=CURRENCY, description="ISO 4217")]
_ShortText = Annotated[str, Field(max_length=LONGEST_TEXT)]
Attributes = dict[_ShortText, _ShortText | int | float | bool | None]


class Purchase(TypedDict):
    """A customer paid (``purchase``) or got money back (``refund``)."""

    kind: Literal["purchase", "refund"]
    event_id: Text
    customer_id: CustomerId
    order_id: Text
    occurred_at: Instant
    amount: Amount
    currency: Currency
    country: NotRequired[Text | None]
    channel: NotRequired[Text | None]
    category: NotRequired[Text | None]
    attributes: NotRequired[Attributes | None]


class Tick(TypedDict):
    """Nothing happened on this partition, time has passed."""

    kind: Literal["tick"]
    occurred_at: Instant


class Signup(TypedDict):
    """A customer signed up."""

    kind: NotRequired[Literal["signup"]]
    event_id: Text
    customer_id: CustomerId
    occurred_at: Instant
    country: NotRequired[Text | None]
    channel: NotRequired[Text | None]
    attributes: NotRequired[Attributes | None]


class Profile(TypedDict):
    """What is known about a customer has changed: only the attributes that it names."""

    kind: Literal["profile"]
    event_id: Text
    customer_id: CustomerId
    occurred_at: Instant
    country: NotRequired[Text | None]
    channel: NotRequired[Text | None]
    attributes: NotRequired[Attributes | None]


class Survey(TypedDict):
    """A customer said how satisfied they are."""

    kind: Literal["survey"]
    event_id: Text
    customer_id: CustomerId
    occurred_at: Instant
    score: Score


class Erasure(TypedDict):
    """Everything kept about the customer goes."""

    kind: NotRequired[Literal["erasure"]]
    event_id: Text
    customer_id: CustomerId
    occurred_at: Instant


def _kind_on_signups(value: Any) -> str | None:
    """The union's tag: what has no kind, or is no event at all, is judged as a signup."""
    kind = value.get("kind", "signup") if isinstance(value, dict) else "signup"
    return kind if isinstance(kind, str) else None


PurchasesValue = Annotated[Purchase | Tick, Field(discriminator="kind")]
SignupsValue = Annotated[
    Annotated[Signup, Tag("signup")] | Annotated[Profile, Tag("profile")] | Annotated[Survey, Tag("survey")],
    Discriminator(_kind_on_signups),
]

#: What a value on a topic of each role may be.
VALUES: Final[dict[Role, TypeAdapter[Any]]] = {
    "purchases": TypeAdapter(PurchasesValue),
    "signups": TypeAdapter(SignupsValue),
    "erasures": TypeAdapter(Erasure),
}
#: What an event's free attributes may be.
ATTRIBUTES: Final[TypeAdapter[Attributes | None]] = TypeAdapter(Attributes | None)
#: The kind a value has when it does not say one.
DEFAULT_KIND: Final[dict[Role, str]] = {"purchases": "purchase", "signups": "signup", "erasures": "erasure"}

#: The kinds a value may be, where there are several.
KINDS_OF_ROLE: Final[dict[Role, str]] = {
    "purchases": "purchase, refund or tick",
    "signups": "signup, profile or survey",
}

#: The topic on which a recorded event of each kind travels.
ROLE_OF_KIND: Final[dict[str, Role]] = {
    "tick": "purchases",
    "purchase": "purchases",
    "refund": "purchases",
    "signup": "signups",
    "profile": "signups",
    "survey": "signups",
    "erasure": "erasures",
}
