"""A picture of one cluster dimension: customers by two measures a panel, and what each cluster makes up."""

from __future__ import annotations

import io
import warnings
from bisect import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from models.clusters import ClusterModel, Floats, logged
from models.instants import format_instant
from models.money import Converter
from models.sampling import MONEY, MOVING
from streams.clusters import Cluster, Clustering, phrased
from streams.errors import ConfigurationError
from streams.marks import marks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS: Final = ("png", "svg", "pdf")
_DPI: Final = 150
_FONT: Final = "DejaVu Sans"  # matplotlib brings it
_INK, _GREY, _FAINT = "#222222", "#6b6b6b", "#e4e4e4"

#: Colours that the colour-blind tell apart: M. Okabe and K. Ito's, 2008; M. Krzywinski's twelve where there are more.
_FEW: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C7A00", "#4D4D4D")
_MANY: Final = (
    "#008DF9", "#E20134", "#009F81", "#FFC33B", "#8400CD", "#FF6E3A", "#00C2F9", "#FF5AAF", "#9F0162", "#00FCCF",
    "#A40122", "#FFB2FD",
)  # fmt: skip
#: Where there are more clusters than colours, dots differ in shape, too.
_SHAPES: Final = "os^Dv"

#: Features whose values are whole, so that customers hide each other.
_WHOLE: Final = frozenset((*MOVING, "orders", "refunds"))
_AXES: Final = {
    "recency_days": "days since the last purchase",
    "tenure_days": "days since the first purchase",
    "orders": "orders",
    "refunds": "refunds",
    "monetary": "revenue",
    "average_order": "average order",
    "satisfaction": "satisfaction",
}
#: Panels there are at most: of all pairs of this many features.
_MOST_FEATURES: Final = 4

# Sizes in inches.
_WIDTH: Final = 16.0
_HEAD, _FOOT, _GAP, _TITLES = 1.05, 0.35, 0.85, 0.35
_LEFT, _RIGHT, _BETWEEN = 0.85, 0.3, 0.85


def form_of(path: Path) -> str:
    """The format that a file's ending says. Raises ConfigurationError for one that cannot be drawn."""
    ending = path.suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise ConfigurationError(f"cannot draw {path}: end its name in .png, .svg or .pdf")
    return ending


