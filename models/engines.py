"""The settings of a dimension: what each engine may be told in the policy, and which segments it then has.

Every engine is one class here and one file in models/dimensions/.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import cached_property, lru_cache
from importlib import resources
from itertools import pairwise
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from models.instants import SECOND

_UNITS: Final = {"s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND, "d": 86_400 * SECOND, "w": 604_800 * SECOND}
_LONGEST: Final = 36_500 * 86_400 * SECOND

#: What is known about a customer as a number, without any attribute (models/measures.py).
MEASURES: Final = (
    "recency_days",
    "tenure_days",
    "orders",
    "refunds",
    "monetary",
    "average_order",
    "orders_per_month",
    "satisfaction",
    "age",
)
#: Texts that purchases carry as fields of their own.
EVENT_TEXTS: Final = frozenset(("country", "channel", "category"))


def _duration(value: object) -> int:
    """``"90d"`` → microseconds."""
    match = re.fullmatch(r"([0-9]+)\s*([smhdw])", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('must be a duration such as "30d": a whole number with s, m, h, d or w')
    microseconds = int(match[1]) * _UNITS[match[2]]
    if not 0 < microseconds <= _LONGEST:
        raise ValueError("must be longer than 0 and at most 36500d")
    return microseconds


def _number(value: object) -> Decimal:
    """A TOML number or a decimal in quotes, exactly as written."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("must be a number")
    text = repr(value) if isinstance(value, float) else str(value)
    if not re.fullmatch(r"-?[0-9]{1,15}(\.[0-9]{1,6})?", text):
        raise ValueError("must be a number with at most 15 digits before the point and 6 after it")
    return Decimal(text)


def array(value: object) -> object:
    """A TOML array as a tuple, which strict validation asks for."""
    return tuple(value) if isinstance(value, list) else value


Duration = Annotated[int, BeforeValidator(_duration)]
Number = Annotated[Decimal, BeforeValidator(_number)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,47}$")]
#: A segment's name.
Label = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,47}$")]
Text = Annotated[str, Field(min_length=1, max_length=1000)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(array)]
Percent = Annotated[Number, Field(ge=0, le=100)]
Features = Annotated[tuple[Name, ...], BeforeValidator(array), Field(min_length=1, max_length=8)]


class Section(BaseModel):
    """A table of the policy: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Profile(Section):
    """What marketing knows about a segment. ``channel`` is where to reach it."""

    title: Text | None = None
    description: Text | None = None
    needs: Texts = ()
    offers: Texts = ()
    channel: Text | None = None


class Viable(Section):
    """When a segment is large enough to be worth a campaign; a smaller one is marked.

    ``publish`` says whether moves into a segment that is too small are published all the same.
    """

    customers: Annotated[int, Field(ge=0)] = 0
    revenue_share: Percent = Decimal(0)
    publish: bool = True


class Engine(Section):
    """What every dimension has. A label of a dimension is one of ``labels``, by code."""

    profiles: dict[Label, Profile] = Field(default_factory=dict)
    viable: Viable | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The dimension's segments, in the order of their codes."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _known_profiles(self) -> Engine:
        if unknown := sorted(set(self.profiles) - set(self.labels)):
            raise ValueError(f"profiles names {', '.join(unknown)}; the segments are {', '.join(self.labels)}")
        return self


class LifecyclePolicy(Engine):
    """The lifecycle dimension: new, potential, regular, lapsed. Durations are in microseconds."""

    engine: Literal["lifecycle"] = "lifecycle"
    potential_after: Duration = 30 * 86_400 * SECOND
    regular_orders: Annotated[int, Field(ge=2, le=1_000_000)] = 3
    lapse_after: Duration = 90 * 86_400 * SECOND

    @property
    def labels(self) -> tuple[str, ...]:
        """See Engine."""
        return ("new", "potential", "regular", "lapsed")

    @model_validator(mode="after")
    def _in_order(self) -> LifecyclePolicy:
        if self.potential_after >= self.lapse_after:
            raise ValueError("potential_after must be shorter than lapse_after")
        return self


class Grouping(Engine):
    """Texts to segments: ``groups`` maps a segment to the texts that belong to it, all other texts to ``other``.

    A value is compared without regard to case. Without ``other`` a customer with another text has no segment.
    """

    of: Name
    groups: Annotated[dict[Label, Texts], Field(min_length=1, max_length=500)]
    other: Label | None = None

    @model_validator(mode="after")
    def _once(self) -> Grouping:
        texts = [text.casefold() for group in self.groups.values() for text in group]
        if twice := sorted({text for text in texts if texts.count(text) > 1}):
            raise ValueError(f"groups names {', '.join(twice)} more than once")
        return self

    def _grouped(self) -> tuple[str, ...]:
        extra = () if self.other is None or self.other in self.groups else (self.other,)
        return (*self.groups, *extra)

    def segment_of(self, text: str) -> str | None:
        """The segment of a text."""
        return self._by_text.get(text.casefold(), self.other)

    @cached_property
    def _by_text(self) -> Mapping[str, str]:
        return {text.casefold(): segment for segment, texts in self.groups.items() for text in texts}


class AttributePolicy(Grouping):
    """The segment is the group of the customer's latest value of the attribute ``of``."""

    engine: Literal["attribute"]

    @property
    def labels(self) -> tuple[str, ...]:
        """See Engine."""
        return self._grouped()


