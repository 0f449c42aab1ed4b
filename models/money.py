"""Money: decimal texts of any configured currency to int64 minor units of the base currency, and back.

Exact: a double is used only for texts of at most 15 digits, which it holds without loss; everything else goes
through Decimal. Other currencies are converted by the policy's rates and rounded half to even, once, per event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.errors import Refused

#: The most one event may be worth, in minor units of the base currency: 10^15.
LARGEST_AMOUNT: Final = 10**15
#: The most a customer's total may be; beyond it the event is refused instead of wrapping around.
LARGEST_TOTAL: Final = 2**62

#: Holds the product of any amount and any rate exactly, so that it is rounded once.
_WIDE: Final = Context(prec=60, rounding=ROUND_HALF_EVEN)

_NO_DECIMALS = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"
_THREE_DECIMALS = "BHD IQD JOD KWD LYD OMR TND"
_FOUR_DECIMALS = "CLF UYW"
#: Decimals of a currency's minor unit, where they are not two (ISO 4217, table A.1).
_EXPONENTS: Final = (
    dict.fromkeys(_NO_DECIMALS.split(), 0)
    | dict.fromkeys(_THREE_DECIMALS.split(), 3)
    | dict.fromkeys(_FOUR_DECIMALS.split(), 4)
)


def exponent(currency: str) -> int:
    """Decimals of the currency's minor unit (ISO 4217): USD 2, JPY 0, KWD 3."""
    return _EXPONENTS.get(currency, 2)


class Converter:
    """Turns (amount, currency) columns into minor units of ``base``.

    ``rates`` maps an ISO 4217 code to the units of ``base`` that one unit of it is worth.
    """

    def __init__(self, base: str, rates: Mapping[str, Decimal]) -> None:
        self.base = base
        self._rates = dict(rates) | {base: Decimal(1)}
        self._decimals = exponent(base)
        self._scale = 10**self._decimals

    def column(self, amounts: Sequence[str], currencies: Sequence[str]) -> NDArray[np.int64]:
        """Minor units of the base currency. Raises Refused if any row cannot be converted."""
        if currencies.count(self.base) == len(currencies) and max(map(len, amounts), default=0) <= 15:
            values = np.fromiter(map(float, amounts), dtype=np.float64, count=len(amounts))
            scaled = np.rint(values * self._scale)
            if (scaled / self._scale == values).all() and (scaled <= LARGEST_AMOUNT).all():
                minor: NDArray[np.int64] = scaled.astype(np.int64)
                return minor
        return np.array([self.one(a, c) for a, c in zip(amounts, currencies, strict=True)], dtype=np.int64)

    def one(self, amount: str, currency: str) -> int:
        """One amount in minor units of the base currency. Raises Refused."""
        rate = self._rates.get(currency)
        if rate is None:
            known = ", ".join(sorted(self._rates))
            raise Refused(
                "unknown_currency",
                f"no rate for currency {currency}; add it to [money.rates] of the policy (known: {known})",
            )
        value = Decimal(amount)
        decimals = exponent(currency)
        if value != value.quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_HALF_EVEN):
            raise Refused("too_many_decimals", f"amount {amount} has more decimals than {currency} has ({decimals})")
        minor = int(_WIDE.multiply(_WIDE.multiply(value, rate), self._scale).quantize(Decimal(1), context=_WIDE))
        if minor > LARGEST_AMOUNT:
            raise Refused("amount_too_large", f"amount {amount} {currency} is beyond what one event may be worth")
        return minor

    def text(self, minor: int) -> str:
        """Minor units as a decimal text with the currency's decimals: 1230 → ``12.30``."""
        places = self._decimals
        if not places:
            return str(minor)
        digits = str(abs(minor)).zfill(places + 1)
        return f"{'-' if minor < 0 else ''}{digits[:-places]}.{digits[-places:]}"
