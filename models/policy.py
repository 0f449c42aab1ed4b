"""The policy: the frozen, versioned definition of every dimension and of how events are read, from TOML text."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import cached_property
from importlib import resources
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, field_validator, model_validator

from models.engines import (
    EVENT_TEXTS,
    MEASURES,
    AttributePolicy,
    BandsPolicy,
    ClusterPolicy,
    Condition,
    DominantPolicy,
    Duration,
    Engine,
    EnginePolicy,
    LifecyclePolicy,
    Name,
    RulesPolicy,
    Scored,
    Section,
    array,
)
from models.errors import PolicyError
from models.instants import DAY, SECOND
from models.money import Converter

#: Fields of events that are no attributes of a customer.
_NO_ATTRIBUTES: Final = frozenset(
    ("kind", "event_id", "customer_id", "order_id", "occurred_at", "amount", "currency", "attributes")
)
#: What dimensions are made of (models/fold.py), which no dimension may be called.
_TAKEN: Final = frozenset(("purchases", "refunds", "signups", "surveys"))
#: Measures that time alone moves.
_MOVING: Final = frozenset(("recency_days", "tenure_days", "orders_per_month", "age"))
CurrencyCode = Annotated[str, Field(pattern=r"^[A-Z]{3}$")]


class MoneyPolicy(Section):
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


class EventsPolicy(Section):
    """How events are read."""

    #: How far ``occurred_at`` may be ahead of the record's Kafka timestamp, in microseconds.
    allowed_skew: Duration = 300 * SECOND
    #: How many event ids are remembered for each customer, to fold a redelivered event once.
    remembered_ids: Annotated[int, Field(ge=1, le=255)] = 16


class AttributesPolicy(Section):
    """Which attributes of events are kept with the customer: ``keep`` as text, ``numbers`` as numbers."""

    keep: Annotated[tuple[Name, ...], BeforeValidator(array)] = ()
    numbers: Annotated[tuple[Name, ...], BeforeValidator(array)] = ()
    #: Distinct values kept for each attribute and shard; a further one is kept as "(other)".
    max_values: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000

    @field_validator("keep", "numbers")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("must name each attribute once")
        if reserved := sorted(set(names) & _NO_ATTRIBUTES):
            raise ValueError(f"cannot keep {', '.join(reserved)}: every event has its own")
        return names

    @model_validator(mode="after")
    def _either(self) -> AttributesPolicy:
        if both := sorted(set(self.keep) & set(self.numbers)):
            raise ValueError(f"{', '.join(both)} is in keep and in numbers; name it in one of them")
        if measures := sorted(set(self.numbers) & set(MEASURES)):
            raise ValueError(f"numbers cannot name {', '.join(measures)}, which is a measure")
        return self


class PopulationPolicy(Section):
    """When the population's cut-offs are taken: at multiples of ``every`` since 1970, in force ``settle`` later."""

    every: Duration = 7 * DAY
    settle: Duration = 600 * SECOND

    @model_validator(mode="after")
    def _in_order(self) -> PopulationPolicy:
        if self.settle >= self.every:
            raise ValueError("settle must be shorter than every")
        return self


class Tally(NamedTuple):
    """What is counted for each customer and each value of a text of purchases, for dominant dimensions."""

    of: str
    by: Literal["orders", "revenue"]
    half_life: int | None

    @property
    def name(self) -> str:
        """What it is called in stored layouts and dictionaries."""
        return f"{self.of}/{self.by}/{'forever' if self.half_life is None else f'{self.half_life // SECOND}s'}"


