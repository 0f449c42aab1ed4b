"""``clusters``: what has been learned of the cluster dimensions, in tables, as JSON and as a picture; read only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import orjson

from models.engines import ENOUGH
from models.instants import NEVER, format_instant
from streams.clusters import Clustering, age, clusterings, said
from streams.commands.inspect import latest_activation, open_stored, stored_policy
from streams.commands.options import settings_from, settings_options
from streams.commands.show import table
from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from streams.choosing import Choice

#: The most clusters that a policy may ask for.
_MOST: Final = 50
#: A silhouette that is better by less than this is not better.
_CLEARLY: Final = 0.02
#: Customers that a comparison needs for each cluster.
_EACH: Final = 5


class _Range(click.ParamType):
    """Numbers of clusters: ``2..10``."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> range:
        if isinstance(value, range):
            return value
        match = re.fullmatch(r"([0-9]{1,3})\.\.([0-9]{1,3})", value)
        first, last = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 2 <= first <= last <= _MOST:
            self.fail(f"{value!r} is not a range of numbers from 2 to {_MOST}; write it like 2..10", param, ctx)
        return range(first, last + 1)


@click.command()
@click.option("--dimension", metavar="NAME", help="only this one")
@click.option("--json", "as_json", is_flag=True, help="everything, one JSON value a dimension")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="draw it into a .png, .svg or .pdf file")
@click.option(
    "--compare", "counts", type=_Range(), metavar="K1..K2", help="how good other numbers of clusters would be"
)
@settings_options("redis", "namespace")
def clusters(dimension: str | None, as_json: bool, plot: Path | None, counts: range | None, **given: Any) -> None:
    """Show the clusters that were learned: who is in them, and how good they are. Nothing is written to Redis.

    --compare 2..10 clusters the customers last drawn anew for each number; --plot draws them with their centres
    (needs matplotlib: pip install 'segmenter[plot]').
    """
    if plot is not None:
        from streams.plot import form_of

        form_of(plot)
    found = _found(dimension, given)
    if plot is not None and len(found) > 1:
        names = ", ".join(each.dimension for each in found)
        raise ConfigurationError(f"a picture shows one dimension; choose one with --dimension: {names}")
    for each in found:
        choices = [] if counts is None else _compared(each, counts)
        if as_json:
            click.echo(orjson.dumps(_plain(each, choices)))
        else:
            _show(each)
            if counts is not None:
                _show_choices(each, choices)
    if plot is not None:
        from streams.plot import draw

        draw(found[0], plot)
        click.echo(f"drawn: {plot}", err=as_json)


def _found(dimension: str | None, given: dict[str, Any]) -> list[Clustering]:
    """Raises ConfigurationError if there is no such dimension."""
    store, partitions = open_stored(settings_from(given))
    activation = latest_activation(store)
    policy = stored_policy(store, activation)
    names = ", ".join(policy.clusters)
    if not names:
        raise ConfigurationError(
            f'policy version {policy.version} has no dimension with engine = "cluster"; add one and apply it '
            "(docs/CLUSTERS.md)"
        )
    if dimension is not None and dimension not in policy.clusters:
        raise ConfigurationError(f"{dimension} is no cluster dimension of policy version {policy.version}: {names}")
    return clusterings(store, partitions, policy, activation, dimension)


# Tables


def _show(found: Clustering) -> None:
    model = found.model
    if model is None:
        click.echo(f"{found.dimension}: {found.missing}")
        return
    click.echo(f"{found.dimension}: version {model.version} as of {format_instant(model.as_of)}, {age(found)}")
    drifts = {0: "no drift", 1: "1 drift"}.get(model.drifts, f"{model.drifts} drifts")
    click.echo(
        f"{model.samples} samples learned, {drifts} noticed; quantisation error {model.error:.3f}, "
        f"silhouette {model.silhouette:.3f}"
    )
    for note in found.notes:
        click.echo(f"note: {note}")
    money = found.money
    columns = ["cluster", "title", "customers", "%", *model.features, f"revenue ({money.base})", "of it %"]
    rows = [
        (
            *(each.label, each.title or "–", each.customers, _percent(each.share)),
            *(said(feature, value, money) for feature, value in zip(model.features, each.centre, strict=True)),
            *(money.text(each.revenue), _percent(each.revenue_share)),
        )
        for each in found.clusters
    ]
    table(f"{found.dimension}: {len(rows)} clusters and their centres", columns, rows, numbers=columns[2:])


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


# Other numbers of clusters


def _compared(found: Clustering, counts: range) -> list[Choice]:
    """Raises ConfigurationError if there are too few customers."""
    drawn = found.drawn
    if found.damage is not None:
        raise ConfigurationError(f"there is nothing to compare on: {found.damage}")
    if len(drawn) < _EACH * counts[-1]:
        raise ConfigurationError(
            f"{found.dimension}: {len(drawn)} customers were drawn last, too few to compare {counts[-1]} clusters; "
            f"wait for {_EACH * counts[-1]}, or compare fewer"
        )
    from streams.choosing import compare

    return compare(drawn, counts, found.policy.seed)