class DominantPolicy(Grouping):
    """The segment is the group of purchases' ``of`` with the most orders or revenue, or ``mixed``.

    Purchases weigh half as much for each whole ``half_life`` between them. The leading group must be ahead of the
    next by ``margin`` percent of the whole.
    """

    engine: Literal["dominant"]
    by: Literal["orders", "revenue"] = "orders"
    half_life: Duration | None = None
    margin: Percent = Decimal(0)
    mixed: Label = "mixed"

    @property
    def labels(self) -> tuple[str, ...]:
        """See Engine."""
        grouped = self._grouped()
        return grouped if self.mixed in grouped else (*grouped, self.mixed)

    @field_validator("half_life")
    @classmethod
    def _not_too_short(cls, half_life: int | None) -> int | None:
        # Weights are powers of two; a shorter one would leave the range of a double within decades.
        if half_life is not None and half_life < 30 * 86_400 * SECOND:
            raise ValueError('must be at least "30d"')
        return half_life


class BandsPolicy(Engine):
    """The segment is the last of ``bands`` whose lower bound the value of ``of`` reaches.

    ``of`` is a measure or a numeric attribute; money is in units of the base currency. A value below the first band
    has no segment.
    """

    engine: Literal["bands"]
    of: Name
    bands: Annotated[dict[Label, Number], Field(min_length=1, max_length=100)]

    @property
    def labels(self) -> tuple[str, ...]:
        """See Engine."""
        return tuple(self.bands)

    @field_validator("bands")
    @classmethod
    def _ascending(cls, bands: dict[str, Decimal]) -> dict[str, Decimal]:
        if any(low >= high for low, high in pairwise(bands.values())):
            raise ValueError("must have ascending lower bounds")
        return bands


class Scored(Engine):
    """A dimension against the population's cut-offs.

    A cut-off stays as it is until the population's has moved by more than ``margin`` percentile points; after a move,
    new cut-offs and time alone let a label be for ``dwell``.
    """

    margin: Percent = Decimal("0.5")
    dwell: Duration | None = None


class ParetoPolicy(Scored):
    """ABC analysis: customers by revenue, the first class being those that make up its percentage of all revenue."""

    engine: Literal["pareto"]
    classes: Annotated[dict[Label, Percent], Field(min_length=2, max_length=26)]

    @property
    def labels(self) -> tuple[str, ...]:
        """See Engine."""
        return tuple(self.classes)

    @field_validator("classes")
    @classmethod
    def _whole(cls, classes: dict[str, Decimal]) -> dict[str, Decimal]:
        if sum(classes.values()) != 100 or not all(classes.values()):
            raise ValueError("must be percentages above 0 that add up to 100")
        return classes


@lru_cache
def standard_rfm_groups() -> Mapping[str, tuple[str, ...]]:
    """The eleven groups of policies/rfm_groups.toml: RFM codes, recency first, 5 is best."""
    text = resources.files("models").joinpath("policies/rfm_groups.toml").read_text(encoding="utf-8")
    return {name: tuple(codes) for name, codes in tomllib.loads(text)["groups"].items()}


def _every_code() -> Iterator[str]:
    return (f"{r}{f}{m}" for r in range(1, 6) for f in range(1, 6) for m in range(1, 6))