class Policy(Section):
    """Everything that decides a label. Equal texts give equal labels, on any machine."""

    version: Annotated[int, Field(ge=1, le=2**31 - 1)] = 1
    money: MoneyPolicy = MoneyPolicy()
    events: EventsPolicy = EventsPolicy()
    attributes: AttributesPolicy = AttributesPolicy()
    population: PopulationPolicy = PopulationPolicy()
    dimensions: dict[Name, EnginePolicy] = Field(min_length=1, max_length=64)

    _text: str = PrivateAttr(default="")

    @property
    def text(self) -> str:
        """The TOML text it was read from."""
        return self._text

    @cached_property
    def converter(self) -> Converter:
        """Turns amounts into minor units of the base currency."""
        return Converter(self.money.base, self.money.rates)

    @cached_property
    def tallies(self) -> tuple[Tally, ...]:
        """What dominant dimensions count; two that count the same share it."""
        each = [d for d in self.dimensions.values() if isinstance(d, DominantPolicy)]
        return tuple(dict.fromkeys(Tally(d.of, d.by, d.half_life) for d in each))

    @property
    def clusters(self) -> tuple[str, ...]:
        """The dimensions that are learned."""
        return tuple(name for name, dimension in self.dimensions.items() if isinstance(dimension, ClusterPolicy))

    @cached_property
    def moving(self) -> tuple[str, ...]:
        """The dimensions in which a customer may move without an event: by time, or by the population's cut-offs."""
        return tuple(name for name, dimension in self.dimensions.items() if _moves(dimension))

    @property
    def needs_population(self) -> bool:
        """Whether any label, or whether it is published, depends on everybody else."""
        return any(isinstance(d, Scored) or d.viable is not None for d in self.dimensions.values())

    @model_validator(mode="after")
    def _known_names(self) -> Policy:
        earlier: dict[str, tuple[str, ...]] = {}
        taken = sorted(_TAKEN & self.dimensions.keys())
        problems = [f"dimensions.{name}: this name is taken; choose another" for name in taken]
        for name, dimension in self.dimensions.items():
            problems += [f"dimensions.{name}: {problem}" for problem in self._problems(dimension, earlier)]
            earlier[name] = dimension.labels
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems(self, dimension: Engine, earlier: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
        """What a dimension names that the rest of the policy does not have."""
        if isinstance(dimension, AttributePolicy) or (
            isinstance(dimension, DominantPolicy) and dimension.of not in EVENT_TEXTS
        ):
            yield from self._unkept(dimension.of)
        elif isinstance(dimension, BandsPolicy):
            yield from self._unmeasured(dimension.of)
        elif isinstance(dimension, ClusterPolicy):
            for feature in dimension.features:
                yield from self._unmeasured(feature)
        elif isinstance(dimension, RulesPolicy):
            for condition in dimension.conditions:
                yield from self._unknown(condition, earlier)

    def _unkept(self, attribute: str) -> Iterator[str]:
        if attribute not in self.attributes.keep:
            yield f"the attribute {attribute} is not kept; add it to attributes.keep"

    def _unmeasured(self, measure: str) -> Iterator[str]:
        if measure == "age" and "birth_year" not in self.attributes.numbers:
            yield "age is counted from the attribute birth_year; add it to attributes.numbers"
        elif measure not in MEASURES and measure not in self.attributes.numbers:
            yield (f"{measure} is no measure and not in attributes.numbers; the measures are {', '.join(MEASURES)}")

    def _unknown(self, condition: Condition, earlier: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
        if condition.measure is not None:
            yield from self._unmeasured(condition.measure)
        elif condition.attribute is not None:
            yield from self._unkept(condition.attribute)
        elif condition.dimension is not None:
            labels = earlier.get(condition.dimension)
            if labels is None:
                known = ", ".join(earlier) or "none"
                yield f"a rule may name only dimensions above its own ({known}), not {condition.dimension}"
                return
            if wrong := sorted(set(condition.is_ or condition.not_ or ()) - set(labels)):
                yield f"{condition.dimension} has no segment {', '.join(wrong)}; it has {', '.join(labels)}"


def _moves(dimension: Engine) -> bool:
    if isinstance(dimension, BandsPolicy):
        return dimension.of in _MOVING
    if isinstance(dimension, RulesPolicy):
        return any(condition.measure in _MOVING for condition in dimension.conditions)
    return isinstance(dimension, LifecyclePolicy | Scored)


def _sentence(error: Any) -> str:
    """One pydantic error as ``key: what it may be``."""
    loc = error["loc"]
    if loc[:1] == ("dimensions",):
        # The third part repeats the engine, by which pydantic found the class.
        loc = (*loc[:2], *loc[3:])
    key = ".".join(str(part) for part in loc) or "policy"
    if error["type"] == "extra_forbidden":
        return f"{key}: is not a setting of this policy; check the spelling"
    if error["type"] == "missing":
        return f"{key}: is required"
    if error["type"] == "union_tag_not_found":
        return f"{key}.engine: is required"
    message: str = error["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "must be").replace("String should match", "must match")
    if not error["loc"]:
        # Found when everything was read: it names its key itself, and the input is the whole policy.
        return message
    return f"{key}: {message} (it is {error['input']!r})"


def parse_policy(text: str) -> Policy:
    """Read a policy from TOML. Raises PolicyError that names each wrong key and what it may be."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"the policy is not valid TOML: {error}") from None
    try:
        policy = Policy.model_validate(values)
    except ValidationError as error:
        raise PolicyError("\n".join(_sentence(each) for each in error.errors())) from None
    policy._text = text
    return policy


def default_policy_text() -> str:
    """The TOML text of the policy that is used when none is named."""
    return resources.files("models").joinpath("policies/default.toml").read_text(encoding="utf-8")


def default_policy() -> Policy:
    """The policy that is used when none is named."""
    return parse_policy(default_policy_text())
