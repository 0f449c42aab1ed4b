"""What engines know about a customer: measures, each with when time moves it over a bound, and texts by their code.

A measure that time moves is compared by instants only: ``value >= bound`` turns once, after an instant that is counted
in whole microseconds from the row. Labels and deadlines both come from that instant, so they cannot disagree.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from models.engines import Grouping
from models.instants import DAY, FOREVER, NEVER, Instants
from models.money import Converter
from models.policy import Policy
from models.table import NO_LABEL, AttributeValues, CustomerTable, Rows

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Values = Callable[[CustomerTable, Rows], NDArray[np.int64] | Floats]

#: Turns that lie outside of all time: the comparison is as it is for good.
_PAST: Final = -(2**63) + 1
_FUTURE: Final = 2**63 - 1
#: More than any two instants lie apart; added to a real instant it is beyond FOREVER, and still an int64.
_AGES: Final = 2**62 + 2**58
#: 30.4375 days.
_MONTH: Final = 2_629_800_000_000


class Scale(ABC):
    """A measure against ascending bounds.

    The bound -Infinity is reached by every value, Infinity by none; an absent value reaches no bound and never turns.
    """

    #: Whether time alone moves the measure.
    moves: bool

    @abstractmethod
    def reached(self, table: CustomerTable, rows: Rows, at: Instants) -> Bools:
        """Whether the value is at least the bound, each customer's at its own instant.

        One row for each bound, one column for each customer.
        """

    @abstractmethod
    def next_turn(self, table: CustomerTable, rows: Rows, at: Instants) -> Instants:
        """Each customer's first instant, not before ``at``, after which it has reached other bounds, or FOREVER."""


class _MovingScale(Scale):
    """A bound is reached after its turn, or up to it by what falls as time passes."""

    moves = True
    rises = True

    @abstractmethod
    def turns(self, table: CustomerTable, rows: Rows) -> Instants:
        """The last instant before the comparison changes, or one outside of all time; bounds by customers."""

    def reached(self, table: CustomerTable, rows: Rows, at: Instants) -> Bools:
        turns = self.turns(table, rows)
        reached: Bools = at > turns if self.rises else at <= turns
        return reached

    def next_turn(self, table: CustomerTable, rows: Rows, at: Instants) -> Instants:
        turns = self.turns(table, rows)
        earliest: Instants = np.where(turns >= at, turns, FOREVER).min(axis=0, initial=FOREVER)
        return earliest


class Measure(ABC):
    """One number known about a customer. ``reads`` is what fold() may report that moves it."""

    def __init__(self, name: str, reads: frozenset[str]) -> None:
        self.name: Final = name
        self.reads: Final = reads

    @abstractmethod
    def value(self, table: CustomerTable, rows: Rows, at: Instants) -> Floats:
        """The number, NaN if it is absent; money in minor units of the base currency."""

    @abstractmethod
    def against(self, bounds: Sequence[Decimal]) -> Scale:
        """The measure against bounds as the policy writes them, ascending."""

    def text(self, value: float) -> str:
        """A value for people. Cut off, not rounded, so that it does not seem to reach a bound that it does not."""
        whole, _, part = f"{Decimal(repr(float(value))):f}".partition(".")
        return f"{whole}.{part[:2]}".rstrip("0").rstrip(".")


class _Fixed(Measure):
    """A measure that time does not move: numbers as they are, or whole numbers, which are compared as such."""

    unit = 1

    def __init__(self, name: str, reads: frozenset[str], column: Values, whole: bool = False) -> None:
        super().__init__(name, reads)
        self._column = column
        self._whole = whole

    def value(self, table: CustomerTable, rows: Rows, at: Instants) -> Floats:
        return self._column(table, rows).astype(np.float64)

    def against(self, bounds: Sequence[Decimal]) -> Scale:
        scaled = [bound * self.unit for bound in bounds]
        if not self._whole:
            return _FixedScale(self._column, np.array([float(bound) for bound in scaled], dtype=np.float64))
        least = [ceil(min(max(bound, Decimal(_PAST)), Decimal(_FUTURE))) for bound in scaled]
        return _FixedScale(self._column, np.array(least, dtype=np.int64))


