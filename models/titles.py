"""Plain words for clusters: what sets a centre apart from the population, and where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from models.clusters import Floats, unlogged

#: Deviations from the population's mean from which a word is said, and with "very".
_CLEAR: Final = 0.5
_FAR: Final = 1.5
#: Of a measure: far below, below, above, far above.
_WORDS: Final = {
    "recency_days": ("very recent", "recent", "absent", "long absent"),
    "tenure_days": ("very new", "new", "long known", "very long known"),
    "orders": ("very infrequent", "infrequent", "frequent", "very frequent"),
    "refunds": ("hardly any refunds", "few refunds", "many refunds", "very many refunds"),
    "monetary": ("very low spend", "low spend", "high spend", "very high spend"),
    "average_order": ("very small orders", "small orders", "large orders", "very large orders"),
    "satisfaction": ("very dissatisfied", "dissatisfied", "satisfied", "very satisfied"),
}
#: Of a measure in its own units, for one and for any other number.
_PHRASES: Final = {
    "recency_days": ("last purchase about {} day ago", "last purchase about {} days ago"),
    "tenure_days": ("first purchase about {} day ago", "first purchase about {} days ago"),
    "orders": ("{} order", "{} orders"),
    "refunds": ("{} refund", "{} refunds"),
    "monetary": ("{} spent", "{} spent"),
    "average_order": ("{} an order", "{} an order"),
    "satisfaction": ("satisfaction {}", "satisfaction {}"),
}


def number(value: float) -> str:
    """A number for people: whole from 10 on, below that with one decimal if it has any, below 1 with two digits."""
    size = abs(value)
    text = f"{value:.0f}" if size >= 9.95 else f"{value:.1f}" if size >= 0.95 else f"{value:.2f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def phrase(feature: str, value: float) -> str:
    """A measure in its own units: ``8 orders``."""
    text = number(value)
    one, other = _PHRASES.get(feature, (f"{feature.replace('_', ' ')} {{}}",) * 2)
    return (one if text == "1" else other).format(text)


def titles(features: Sequence[str], centres: Floats, mean: Floats, scale: Floats) -> tuple[str, ...]:
    """A title for each centre: the words that are clearly true of it, ``average`` if none is; all are different.

    ``centres`` are standardised, a row for each; ``mean`` and ``scale`` of the logarithms.
    """
    found = [_words(features, centre) for centre in centres.tolist()]
    units = unlogged(centres * scale + mean)
    for title in dict.fromkeys(found):
        same = [code for code, other in enumerate(found) if other == title]
        if len(same) > 1:
            for code, distinct in zip(same, _apart(title, features, centres[same], units[same]), strict=True):
                found[code] = distinct
    return tuple(found)


def _words(features: Sequence[str], centre: Sequence[float]) -> str:
    words = [_word(feature, z) for feature, z in zip(features, centre, strict=True) if abs(z) >= _CLEAR]
    return ", ".join(words) or "average"


def _word(feature: str, z: float) -> str:
    name = feature.replace("_", " ")
    generic = (f"very low {name}", f"low {name}", f"high {name}", f"very high {name}")
    return _WORDS.get(feature, generic)[(z > 0) + (z >= _FAR) + (z > -_FAR)]


def _apart(title: str, features: Sequence[str], centres: Floats, units: Floats) -> list[str]:
    """Equal titles with the measures in which they differ, the most telling first, until all are different."""
    told: list[list[str]] = [[] for _ in centres]
    for place in np.argsort(centres.min(axis=0) - centres.max(axis=0), kind="stable").tolist():
        for texts, value in zip(told, units[:, place].tolist(), strict=True):
            texts.append(phrase(features[place], value))
        found = [f"{title} ({', '.join(texts)})" for texts in told]
        if len(set(found)) == len(found):
            return found
    return [f"{title} (no. {place})" for place in range(1, len(told) + 1)]
