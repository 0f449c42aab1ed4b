"""A plain batch computation with pandas: every customer's labels at an instant, from the raw events before it.

Nothing here is the project's code. The groups of RFM codes and of countries are read from the shipped policies as data,
the cut-offs are given.
"""

import tomllib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from importlib import resources
from typing import Any

import numpy as np
import orjson
import pandas as pd

MONTH = 2_629_800_000_000  # microseconds in 30.4375 days
QUINTILES = (Fraction(1, 5), Fraction(2, 5), Fraction(3, 5), Fraction(4, 5))
Cuts = Mapping[str, Sequence[int]]


def _shipped(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files("models").joinpath(f"policies/{name}.toml").read_text(encoding="utf-8"))


RFM_GROUPS = {int(code): group for group, codes in _shipped("rfm_groups")["groups"].items() for code in codes}
REGIONS = {
    country.casefold(): region
    for region, countries in _shipped("default")["dimensions"]["region"]["groups"].items()
    for country in countries
}


def frame(values: Sequence[bytes]) -> pd.DataFrame:
    """Recorded purchases and refunds: kind, customer, at (microseconds), minor, country.

    Each event_id once, and without events of nobody.
    """
    raw = pd.DataFrame([orjson.loads(value) for value in values])
    raw = raw.drop_duplicates("event_id").dropna(subset=["customer_id"])
    when = pd.to_datetime(raw["occurred_at"], utc=True).dt.tz_localize(None)
    found = pd.DataFrame(
        {
            "kind": raw["kind"],
            "customer": raw["customer_id"],
            "at": (when - pd.Timestamp(0)) // pd.Timedelta(1, "us"),
            "minor": raw["amount"].str.replace(".", "", regex=False).astype("int64"),
        }
    )
    assert raw["amount"].str.fullmatch(r"[0-9]+\.[0-9]{2}").all()
    found["country"] = raw.get("country")
    return found


def month_ends(first: str, last: str) -> list[int]:
    """The first instants of months, in UTC, both included, as microseconds."""
    starts = pd.date_range(first, last, freq="MS")
    return [int(each) for each in (starts - pd.Timestamp(0)) // pd.Timedelta(1, "us")]


def buyers(events: pd.DataFrame, instant: int) -> pd.DataFrame:
    """Everybody who bought before the instant: orders, gross, net, first and last purchase, age of the last one."""
    before = events[events["at"] < instant]
    bought = before[before["kind"] == "purchase"].groupby("customer")
    found = pd.DataFrame(
        {
            "orders": bought.size(),
            "gross": bought["minor"].sum(),
            "first": bought["at"].min(),
            "last": bought["at"].max(),
        }
    )
    returned = before[before["kind"] == "refund"].groupby("customer")["minor"].sum()
    found["net"] = found["gross"] - returned.reindex(found.index, fill_value=0)
    found["age"] = instant - found["last"]
    return found


def _above(values: pd.Series, cuts: Sequence[int]) -> pd.Series:
    """How many cut-offs lie below each value."""
    return sum((values > cut).astype(int) for cut in cuts)


def labels(events: pd.DataFrame, instant: int, rfm: Cuts, value: Cuts) -> pd.DataFrame:
    """rfm, value, spend, pace and region of every customer known before the instant; None for none."""
    every = events.loc[events["at"] < instant]
    latest = every.sort_values(["at", "country"]).groupby("customer")["country"].last()
    found = pd.DataFrame(index=latest.index)
    found["region"] = latest.map(lambda country: REGIONS.get(country.casefold(), "elsewhere"), na_action="ignore")
    known = buyers(events, instant)
    if rfm:
        recency = 5 - _above(known["age"], rfm["recency"])
        frequency = 1 + _above(known["orders"], rfm["orders"])
        monetary = 1 + _above(known["net"], rfm["monetary"])
        found["rfm"] = (100 * recency + 10 * frequency + monetary).map(RFM_GROUPS)
        b_from, a_from = value["monetary"]
        found["value"] = pd.Series(
            np.where(known["net"] >= a_from, "A", np.where(known["net"] >= b_from, "B", "C")), known.index
        )
    else:
        found["rfm"] = found["value"] = None
    # All in whole numbers: gross / orders >= 30 money units, orders / months >= 1.
    gross, orders = known["gross"], known["orders"]
    found["spend"] = pd.Series(
        np.select([gross >= 10_000 * orders, gross >= 3_000 * orders], ["large", "medium"], "small"), known.index
    )
    passed = np.maximum(instant - known["first"], MONTH)
    found["pace"] = pd.Series(
        np.select([orders * MONTH >= 4 * passed, orders * MONTH >= passed], ["weekly", "monthly"], "rare"), known.index
    )
    return found.astype(object).where(found.notna(), None)


def assert_near_quantiles(events: pd.DataFrame, instant: int, rfm: Cuts, value: Cuts) -> None:
    """Each cut-off lies between the exact quantiles one percentile point below and above its own."""
    known, point = buyers(events, instant), Fraction(1, 100)
    for of, column in (("recency", "age"), ("orders", "orders"), ("monetary", "net")):
        for share, cut in zip(QUINTILES, rfm[of], strict=True):
            low, high = np.quantile(
                known[column].to_numpy(), [float(share - point), float(share + point)], method="inverted_cdf"
            )
            assert low <= cut <= high, (of, share, cut, low, high)
    # From the greatest down, the customer with whom a share of all revenue is reached.
    earned = known["net"].sort_values(ascending=False)
    reached = earned.clip(lower=0).cumsum() / earned.clip(lower=0).sum()
    for share, cut in zip((0.95, 0.80), value["monetary"], strict=True):
        high, low = (earned[reached >= share + shift].iloc[0] for shift in (-0.01, 0.01))
        assert low <= cut <= high, ("value", share, cut, low, high)