class _FixedScale(Scale):
    moves = False

    def __init__(self, column: Values, bounds: Floats | NDArray[np.int64]) -> None:
        self._column = column
        self._bounds = bounds[:, None]

    def reached(self, table: CustomerTable, rows: Rows, at: Instants) -> Bools:
        reached: Bools = self._column(table, rows) >= self._bounds
        return reached

    def next_turn(self, table: CustomerTable, rows: Rows, at: Instants) -> Instants:
        return np.full(len(rows), FOREVER, dtype=np.int64)


class _Money(_Fixed):
    """A fixed measure in minor units of the base currency."""

    def __init__(self, name: str, reads: frozenset[str], column: Values, whole: bool, converter: Converter) -> None:
        super().__init__(name, reads, column, whole)
        self._converter = converter
        self.unit = converter.one("1", converter.base)

    def text(self, value: float) -> str:
        return self._converter.text(floor(value))


class _Days(Measure):
    """Days since the instant of a column; none before it. ``absent`` is what the column holds if there is none."""

    def __init__(self, name: str, column: str, absent: int) -> None:
        super().__init__(name, frozenset(("purchases",)))
        self.column: Final = column
        self.absent: Final = absent

    def value(self, table: CustomerTable, rows: Rows, at: Instants) -> Floats:
        since = getattr(table, self.column)[rows]
        known = since != self.absent
        passed = np.maximum(at - np.where(known, since, at), 0)
        return np.where(known, passed / DAY, np.nan)

    def against(self, bounds: Sequence[Decimal]) -> Scale:
        return _DaysScale(self, bounds)


class _DaysScale(_MovingScale):
    """The bound is reached so long after the column's instant; 0 and less always."""

    def __init__(self, measure: _Days, bounds: Sequence[Decimal]) -> None:
        self._column, self._absent = measure.column, measure.absent
        steps = [-_AGES if bound <= 0 else _AGES if bound * DAY > 2**61 else int(bound * DAY) - 1 for bound in bounds]
        self._steps = np.array(steps, dtype=np.int64)[:, None]

    def turns(self, table: CustomerTable, rows: Rows) -> Instants:
        since = getattr(table, self._column)[rows]
        known = since != self._absent
        return np.where(known, np.where(known, since, 0) + self._steps, _FUTURE)


class _Pace(Measure):
    """Orders a month since the first purchase, of which at least one month is counted."""

    def __init__(self) -> None:
        super().__init__("orders_per_month", frozenset(("purchases",)))

    def value(self, table: CustomerTable, rows: Rows, at: Instants) -> Floats:
        orders, first = table.orders[rows], table.first_purchase_at[rows]
        known = orders > 0
        passed = np.maximum(at - np.where(known, first, at), _MONTH)
        return np.where(known, orders * float(_MONTH) / passed, np.nan)

    def against(self, bounds: Sequence[Decimal]) -> Scale:
        return _PaceScale(bounds)


