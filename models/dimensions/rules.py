"""The rules engine: the segment of the first rule whose conditions all hold, else ``otherwise``, else none.

A condition asks for a measure in [from, below), or for an attribute or the segment of an earlier dimension that is, or
is not, one of some. What is not known of a customer meets no condition, neither ``is`` nor ``not``. Attributes are
compared without regard to case. Time moves a customer when it takes a measure over a bound, or another dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.engines import Condition, RulesPolicy
from models.instants import FOREVER, Instants
from models.measures import Bools, Measure, Scale, TextLookup, measure
from models.policy import Policy
from models.table import NO_LABEL, CustomerTable, Rows

_LEAST, _MOST = Decimal("-Infinity"), Decimal("Infinity")
#: Whether a condition holds for each row; measures' comparisons are made once for all conditions.
_Test = Callable[[CustomerTable, Rows, dict[str, Bools]], Bools]


class Rules:
    """Customers by conditions, in the order in which the policy has them."""

    def __init__(self, name: str, policy: RulesPolicy, whole: Policy) -> None:
        self.name: Final = name
        self.labels: Final = policy.labels
        self._policy = policy
        self._segments = {dimension: each.labels for dimension, each in whole.dimensions.items()}
        distinct = tuple(dict.fromkeys(policy.conditions))
        self._measures, self._bounds = _measured(distinct, whole)
        self._scales: dict[str, Scale] = {
            name: self._measures[name].against(bounds) for name, bounds in self._bounds.items()
        }
        self._tests = [self._test(condition) for condition in distinct]
        #: The rules from the last to the first: a label code and the conditions by their place among the tests.
        self._rules = [
            (self.labels.index(rule.segment), [distinct.index(condition) for condition in rule.when])
            for rule in reversed(policy.rules)
        ]
        self._otherwise = NO_LABEL if policy.otherwise is None else self.labels.index(policy.otherwise)
        others = {c.attribute or c.dimension for c in distinct} - {None}
        self.reads: Final = frozenset(
            {str(other) for other in others}.union(*(each.reads for each in self._measures.values()))
        )

    def _test(self, condition: Condition) -> _Test:
        among = condition.is_ if condition.is_ is not None else condition.not_ or ()
        wanted = condition.is_ is not None
        if condition.measure is not None:
            low, high = _interval(condition)
            bounds = self._bounds[condition.measure]
            return _in_interval(condition.measure, bounds.index(low), bounds.index(high))
        if condition.attribute is not None:
            folded = {text.casefold() for text in among}
            return _attribute(condition.attribute, TextLookup(lambda text: (text.casefold() in folded) == wanted, 0))
        dimension = condition.dimension or ""
        names = self._segments[dimension]
        # Beyond the policy's segments: a retired one, which is none of them, and for NO_LABEL the last.
        holds = np.array([(name in among) == wanted for name in names] + [not wanted, False])
        return _dimension(dimension, holds)

    def _holding(self, table: CustomerTable, rows: Rows, at: Instants) -> list[Bools]:
        reached = {name: scale.reached(table, rows, at) for name, scale in self._scales.items()}
        return [test(table, rows, reached) for test in self._tests]

    def label(self, table: CustomerTable, rows: Rows, at: Instants) -> NDArray[np.int16]:
        """The label code of each row at its instant ``at``."""
        holding = self._holding(table, rows, at)
        labels = np.full(len(rows), self._otherwise, dtype=np.int16)
        for code, (first, *more) in self._rules:
            holds = holding[first]
            for each in more:
                holds = holds & holding[each]
            labels[holds] = code
        return labels

    def deadline(self, table: CustomerTable, rows: Rows, at: Instants) -> Instants:
        """When time takes a measure of each row over a bound, not before ``at``; else FOREVER."""
        earliest = np.full(len(rows), FOREVER, dtype=np.int64)
        for scale in self._scales.values():
            if scale.moves:
                np.minimum(earliest, scale.next_turn(table, rows, at), out=earliest)
        return earliest

    def reason(self, table: CustomerTable, row: int, at: int) -> str:
        """The rule that holds, and what its conditions found."""
        rows, instants = np.array([row], dtype=np.int64), np.array([at], dtype=np.int64)
        holding = self._holding(table, rows, instants)
        for number, (rule, (_, places)) in enumerate(zip(self._policy.rules, reversed(self._rules), strict=True), 1):
            if all(holding[place][0] for place in places):
                return f"rule {number}: " + ", ".join(self._found(c, table, rows, instants) for c in rule.when)
        return "no rule holds"

    def _found(self, condition: Condition, table: CustomerTable, rows: Rows, at: Instants) -> str:
        """The value that met a condition."""
        if condition.measure is not None:
            value = self._measures[condition.measure].value(table, rows, at)
            text = self._measures[condition.measure].text(float(value[0]))
            return f"{condition.measure} {text} {_words(condition)}"
        if condition.attribute is not None:
            code = int(table.value[table.attributes.index(condition.attribute)][rows[0]])
            return f"{condition.attribute} {table.values[condition.attribute].text(code)}"
        d = table.dimensions.index(condition.dimension or "")
        return f"{condition.dimension} {table.labels[d][table.label[rows[0], d]]}"


def _interval(condition: Condition) -> tuple[Decimal, Decimal]:
    return (
        _LEAST if condition.from_ is None else condition.from_,
        _MOST if condition.below is None else condition.below,
    )


def _words(condition: Condition) -> str:
    if condition.from_ is None:
        return f"below {condition.below:f}"
    if condition.below is None:
        return f"at least {condition.from_:f}"
    return f"in [{condition.from_:f}, {condition.below:f})"


def _measured(
    conditions: tuple[Condition, ...], policy: Policy
) -> tuple[dict[str, Measure], dict[str, tuple[Decimal, ...]]]:
    """The measures of conditions, and the bounds each is compared with."""
    bounds: dict[str, set[Decimal]] = {}
    for condition in conditions:
        if condition.measure is not None:
            bounds.setdefault(condition.measure, set()).update(_interval(condition))
    return (
        {name: measure(name, policy) for name in bounds},
        {name: tuple(sorted(each)) for name, each in bounds.items()},
    )


def _in_interval(name: str, low: int, high: int) -> _Test:
    def test(table: CustomerTable, rows: Rows, reached: dict[str, Bools]) -> Bools:
        # What has reached the upper bound has reached the lower one: they differ in between.
        between: Bools = reached[name][low] != reached[name][high]
        return between

    return test


def _attribute(name: str, holds: TextLookup) -> _Test:
    def test(table: CustomerTable, rows: Rows, reached: dict[str, Bools]) -> Bools:
        found = holds(table.values[name])[table.value[table.attributes.index(name)][rows]]
        holds_there: Bools = found != 0
        return holds_there

    return test


def _dimension(name: str, holds: Bools) -> _Test:
    def test(table: CustomerTable, rows: Rows, reached: dict[str, Bools]) -> Bools:
        # Labels may be bytes, into which the number of segments need not fit.
        codes = np.minimum(table.label[rows, table.dimensions.index(name)], np.int16(len(holds) - 2))
        found: Bools = holds[codes]
        return found

    return test