def _show_choices(found: Clustering, choices: Sequence[Choice]) -> None:
    now = found.policy.clusters
    best = max(choices, key=_silhouette, default=None)
    rows = [
        (
            *(choice.clusters, f"{choice.silhouette:.3f}", f"{100 * choice.smallest:.1f}"),
            f"{100 * choice.explained:.1f}",
            ", ".join(
                word for word, holds in (("in force", choice.clusters == now), ("best", choice == best)) if holds
            ),
        )
        for choice in choices
    ]
    columns = ["clusters", "silhouette", "smallest %", "explained %", ""]
    size = len(found.drawn)
    table(f"{found.dimension}: k-means of the {size} customers last drawn", columns, rows, numbers=columns[:4])
    if found.model is not None and size:
        from streams.choosing import in_force

        own = in_force(found.drawn, found.model)
        click.echo(
            f"For comparison, version {found.model.version}, learned over time: silhouette {own.silhouette:.3f}, "
            f"smallest {100 * own.smallest:.1f} %, explained {100 * own.explained:.1f} %."
        )
    click.echo(advice(found, choices))


def advice(found: Clustering, choices: Sequence[Choice]) -> str:
    """Which number of clusters is best, and what to change in the policy for it."""
    now = found.policy.clusters
    if not choices:
        return "All customers drawn are alike; there is nothing to choose."
    best = max(choices, key=_silhouette)
    own = next((choice for choice in choices if choice.clusters == now), None)
    if best.clusters == now:
        return f"{now} clusters, as now, have the best silhouette: nothing is to be changed."
    if own is not None and best.silhouette - own.silhouette < _CLEARLY:
        return (
            f"{best.clusters} clusters have the best silhouette, but hardly better than {now}, as now: there is no "
            "reason to change the policy."
        )
    needed = ENOUGH * best.clusters
    sample = f" and sample = {needed}" if found.policy.sample < needed else ""
    more = max((each for each in choices if each.clusters > best.clusters), key=_silhouette, default=None)
    few = ""
    if best.clusters == 2 and more is not None:
        few = f" Two often only part the active from the others; of more than two, {more.clusters} are best."
    return (
        f"{best.clusters} clusters have the best silhouette: if that many are of use, set clusters = {best.clusters}"
        f"{sample} in [dimensions.{found.dimension}] of the policy, give it a version above {found.policy_version}, "
        f"and see `segmenter policy diff` before `segmenter policy apply`.{few}"
    )


def _silhouette(choice: Choice) -> float:
    return choice.silhouette


# JSON


def _plain(found: Clustering, choices: Sequence[Choice]) -> dict[str, Any]:
    model, learner, policy, money = found.model, found.learner, found.policy, found.money
    return {
        "dimension": found.dimension,
        "policy_version": found.policy_version,
        "settings": {
            "clusters": policy.clusters,
            "features": policy.features,
            "sample": policy.sample,
            "seed": policy.seed,
            "margin": float(policy.margin),
            "dwell_seconds": None if policy.dwell is None else policy.dwell // 1_000_000,
        },
        "time": _instant(None if found.time == NEVER else found.time),
        "next_drawn_as_of": _instant(found.next_instant),
        "missing": found.missing,
        "notes": found.notes,
        "model": None
        if model is None
        else {
            "version": model.version,
            "as_of": format_instant(model.as_of),
            "age_seconds": None if found.time == NEVER else max(found.time - model.as_of, 0) // 1_000_000,
            "samples": model.samples,
            "drifts": model.drifts,
            "quantisation_error": model.error,
            "silhouette": model.silhouette,
        },
        "learner": None
        if learner is None
        else {
            "version": learner.version,
            "learned_as_of": _instant(learner.learned_as_of),
            "drawn_as_of": _instant(learner.drawn_as_of),
            "drawn": len(learner.drawn),
            "needed": found.enough,
            "samples": learner.samples,
            "drifts": learner.drifts,
        },
        "damage": found.damage,
        "currency": money.base,
        "clusters": [
            {
                "cluster": each.label,
                "title": each.title,
                "description": each.description,
                "customers": each.customers,
                "share": _rounded(each.share),
                "share_drawn": None if model is None else model.shares[code],
                "centre": None
                if model is None
                else {name: round(value, 6) for name, value in zip(model.features, each.centre, strict=True)},
                "revenue": money.text(each.revenue),
                "revenue_share": _rounded(each.revenue_share),
            }
            for code, each in enumerate(found.clusters)
        ],
        "comparison": [
            {
                "clusters": choice.clusters,
                "silhouette": round(choice.silhouette, 6),
                "smallest_share": round(choice.smallest, 6),
                "explained": round(choice.explained, 6),
                "in_force": choice.clusters == policy.clusters,
            }
            for choice in choices
        ],
        "advice": advice(found, choices) if choices else None,
    }


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)


def _instant(value: int | None) -> str | None:
    return None if value is None else format_instant(value)