class _PaceScale(_MovingScale):
    """A customer with at least ``bound`` orders holds it until orders * month / bound after the first, then no more."""

    rises = False

    def __init__(self, bounds: Sequence[Decimal]) -> None:
        columns = np.array([self._terms(bound) for bound in bounds], dtype=np.int64).T[:, :, None]
        self._least, self._whole, self._rest, self._part, self._most = columns

    @staticmethod
    def _terms(bound: Decimal) -> tuple[int, int, int, int, int]:
        """The fewest orders that reach it, the microseconds of each as whole + rest / part, the most to multiply."""
        if bound <= 0:
            return 0, 0, 0, 1, -1
        if bound > 2**32:
            return 2**62, 0, 0, 1, 2**62
        each = _MONTH / Fraction(bound)
        over, part = each.numerator, each.denominator
        if part * part > over:  # orders * rest might overflow; a bound that fine is off by a microsecond an order
            over, part = over // part, 1
        return ceil(bound), over // part, over % part, part, 2**61 // (over // part + 1)

    def turns(self, table: CustomerTable, rows: Rows) -> Instants:
        orders, first = table.orders[rows], table.first_purchase_at[rows]
        known = orders > 0
        counted = np.minimum(orders, self._most)
        length = np.where(counted < orders, _AGES, counted * self._whole + counted * self._rest // self._part)
        return np.where(known & (orders >= self._least), np.where(known, first, 0) + length, _PAST)


#: The instant before each year from 0 to 10000; beyond those an age is as it is for good.
_YEAR_TURNS: Final = np.arange(-1970, 8031).astype("datetime64[Y]").astype("datetime64[us]").astype(np.int64) - 1
_YEAR_TURNS[0], _YEAR_TURNS[-1] = _PAST, _FUTURE


class _Age(Measure):
    """The calendar year, in UTC, less the year of birth: everybody's age moves at New Year."""

    def __init__(self) -> None:
        super().__init__("age", frozenset(("birth_year",)))

    def value(self, table: CustomerTable, rows: Rows, at: Instants) -> Floats:
        years = at.astype("datetime64[us]").astype("datetime64[Y]").astype(np.int64) + 1970
        value: Floats = years - _number(table, rows, "birth_year")
        return value

    def against(self, bounds: Sequence[Decimal]) -> Scale:
        return _AgeScale(bounds)


class _AgeScale(_MovingScale):
    def __init__(self, bounds: Sequence[Decimal]) -> None:
        self._bounds = np.array([float(bound) for bound in bounds], dtype=np.float64)[:, None]

    def turns(self, table: CustomerTable, rows: Rows) -> Instants:
        years = np.ceil(_number(table, rows, "birth_year") + self._bounds)
        # fmin takes the number of a number and NaN: who has no year of birth reaches the bound in no year there is.
        turns: Instants = _YEAR_TURNS[np.fmax(np.fmin(years, 10_000), 0).astype(np.int64)]
        return turns


def _number(table: CustomerTable, rows: Rows, name: str) -> Floats:
    values: Floats = table.number[table.numbers.index(name)][rows]
    return values


def _quotient(above: NDArray[np.int64], below: NDArray[np.int64]) -> Floats:
    """The quotient, NaN where ``below`` is 0."""
    return np.where(below > 0, above / np.maximum(below, 1), np.nan)


def measure(name: str, policy: Policy) -> Measure:
    """The measure or numeric attribute of this name."""
    purchases, net, converter = frozenset(("purchases",)), frozenset(("purchases", "refunds")), policy.converter
    match name:
        case "recency_days":
            return _Days(name, "last_purchase_at", NEVER)
        case "tenure_days":
            return _Days(name, "first_purchase_at", FOREVER)
        case "orders_per_month":
            return _Pace()
        case "age":
            return _Age()
        case "orders":
            return _Fixed(name, purchases, lambda table, rows: table.orders[rows], whole=True)
        case "refunds":
            return _Fixed(name, frozenset((name,)), lambda table, rows: table.refunds[rows], whole=True)
        case "monetary":
            return _Money(name, net, lambda table, rows: table.net(rows), True, converter)
        case "average_order":
            return _Money(name, purchases, lambda t, rows: _quotient(t.gross[rows], t.orders[rows]), False, converter)
        case "satisfaction":
            surveys = frozenset(("surveys",))
            return _Fixed(name, surveys, lambda t, rows: _quotient(t.score[rows], 100 * t.surveys[rows]))
        case _:
            return _Fixed(name, frozenset((name,)), lambda table, rows: _number(table, rows, name))


def by_group(policy: Grouping) -> TextLookup:
    """The label code of each text's segment, NO_LABEL where it has none."""
    codes: dict[str | None, int] = {segment: code for code, segment in enumerate(policy.labels)}
    return TextLookup(lambda text: codes.get(policy.segment_of(text), NO_LABEL), NO_LABEL)


class TextLookup:
    """What ``of`` says of each text of a dictionary, as an array by code; at NO_VALUE it holds ``absent``.

    Every table has dictionaries of its own, and they only grow.
    """

    def __init__(self, of: Callable[[str], int], absent: int) -> None:
        self._of = of
        self._nothing = np.array([absent], dtype=np.int16)
        self._known: WeakKeyDictionary[AttributeValues, NDArray[np.int16]] = WeakKeyDictionary()

    def __call__(self, values: AttributeValues) -> NDArray[np.int16]:
        known = self._known.get(values, self._nothing)
        if len(known) <= len(values.texts):
            added = np.array([self._of(text) for text in values.texts[len(known) - 1 :]], dtype=np.int16)
            # NO_VALUE is -1: its entry is the last.
            known = self._known[values] = np.concatenate([known[:-1], added, self._nothing])
        return known
