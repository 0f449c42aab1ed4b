"""At which numbers the logarithmic axis of a measure is marked, and how they are written."""

from __future__ import annotations

from typing import Final

import numpy as np

from models.clusters import logged, unlogged
from models.sampling import MOVING

#: Days, the roundest first.
_DAYS: Final = {0: "0 d", 30: "30 d", 365: "1 y", 7: "7 d", 90: "90 d", 1: "1 d", 3: "3 d", 14: "14 d", 180: "180 d",
                730: "2 y", 1826: "5 y", 3652: "10 y", 7305: "20 y"}  # fmt: skip
#: Powers of ten.
_LARGEST: Final = 13
_UNITS: Final = ((1e9, " bn"), (1e6, " m"), (1e3, " k"), (1.0, ""))
_FEWEST: Final = 3


def marks(feature: str, limits: tuple[float, float], most: int) -> dict[float, str]:
    """Places on an axis of logarithms, with their texts: numbers that people use, as far as there is room for them.

    The axis goes from one of the ``limits`` to the other, and has room for about ``most`` texts.
    """
    from matplotlib.ticker import MaxNLocator

    apart, kept = (limits[1] - limits[0]) / most, dict[float, str]()
    for value, text in (_DAYS if feature in MOVING else _numbers()).items():
        place = _place(value)
        if limits[0] <= place <= limits[1] and all(abs(place - other) >= apart for other in kept):
            kept[place] = text
    if len(kept) >= _FEWEST:
        return kept
    # Customers differ by less than from one round number to the next: any numbers.
    low, high = unlogged(np.array(limits)).tolist()
    unit = " d" if feature in MOVING else ""
    values = [value for value in map(float, MaxNLocator(5).tick_values(low, high)) if low <= value <= high]
    return {_place(value): f"{value:,.10g}{unit}" for value in values}


def _place(value: float) -> float:
    return float(logged(np.array([value]))[0])


def _numbers() -> dict[float, str]:
    """0, powers of ten, five times and twice as much, and their negatives; short, the roundest first."""
    powers = 10.0 ** np.arange(_LARGEST)
    texts = {0.0: "0"}
    for value in np.concatenate([powers[::3], powers, 5 * powers, 2 * powers]).tolist():
        size, name = next(unit for unit in _UNITS if value >= unit[0])
        texts |= {value: f"{value / size:g}{name}", -value: f"−{value / size:g}{name}"}
    return texts