def draw(clustering: Clustering, path: Path) -> None:
    """Draw what is in force, and the customers last drawn, into a file.

    Raises ConfigurationError if nothing is in force, matplotlib is not installed or the file cannot be written.
    """
    form = form_of(path)
    if clustering.model is None:
        raise ConfigurationError(f"{clustering.dimension} cannot be drawn: {clustering.missing}")
    try:
        with _quiet():
            figure = picture(clustering, clustering.model)
            content = io.BytesIO()
            metadata: dict[str, Any] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[form]
            figure.savefig(content, format=form, dpi=_DPI, metadata=metadata)
    except ImportError as error:
        raise ConfigurationError(
            f"drawing needs matplotlib, which cannot be imported ({error}); install it: pip install 'segmenter[plot]'"
        ) from None
    try:
        path.write_bytes(content.getvalue())
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Text stays text, the same input gives the same bytes, and nobody hears of characters that the font lacks."""
    from matplotlib import rc_context

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "segmenter", "font.family": _FONT, "text.usetex": False}
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph")
        yield


def picture(clustering: Clustering, model: ClusterModel) -> Figure:
    """The whole figure, on matplotlib's Agg canvas and without its global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    features = _shown(model)
    pairs = list(combinations(features, 2)) or [(features[0], features[0])]
    across = min(len(pairs), 3)
    down = -(-len(pairs) // across)
    deep = 5.0 if across < 3 else 4.3
    row = 0.56 if len(clustering.clusters) <= 16 else 0.34
    bars = _TITLES + row * len(clustering.clusters)
    height = _HEAD + down * deep + (down - 1) * _BETWEEN + _GAP + bars + _FOOT
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)

    def placed(x: float, top: float, width: float, tall: float) -> Axes:
        """Axes at inches from the left and from the top."""
        return figure.add_axes((x / _WIDTH, 1 - (top + tall) / height, width / _WIDTH, tall / height))

    colours = _colours(len(clustering.clusters))
    _head(figure, clustering, model, features, height)
    wide = (_WIDTH - _LEFT - _RIGHT - (across - 1) * _BETWEEN) / across
    codes = model.nearest(model.standardised(logged(clustering.drawn)))
    for i, pair in enumerate(pairs):
        x, top = _LEFT + (i % across) * (wide + _BETWEEN), _HEAD + (i // across) * (deep + _BETWEEN)
        _panel(placed(x, top, wide, deep), pair, clustering, model, codes, colours)
    _bars(placed, height - _FOOT - bars, bars, clustering, colours)
    return figure


def _shown(model: ClusterModel) -> list[int]:
    """The features that are drawn, in their order: if there are many, those in which the centres differ most."""
    spread = np.array(model.centres).var(axis=0)
    return sorted(np.argsort(-spread, kind="stable")[:_MOST_FEATURES].tolist())


def _colours(number: int) -> list[str]:
    palette = _FEW if number <= len(_FEW) else _MANY
    return [palette[code % len(palette)] for code in range(number)]


def _head(figure: Figure, clustering: Clustering, model: ClusterModel, features: Sequence[int], height: float) -> None:
    def line(inches: float, text: str, **kind: Any) -> None:
        figure.text(_LEFT / _WIDTH, 1 - inches / height, text, va="baseline", parse_math=False, **kind)

    line(
        0.42,
        f"{clustering.dimension}: version {model.version} as of {format_instant(model.as_of)[:10]}, "
        f"silhouette {model.silhouette:.2f}",
        size=17,
        weight="bold",
        color=_INK,
    )
    drawn, every = len(clustering.drawn), len(model.features)
    some = f", by the {len(features)} of {every} measures that differ most" if len(features) < every else ""
    spread = "" if some else "; whole numbers are spread a little"
    line(
        0.72,
        f"Each dot is one of {drawn} customers drawn from all, each circle a cluster's centre{some}. Scales are "
        f"logarithmic, of one more than the value, so that 0 has its place{spread}.",
        size=10,
        color=_GREY,
    )


# Panels


def _panel(
    axes: Axes,
    pair: tuple[int, int],
    clustering: Clustering,
    model: ClusterModel,
    codes: Any,
    colours: Sequence[str],
) -> None:
    """Customers and centres by two features, or by one beside chance."""
    across, up = pair
    alone = across == up
    x = _spread(clustering.drawn, across, clustering.policy.features[across])
    y = np.random.default_rng(1).random(len(x)) if alone else _spread(clustering.drawn, up, model.features[up])
    order = np.random.default_rng(0).permutation(len(x))  # so that no cluster covers the others
    size = float(np.clip(14_000 / max(len(x), 1), 9, 40))
    for shape in range(-(-len(colours) // len(_MANY))):
        these = order[codes[order] // len(_MANY) == shape]
        dots = [colours[code] for code in codes[these]]
        axes.scatter(
            x[these],
            y[these],
            s=size,
            c=dots,
            marker=_SHAPES[shape],
            alpha=0.55,
            linewidths=0,
            rasterized=len(x) > 2000,
        )
    centres = logged(model.units)
    cx, cy = centres[:, across], np.linspace(0.9, 0.1, len(centres)) if alone else centres[:, up]
    axes.set_xlim(*_limits(np.concatenate([x, cx])))
    axes.set_ylim(*((-0.05, 1.05) if alone else _limits(np.concatenate([y, cy]))))
    axes.set_xlabel(_named(model.features[across], clustering), size=11, color=_INK, parse_math=False)
    _mark(axes.xaxis, model.features[across], axes.get_xlim(), 9)
    if alone:
        axes.set_yticks([])
    else:
        axes.set_ylabel(_named(model.features[up], clustering), size=11, color=_INK, parse_math=False)
        _mark(axes.yaxis, model.features[up], axes.get_ylim(), 12)
    axes.grid(color=_FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    _frame(axes)
    _centres(axes, np.column_stack([cx, cy]), clustering.policy.labels, colours)


def _spread(drawn: Floats, feature: int, name: str) -> Floats:
    """The logarithms of a feature; whole numbers a little apart from each other."""
    values = drawn[:, feature]
    if name in _WHOLE or not np.mod(values, 1).any():
        values = values + np.random.default_rng(feature).uniform(-0.35, 0.35, len(values))
    return logged(values)


def _limits(values: Floats) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    room = 0.06 * (high - low) or 0.5
    return low - room, high + room


def _named(feature: str, clustering: Clustering) -> str:
    name = _AXES.get(feature, feature.replace("_", " "))
    return f"{name} ({clustering.money.base})" if feature in MONEY else name


def _mark(axis: Any, feature: str, limits: tuple[float, float], most: int) -> None:
    found = marks(feature, limits, most)
    axis.set_ticks(list(found), labels=list(found.values()))
    axis.set_tick_params(length=0, labelsize=9.5, labelcolor=_GREY)


def _frame(axes: Axes) -> None:
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#bbbbbb")


def _centres(axes: Axes, centres: Floats, labels: Sequence[str], colours: Sequence[str]) -> None:
    """A circle with the label at each centre; where they would cover each other, beside it with a line to it."""
    pixels = axes.transData.transform(centres)
    radius = _DPI * (0.15 if len(labels) <= 20 else 0.115)
    box = axes.get_window_extent()
    low, high = (box.x0 + radius, box.y0 + radius), (box.x1 - radius, box.y1 - radius)
    beside = axes.transData.inverted().transform(_apart(pixels, 2.15 * radius, np.array(low), np.array(high)))
    size = (2 * radius * 72 / _DPI) ** 2
    for code, (label, colour) in enumerate(zip(labels, colours, strict=True)):
        (from_x, from_y), (x, y) = centres[code].tolist(), beside[code].tolist()
        if np.hypot(*(axes.transData.transform(beside[code]) - pixels[code])) > 0.3 * radius:
            axes.plot([from_x, x], [from_y, y], color=_INK, linewidth=1.1, zorder=4, clip_on=False)
            axes.scatter(from_x, from_y, s=34, c=colour, edgecolors=_INK, linewidths=1.1, zorder=5, clip_on=False)
        axes.scatter(x, y, s=size, c=colour, edgecolors="white", linewidths=1.6, zorder=6, clip_on=False)
        axes.text(
            x, y, label, size=_label_size(label, len(labels)), weight="bold", color=_on(colour), ha="center",
            va="center_baseline", zorder=7, clip_on=False,
        )  # fmt: skip


def _apart(places: Floats, distance: float, low: Floats, high: Floats) -> Floats:
    """Places moved as little as it takes to be so far apart from each other, within bounds."""
    angle = 2.4 * np.arange(len(places))  # no two places may be the same
    at: Floats = np.clip(places + 0.01 * np.column_stack([np.cos(angle), np.sin(angle)]), low, high)
    for _ in range(500):
        ways = at[:, None] - at[None, :]
        lengths = np.hypot(ways[..., 0], ways[..., 1])
        np.fill_diagonal(lengths, np.inf)
        lacking = np.maximum(distance - lengths, 0)
        if not lacking.any():
            break
        at = np.clip(at + 0.5 * (ways * (lacking / lengths)[..., None]).sum(axis=1), low, high)
    return at


def _label_size(label: str, labels: int) -> float:
    return 8 if labels > 20 else 10.5 if len(label) < 3 else 9


def _on(colour: str) -> str:
    """Black or white, whichever is easier to read on a colour (WCAG 2.1)."""
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return "white" if float(linear @ np.array([0.2126, 0.7152, 0.0722])) < 0.3 else "black"


# Bars


def _bars(placed: Any, top: float, tall: float, clustering: Clustering, colours: Sequence[str]) -> None:
    """A line for each cluster, most revenue first: who they are, their share of customers and of revenue."""
    every = sorted(
        zip(clustering.clusters, colours, strict=True), key=lambda each: -(each[0].revenue_share or each[0].share or 0)
    )
    words, bar = 7.3, 3.35
    text = placed(_LEFT, top + _TITLES, words, tall - _TITLES)
    text.set_axis_off()
    text.set_xlim(0, words)
    _rows(text, every)
    two_lines = len(every) <= 16
    for place, (cluster, colour) in enumerate(every):
        text.scatter(0.16, place, s=430 if two_lines else 250, c=colour)
        text.text(
            0.16, place, cluster.label, size=_label_size(cluster.label, len(every)), weight="bold", color=_on(colour),
            ha="center", va="center_baseline",
        )  # fmt: skip
        title = _fitting(text, cluster.title or cluster.label, words - 0.75, 12 if two_lines else 10.5, "bold")
        text.text(
            0.45, place - (0.17 if two_lines else 0), title, size=12 if two_lines else 10.5, weight="bold", color=_INK,
            va="center", parse_math=False,
        )  # fmt: skip
        if two_lines:
            said_of_it = _fitting(text, _centre(cluster, clustering), words - 0.75, 10, "normal")
            text.text(0.45, place + 0.2, said_of_it, size=10, color=_GREY, va="center", parse_math=False)
    money = clustering.money
    customers = [(each.share, f"{each.customers}") for each, _ in every]
    revenue = [(each.revenue_share, f"{_amount(each.revenue, money)} {money.base}") for each, _ in every]
    for i, (name, values) in enumerate((("share of customers", customers), ("share of revenue", revenue))):
        axes = placed(_LEFT + words + 0.2 + i * (bar + 0.4), top + _TITLES, bar, tall - _TITLES)
        shares = [max(share or 0, 0) for share, _ in values]
        axes.barh(range(len(every)), shares, height=0.5, color=[colour for _, colour in every])
        axes.set_xlim(0, 1.75 * (max(shares) or 1))
        for place, (share, amount) in enumerate(values):
            percent = "–" if share is None else f"{100 * share:.0f} %"
            note = axes.annotate(
                percent, (shares[place], place), xytext=(6, 0), textcoords="offset points", va="center", size=11,
                weight="bold", color=_INK,
            )  # fmt: skip
            axes.annotate(
                f"  {amount}", (1, 0.5), xycoords=note, va="center", size=10, color=_GREY, annotation_clip=False,
                parse_math=False,
            )  # fmt: skip
        _rows(axes, every)
        axes.set_xticks([])
        axes.set_title(name, loc="left", size=11, color=_INK)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "left")
            spine.set_color("#bbbbbb")


def _amount(minor: int, money: Converter) -> str:
    """Money, without its minor unit where that is nothing."""
    units = minor / money.one("1", money.base)
    return f"{units:,.0f}" if abs(units) >= 1000 else money.text(minor)


def _rows(axes: Axes, every: Sequence[object]) -> None:
    axes.set_ylim(len(every) - 0.5, -0.5)
    axes.set_yticks([])


def _centre(cluster: Cluster, clustering: Clustering) -> str:
    """A cluster's centre in words."""
    features = zip(clustering.policy.features, cluster.centre, strict=True)
    phrases = " · ".join(phrased(feature, value, clustering.money) for feature, value in features)
    return phrases.replace("about ", "")


def _fitting(axes: Axes, text: str, inches: float, size: float, weight: str) -> str:
    """A text, cut to a width."""
    from matplotlib.font_manager import FontProperties

    figure: Any = axes.figure
    renderer = figure.canvas.get_renderer()
    font = FontProperties(family=_FONT, weight=weight, size=size)

    def fits(length: int) -> bool:
        shown = text if length == len(text) else f"{text[:length].rstrip()}…"
        return bool(renderer.get_text_width_height_descent(shown, font, False)[0] <= inches * renderer.dpi)

    length = len(text) if fits(len(text)) else bisect(range(len(text)), 0, key=lambda each: 0 if fits(each) else 1) - 1
    return text if length == len(text) else f"{text[:length].rstrip()}…"
