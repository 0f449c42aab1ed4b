"""The policy: the frozen, versioned definition of every dimension and of how events are read, from TOML text."""

from __future__ import annotations

import re
import tomllib
from decimal import Decimal
from functools import cached_property
from importlib import resources
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from models.errors import PolicyError
from models.instants import SECOND
from models.money import Converter

_UNITS: Final = {"s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND, "d": 86_400 * SECOND, "w": 604_800 * SECOND}
#: Fields of events that are no attributes of a customer.
_NO_ATTRIBUTES: Final = frozenset(
    ("kind", "event_id", "customer_id", "order_id", "occurred_at", "amount", "currency", "attributes")
)
_LONGEST: Final = 36_500 * 86_400 * SECOND


def _duration(value: object) -> int:
    """``"90d"`` → microseconds."""
    match = re.fullmatch(r"([0-9]+)\s*([smhdw])", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('must be a duration such as "30d": a whole number with s, m, h, d or w')
    microseconds = int(match[1]) * _UNITS[match[2]]
    if not 0 < microseconds <= _LONGEST:
        raise ValueError("must be longer than 0 and at most 36500d")
    return microseconds


Duration = Annotated[int, BeforeValidator(_duration)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,47}$")]
CurrencyCode = Annotated[str, Field(pattern=r"^[A-Z]{3}$")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class MoneyPolicy(_Section):
    """The currency everything is counted in, and what one unit of another is worth in it."""

    base: CurrencyCode = "USD"
    rates: dict[CurrencyCode, Decimal] = Field(default_factory=dict)

    @field_validator("rates", mode="before")
    @classmethod
    def _exact(cls, rates: Any) -> Any:
        if not isinstance(rates, dict):
            return rates
        exact = {}
        for code, rate in rates.items():
            if not isinstance(rate, str) or not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,12})?", rate):
                raise ValueError(f'{code} must be a decimal in quotes, such as "1.08"')
            exact[code] = Decimal(rate)
            if not exact[code]:
                raise ValueError(f"{code} must be more than 0")
        return exact

    @model_validator(mode="after")
    def _base_is_one(self) -> MoneyPolicy:
        if self.base in self.rates:
            raise ValueError(f"rates must not name the base {self.base}, which is worth 1")
        return self


class EventsPolicy(_Section):
    """How events are read."""

    #: How far ``occurred_at`` may be ahead of the record's Kafka timestamp, in microseconds.
    allowed_skew: Duration = 300 * SECOND
    #: How many event ids are remembered for each customer, to fold a redelivered event once.
    remembered_ids: Annotated[int, Field(ge=1, le=255)] = 16


class AttributesPolicy(_Section):
    """Which attributes of events are kept with the customer."""

    keep: tuple[Name, ...] = ()
    #: Distinct values kept for each attribute and shard; a further one is kept as "(other)".
    max_values: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000

    @field_validator("keep", mode="before")
    @classmethod
    def _array(cls, keep: Any) -> Any:
        return tuple(keep) if isinstance(keep, list) else keep

    @field_validator("keep")
    @classmethod
    def _once(cls, keep: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(keep)) != len(keep):
            raise ValueError("must name each attribute once")
        if reserved := sorted(set(keep) & _NO_ATTRIBUTES):
            raise ValueError(f"cannot keep {', '.join(reserved)}: every event has its own")
        return keep


class LifecyclePolicy(_Section):
    """The lifecycle dimension: new, potential, regular, lapsed. Durations are in microseconds."""

    engine: Literal["lifecycle"] = "lifecycle"
    potential_after: Duration = 30 * 86_400 * SECOND
    regular_orders: Annotated[int, Field(ge=2, le=1_000_000)] = 3
    lapse_after: Duration = 90 * 86_400 * SECOND

    @model_validator(mode="after")
    def _in_order(self) -> LifecyclePolicy:
        if self.potential_after >= self.lapse_after:
            raise ValueError("potential_after must be shorter than lapse_after")
        return self


class Policy(_Section):
    """Everything that decides a label. Equal texts give equal labels, on any machine."""

    version: Annotated[int, Field(ge=1, le=2**31 - 1)] = 1
    money: MoneyPolicy = MoneyPolicy()
    events: EventsPolicy = EventsPolicy()
    attributes: AttributesPolicy = AttributesPolicy()
    dimensions: dict[Name, LifecyclePolicy] = Field(min_length=1, max_length=64)

    @cached_property
    def converter(self) -> Converter:
        """Turns amounts into minor units of the base currency."""
        return Converter(self.money.base, self.money.rates)


def _sentence(error: Any) -> str:
    """One pydantic error as ``key: what it may be``."""
    key = ".".join(str(part) for part in error["loc"]) or "policy"
    if error["type"] == "extra_forbidden":
        return f"{key}: is not a setting of this policy; check the spelling"
    if error["type"] == "missing":
        return f"{key}: is required"
    message = error["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "must be").replace("String should match", "must match")
    return f"{key}: {message} (it is {error['input']!r})"


def parse_policy(text: str) -> Policy:
    """Read a policy from TOML. Raises PolicyError that names each wrong key and what it may be."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"the policy is not valid TOML: {error}") from None
    try:
        return Policy.model_validate(values)
    except ValidationError as error:
        raise PolicyError("\n".join(_sentence(each) for each in error.errors())) from None


def default_policy_text() -> str:
    """The TOML text of the policy that is used when none is named."""
    return resources.files("models").joinpath("policies/default.toml").read_text(encoding="utf-8")


def default_policy() -> Policy:
    """The policy that is used when none is named."""
    return parse_policy(default_policy_text())
