"""Instants: int64 microseconds since 1970 UTC, to and from RFC 3339 text, a column at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.errors import InstantError

Instants = NDArray[np.int64]

SECOND: Final = 1_000_000
DAY: Final = 86_400 * SECOND

#: Far past and far future, outside what four-digit years can say, with room to add any duration.
NEVER: Final = -(2**62)
FOREVER: Final = 2**62

RFC3339: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$"
_YEAR_0: Final = -62_167_219_200 * SECOND
_YEAR_10000: Final = 253_402_300_800 * SECOND
_SHAPE = re.compile(RFC3339.strip("^$"))


@lru_cache(maxsize=1024)
def _offset(suffix: str) -> int:
    """``+05:30`` → microseconds east of UTC. Raises InstantError beyond ±23:59."""
    hours, minutes = int(suffix[1:3]), int(suffix[4:6])
    if hours > 23 or minutes > 59:
        raise InstantError(f"{suffix} is not an offset from UTC; use Z or one within ±23:59")
    east = (hours * 3600 + minutes * 60) * SECOND
    return -east if suffix[0] == "-" else east


def parse_column(texts: Sequence[str]) -> Instants:
    """RFC 3339 texts, already of the shape RFC3339, as instants; digits below a microsecond are cut off.

    Raises InstantError when any of them is no real date, time or offset (February 30th).
    """
    if (found := _parse_alike(texts)) is not None:
        return found
    # A body is cut after 26 characters: what follows is finer than a microsecond.
    bodies = [t[:-1][:26] if t[-1] == "Z" else t[:-6][:26] for t in texts]
    try:
        instants = np.array(bodies, dtype="datetime64[us]").astype(np.int64)
    except ValueError as error:
        raise InstantError(str(error)) from None
    if not all(t[-1] == "Z" for t in texts):
        instants -= np.array([0 if t[-1] == "Z" else _offset(t[-6:]) for t in texts], dtype=np.int64)
        if len(instants) and not _YEAR_0 <= int(instants.min()) <= int(instants.max()) < _YEAR_10000:
            raise InstantError("an instant outside the years 0000 to 9999 of UTC")
    return instants


def _parse_alike(texts: Sequence[str]) -> Instants | None:
    """Texts in UTC that are all equally long, as one producer writes them, without a Python object for each."""
    if not texts or len(set(map(len, texts))) > 1:
        return None
    data = np.frombuffer("".join(texts).encode(), dtype=np.uint8)
    if len(data) != len(texts) * len(texts[0]):
        return None
    letters = data.reshape(len(texts), -1)
    cut = next((len(suffix) for suffix in (b"Z", b"+00:00") if letters[0].tobytes().endswith(suffix)), 0)
    if not cut or (letters[:, -cut:] != letters[0, -cut:]).any():
        return None
    bodies = np.ascontiguousarray(letters[:, : min(26, len(texts[0]) - cut)])
    try:
        return bodies.view(f"S{bodies.shape[1]}").ravel().astype("datetime64[us]").astype(np.int64)
    except ValueError:
        return None  # one of them is no real date, which is said elsewhere


def parse(text: str) -> int:
    """One RFC 3339 text with an offset as an instant. Raises InstantError."""
    if not _SHAPE.fullmatch(text):
        raise InstantError(f"{text!r} is not an instant; write it like 2024-01-31T09:30:00Z")
    try:
        return int(parse_column([text])[0])
    except InstantError:
        raise InstantError(f"{text!r} is no real date and time") from None


def format_column(instants: Instants) -> list[str]:
    """Instants as RFC 3339 in UTC; microseconds are written only where they are not zero."""
    if not len(instants):
        return []
    moments = instants.astype("datetime64[us]")
    fine = (instants % SECOND).astype(np.bool_)
    if not fine.any():
        whole: list[str] = np.datetime_as_string(moments, unit="s", timezone="UTC").tolist()
        return whole
    texts: list[str] = np.datetime_as_string(moments, unit="us", timezone="UTC").tolist()
    for i in (~fine).nonzero()[0].tolist():
        texts[i] = f"{texts[i][:-8]}Z"
    return texts


def format_instant(instant: int) -> str:
    """One instant as RFC 3339 in UTC."""
    return format_column(np.array([instant], dtype=np.int64))[0]