class RfmPolicy(Scored):
    """Recency, frequency and monetary scored 1 to 5 by the population's quintiles, and codes to groups."""

    engine: Literal["rfm"]
    groups: dict[Label, Texts] = Field(default_factory=lambda: dict(standard_rfm_groups()))

    @property
    def labels(self) -> tuple[str, ...]:
        """See Engine."""
        return tuple(self.groups)

    @field_validator("groups")
    @classmethod
    def _partition(cls, groups: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        codes = [code for group in groups.values() for code in group]
        every = set(_every_code())
        if twice := sorted({code for code in codes if codes.count(code) > 1}):
            raise ValueError(f"must name each code once; {', '.join(twice)} is there twice")
        if unknown := sorted(set(codes) - every):
            raise ValueError(f"must be codes from 111 to 555; {', '.join(unknown)} is none")
        if missing := sorted(every - set(codes)):
            raise ValueError(f"must cover all 125 codes; {', '.join(missing[:5])} is missing")
        return groups


#: Customers for each cluster that a draw must have before anything is learned.
ENOUGH: Final = 20


class ClusterPolicy(Scored):
    """Groups of customers that nobody defined, learned from them as they change (models/clustering.py).

    ``features`` are measures and numeric attributes that a customer must have; ``sample`` customers of the whole
    population are learned from at each of its instants. A customer moves when they are ``margin`` percent of the way
    from the border between two clusters to the other's centre.
    """

    engine: Literal["cluster"]
    clusters: Annotated[int, Field(ge=2, le=50)] = 5
    features: Features = ("recency_days", "orders", "monetary")
    sample: Annotated[int, Field(ge=100, le=5000)] = 1000
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 1
    margin: Percent = Decimal(10)

    @property
    def labels(self) -> tuple[str, ...]:
        """See Engine."""
        return tuple(f"c{number}" for number in range(1, self.clusters + 1))

    @field_validator("features")
    @classmethod
    def _usable(cls, features: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(features)) != len(features):
            raise ValueError("must name each measure once")
        if moving := sorted({"orders_per_month", "age"} & set(features)):
            raise ValueError(f"cannot be {', '.join(moving)}; use orders and tenure_days, or birth_year")
        return features

    @model_validator(mode="after")
    def _enough(self) -> ClusterPolicy:
        if self.sample < ENOUGH * self.clusters:
            raise ValueError(f"sample must be at least {ENOUGH} for each cluster, {ENOUGH * self.clusters}")
        return self


class Condition(Section):
    """One thing that must hold: a measure in [from, below), or a text or segment that is, or is not, one of some."""

    measure: Name | None = None
    from_: Number | None = Field(default=None, alias="from")
    below: Number | None = None
    attribute: Name | None = None
    dimension: Name | None = None
    is_: Texts | None = Field(default=None, alias="is")
    not_: Texts | None = Field(default=None, alias="not")

    @model_validator(mode="after")
    def _one_form(self) -> Condition:
        subjects = [each for each in (self.measure, self.attribute, self.dimension) if each is not None]
        if len(subjects) != 1:
            raise ValueError("must name one measure, attribute or dimension")
        if self.measure is not None:
            if self.is_ is not None or self.not_ is not None or (self.from_ is None and self.below is None):
                raise ValueError("a measure needs from, below or both, and neither is nor not")
            if self.from_ is not None and self.below is not None and self.from_ >= self.below:
                raise ValueError("from must be less than below")
        elif (self.is_ is None) == (self.not_ is None) or self.from_ is not None or self.below is not None:
            raise ValueError("an attribute or dimension needs either is or not, and neither from nor below")
        return self


class Rule(Section):
    """All conditions of ``when`` hold: this segment."""

    segment: Label
    when: Annotated[tuple[Condition, ...], BeforeValidator(array), Field(min_length=1, max_length=50)]


class RulesPolicy(Engine):
    """The segment of the first rule that holds, else ``otherwise``, else none."""

    engine: Literal["rules"]
    rules: Annotated[tuple[Rule, ...], BeforeValidator(array), Field(min_length=1, max_length=200)]
    otherwise: Label | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """See Engine."""
        named = [rule.segment for rule in self.rules]
        return tuple(dict.fromkeys(named if self.otherwise is None else [*named, self.otherwise]))

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions of all rules."""
        return tuple(condition for rule in self.rules for condition in rule.when)


EnginePolicy = Annotated[
    LifecyclePolicy | AttributePolicy | BandsPolicy | DominantPolicy | ParetoPolicy | RfmPolicy | ClusterPolicy
    | RulesPolicy,
    Field(discriminator="engine"),
]  # fmt: skip
