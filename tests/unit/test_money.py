"""Money: decimal texts to exact minor units of the base currency, and back."""

import random
from decimal import ROUND_HALF_EVEN, Decimal, localcontext

import pytest

from models.errors import Refused
from models.money import LARGEST_AMOUNT, LARGEST_TOTAL, Converter, exponent

USD = Converter("USD", {})


def exact(amount: str, rate: str, decimals: int) -> int:
    """Minor units by arithmetic that loses nothing, rounded half to even once."""
    with localcontext(prec=100):
        return int((Decimal(amount) * Decimal(rate)).scaleb(decimals).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


def code_of(converter: Converter, amount: str, currency: str) -> str:
    """The refusal's code; the column must refuse what a single amount does."""
    with pytest.raises(Refused) as single:
        converter.one(amount, currency)
    with pytest.raises(Refused) as column:
        converter.column(["1", amount], [converter.base, currency])
    assert column.value.code == single.value.code
    assert column.value.reason == single.value.reason
    return single.value.code


@pytest.mark.parametrize(
    ("currency", "decimals"), [("USD", 2), ("EUR", 2), ("JPY", 0), ("KRW", 0), ("KWD", 3), ("TND", 3), ("CLF", 4)]
)
def test_minor_units_are_those_of_iso_4217(currency: str, decimals: int) -> None:
    """Every currency has the decimals that ISO 4217 gives it; two unless the table says otherwise."""
    assert exponent(currency) == decimals


def test_every_cent_is_exact() -> None:
    """All amounts up to 1,000.00, in one column, are the cents they say."""
    amounts = [f"{cents // 100}.{cents % 100:02d}" for cents in range(100_001)]
    assert USD.column(amounts, ["USD"] * len(amounts)).tolist() == list(range(100_001))


def test_random_amounts_equal_decimal_arithmetic() -> None:
    """Amounts of up to 13 digits before the point, of any number of decimals that fit, equal Decimal's."""
    rng = random.Random(3)
    for base in ("USD", "JPY", "KWD"):
        decimals = exponent(base)
        amounts = []
        for _ in range(3000):
            whole = str(rng.randrange(10 ** rng.randrange(1, 13)))
            places = rng.randrange(decimals + 1)
            amounts.append(f"{whole}.{rng.randrange(10**places):0{places}d}" if places else whole)
        expected = [exact(amount, "1", decimals) for amount in amounts]
        short = [(a, e) for a, e in zip(amounts, expected, strict=True) if len(a) <= 15]
        converter = Converter(base, {})
        assert converter.column(amounts, [base] * len(amounts)).tolist() == expected
        assert converter.column([a for a, _ in short], [base] * len(short)).tolist() == [e for _, e in short]


@pytest.mark.parametrize(
    ("amount", "cents"),
    [
        ("0", 0), ("0.00", 0), ("0.01", 1), ("0.1", 10), ("007", 700), ("1.000000", 100), ("1.100000", 110),
        ("90071992547.93", 9_007_199_254_793), ("123456789012.34", 12_345_678_901_234),
        ("999999999999.99", 99_999_999_999_999), ("1234567890123.45", 123_456_789_012_345),
        ("9999999999999.98", 999_999_999_999_998), ("9999999999999.99", 999_999_999_999_999),
    ],
)  # fmt: skip
def test_long_amounts_lose_nothing(amount: str, cents: int) -> None:
    """Amounts of 15 and more digits are exact to the cent, alone, in a column of their like and beside others."""
    assert USD.one(amount, "USD") == cents
    assert USD.column([amount, amount], ["USD", "USD"]).tolist() == [cents, cents]
    assert USD.column(["0.07", amount], ["USD", "USD"]).tolist() == [7, cents]


@pytest.mark.parametrize(
    ("base", "amount", "currency"),
    [
        ("USD", "0.001", "USD"), ("USD", "0.005", "USD"), ("USD", "1.999", "USD"), ("USD", "9999999999999.999", "USD"),
        ("USD", "1.000001", "USD"), ("JPY", "12.5", "JPY"), ("KWD", "1.0001", "KWD"), ("USD", "12.5", "JPY"),
    ],
)  # fmt: skip
def test_too_many_decimals_are_refused(base: str, amount: str, currency: str) -> None:
    """An amount finer than its currency's minor unit is refused, not rounded; the reason says how fine it may be."""
    converter = Converter(base, {"JPY": Decimal("0.0067")} if base == "USD" else {})
    assert code_of(converter, amount, currency) == "too_many_decimals"
    with pytest.raises(Refused, match=rf"{currency} has \({exponent(currency)}\)"):
        converter.one(amount, currency)


def test_zeros_beyond_the_minor_unit_are_no_decimals() -> None:
    """Trailing zeros change nothing, whether the whole column is short or not."""
    assert USD.column(["2.500", "2.5", "2.500000"], ["USD"] * 3).tolist() == [250, 250, 250]
    assert Converter("JPY", {}).column(["12.00"], ["JPY"]).tolist() == [12]
    assert USD.column(["0000000000002.500000", "1"], ["USD"] * 2).tolist() == [250, 100]


def test_unknown_currency_is_refused() -> None:
    """A currency without a rate is refused; the reason names it, the key to add it under, and what is known."""
    converter = Converter("USD", {"GBP": Decimal("1.25"), "EUR": Decimal("1.08")})
    assert code_of(converter, "1", "SEK") == "unknown_currency"
    with pytest.raises(Refused, match=r"SEK; add it to \[money\.rates\] of the policy \(known: EUR, GBP, USD\)"):
        converter.one("1", "SEK")


def test_yen_and_dinars_are_counted_in_their_own_units() -> None:
    """A base currency without decimals counts whole units, one with three counts thousandths."""
    assert Converter("JPY", {}).column(["0", "1500"], ["JPY", "JPY"]).tolist() == [0, 1500]
    assert Converter("KWD", {}).column(["0.001", "1.5", "12.345"], ["KWD"] * 3).tolist() == [1, 1500, 12_345]


@pytest.mark.parametrize(
    ("amount", "currency", "cents"),
    [
        ("0.01", "EUR", 0),  # half a cent, to the even 0
        ("0.03", "EUR", 2),  # 1.5
        ("0.05", "EUR", 2),  # 2.5
        ("0.07", "EUR", 4),  # 3.5
        ("0.02", "EUR", 1),
        ("100", "JPY", 67),
        ("1", "JPY", 1),  # 0.67
        ("75", "JPY", 50),  # 50.25
        ("0.001", "KWD", 0),  # 0.325
        ("1.234", "KWD", 401),  # 401.05
        ("12.34", "USD", 1234),
    ],
)
def test_rates_round_half_to_even(amount: str, currency: str, cents: int) -> None:
    """Other currencies are converted by their rate and rounded once, halves to the even cent."""
    rates = {"EUR": Decimal("0.5"), "JPY": Decimal("0.0067"), "KWD": Decimal("3.25")}
    converter = Converter("USD", rates)
    assert converter.one(amount, currency) == cents
    assert converter.column(["9.99", amount], ["USD", currency]).tolist() == [999, cents]


def test_a_mixed_column_is_each_amount_on_its_own() -> None:
    """A column of several currencies gives, row by row, what each amount gives alone."""
    rng = random.Random(4)
    rates = {"EUR": "1.083", "JPY": "0.006712", "KWD": "3.257001"}
    converter = Converter("USD", {code: Decimal(rate) for code, rate in rates.items()})
    currencies = rng.choices(["USD", *rates], k=500)
    amounts = [str(Decimal(rng.randrange(10**8)).scaleb(-exponent(currency))) for currency in currencies]
    expected = [exact(a, ({"USD": "1"} | rates)[c], 2) for a, c in zip(amounts, currencies, strict=True)]
    assert converter.column(amounts, currencies).tolist() == expected


def test_conversion_is_rounded_only_once() -> None:
    """However many digits amount and rate have, the exact product is what is rounded."""
    converter = Converter("JPY", {"KWD": Decimal("100.000000000001")})
    assert converter.one("4000000000000.005", "KWD") == exact("4000000000000.005", "100.000000000001", 0)


def test_amounts_have_an_upper_limit() -> None:
    """An event may be worth 10^15 minor units and not one more, in the base currency and converted."""
    dinars = Converter("KWD", {"USD": Decimal("1000")})
    assert dinars.column(["1000000000000"], ["KWD"]).tolist() == [LARGEST_AMOUNT]
    assert dinars.column(["1000000000000.000"], ["KWD"]).tolist() == [LARGEST_AMOUNT]
    assert code_of(dinars, "1000000000000.001", "KWD") == "amount_too_large"
    assert code_of(dinars, "9999999999999", "KWD") == "amount_too_large"
    assert code_of(dinars, "1000000000.01", "USD") == "amount_too_large"
    assert Converter("USD", {"EUR": Decimal("999999999.999999999999")}).one("0.01", "EUR") == 10**9
    assert LARGEST_TOTAL + LARGEST_AMOUNT < 2**63


def test_an_empty_column_stays_empty() -> None:
    """No amounts are no minor units."""
    assert USD.column([], []).tolist() == []


@pytest.mark.parametrize(
    ("base", "minor", "written"),
    [
        ("USD", 0, "0.00"), ("USD", 5, "0.05"), ("USD", 1230, "12.30"), ("USD", -5, "-0.05"), ("USD", -1230, "-12.30"),
        ("USD", -100, "-1.00"), ("USD", 10**18 + 1, "10000000000000000.01"), ("JPY", 1500, "1500"),
        ("JPY", -1500, "-1500"), ("JPY", 0, "0"), ("KWD", 1, "0.001"), ("KWD", -12_345, "-12.345"),
        ("CLF", 1, "0.0001"),
    ],
)  # fmt: skip
def test_text_has_the_currencys_decimals(base: str, minor: int, written: str) -> None:
    """Minor units are written with all decimals of the base currency, and a sign only below zero."""
    assert Converter(base, {}).text(minor) == written
    assert Decimal(written) == Decimal(minor).scaleb(-exponent(base))


def test_text_read_again_is_the_same_amount() -> None:
    """What text() writes, column() reads back."""
    for base in ("USD", "JPY", "KWD"):
        converter = Converter(base, {})
        minors = [0, 1, 9, 10, 99, 100, 101, 12_345, 10**12 + 7]
        assert converter.column([converter.text(m) for m in minors], [base] * len(minors)).tolist() == minors
