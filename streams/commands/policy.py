"""``policy``: check a policy, see who it would move, activate it, go back, and show what is active."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import click
import orjson

from models.activation import Activation
from models.engines import ParetoPolicy, RfmPolicy
from models.instants import DAY, NEVER, format_instant
from models.policy import Policy, parse_policy
from models.policy_lines import problems, warnings
from streams.activations import Activations
from streams.commands.inspect import latest_activation, open_stored, stored_policy
from streams.commands.options import settings_from, settings_options
from streams.commands.show import INSTANT, output, progress, table
from streams.errors import ConfigurationError
from streams.ports import StateStore
from streams.preview import Move, Moves, Preview, RecordedState, Sample, preview
from streams.recorded import read_recorded
from streams.settings import read_policy, read_text

_POLL: Final = 0.2
_FILE: Final = click.Path(path_type=Path)


@click.group()
def policy() -> None:
    """Check, try, apply and show policies."""


@policy.command()
@click.argument("file", type=_FILE)
@click.option("--all", "everything", is_flag=True, help="show every segment with its profile, too")
def check(file: Path, everything: bool) -> None:
    """Say whether FILE is a policy; every error as FILE:LINE: key: what is wrong."""
    text = read_text(file)
    if found := problems(text):
        for problem in found:
            click.echo(f"{file}:{problem}", err=True)
        sys.exit(1)
    read = parse_policy(text)
    rows = [
        (name, dimension.engine, len(dimension.labels), ", ".join(dimension.labels))
        for name, dimension in read.dimensions.items()
    ]
    click.echo(f"{file}: policy version {read.version}")
    table(f"{len(rows)} dimensions", ["dimension", "engine", "segments", "which are"], rows, numbers=["segments"])
    if everything:
        _show_profiles(read)
    for problem in warnings(text, read):
        click.echo(f"{file}:{problem} (warning)")


def _show_profiles(read: Policy) -> None:
    rows = []
    for name, dimension in read.dimensions.items():
        for label in dimension.labels:
            profile = dimension.profiles.get(label)
            known = (profile.title, profile.channel, profile.description) if profile is not None else (None,) * 3
            rows.append((name, label, *(each or "–" for each in known)))
    table("segments", ["dimension", "segment", "title", "channel", "description"], rows)


# diff


@policy.command()
@click.argument("files", nargs=-1, required=True, metavar="[OLD] NEW")
@click.option(
    "--on", "events", multiple=True, metavar="EVENTS...", help="recorded events, which are replayed under OLD"
)
@click.option("--live", is_flag=True, help="compare with what Redis holds, which is only read; without OLD")
@click.option("--until", type=INSTANT, help="instant that time reaches after EVENTS; the last event's if absent")
@click.option(
    "--shards", type=click.IntRange(1, 1024), default=1, show_default=True, help="of the replay, as partitions"
)
@click.option(
    "--samples", type=click.IntRange(0, 1000), default=5, show_default=True, help="customers shown for each dimension"
)
@click.option("--json", "as_json", is_flag=True, help="everything as one JSON value")
@click.option("--changes", metavar="OUT", help="write the changes that would be published here as NDJSON")
@settings_options("redis", "namespace", "clock")
def diff(
    files: tuple[str, ...],
    events: tuple[str, ...],
    live: bool,
    until: int | None,
    shards: int,
    samples: int,
    as_json: bool,
    changes: str | None,
    **given: Any,
) -> None:
    """Show who the policy NEW would move, and why; nothing is published or written.

    `diff OLD NEW --on EVENTS...` replays recorded events under the policy OLD and does to that state what `apply NEW`
    would do. `diff NEW --live` does it to a copy of what Redis holds; under the ingestion clock, as it is now.
    """
    wanted = 1 if live else 2
    if live == bool(events) or len(files) < wanted or (live and len(files) > wanted):
        raise ConfigurationError("write `diff OLD NEW --on EVENTS...` or `diff NEW --live`")
    old_and_new = [read_policy(Path(file)) for file in files[:wanted]]
    store: StateStore
    notes: list[str] = []
    if live:
        settings = settings_from(given)
        store, partitions = open_stored(settings)
        instant = time.time_ns() // 1000
        at = instant if settings.clock == "ingestion" else NEVER
    else:
        run = RecordedState(old_and_new[0], shards)
        with progress("replayed") as show:
            for count in run.feed(read_recorded([*events, *files[wanted:]])):
                show(count)
        replayed = run.finish(until)
        if replayed.dead_letters:
            notes.append(f"{len(replayed.dead_letters)} events could not be used; `segmenter replay` says why")
        store, partitions = run.store, shards
        instant = at = max([until or 0, *(store.header(shard).time or 0 for shard in range(shards))])
    with ExitStack() as writing:
        file = None if changes is None else writing.enter_context(output(changes))

        def take(change: Any) -> None:
            if file is not None:
                file.write(orjson.dumps(change, option=orjson.OPT_APPEND_NEWLINE))

        found = preview(store, partitions, old_and_new[-1], instant, at=at, samples=samples, take=take)
    found.notes[:0] = notes
    if as_json:
        click.echo(orjson.dumps(_plain(found, samples), option=orjson.OPT_INDENT_2))
    elif changes != "-":
        _show(found, samples)


def _plain(found: Preview, samples: int) -> dict[str, Any]:
    return {
        "active_version": found.active.version,
        "version": found.policy.version,
        "customers": found.customers,
        "as_of": None if found.time == NEVER else format_instant(found.time),
        **_plain_moves(found, found.moves, samples),
        "once_summarised": None if found.later is None else _plain_moves(found, found.later, samples),
        "notes": found.notes,
    }


def _plain_moves(found: Preview, moves: Moves, samples: int) -> dict[str, Any]:
    dimensions = {}
    for name in found.policy.dimensions:
        counts = moves.of(name)
        dimensions[name] = {
            "customers": sum(counts.values()),
            "moves": [
                {
                    "from": move.before,
                    "to": move.after,
                    "customers": count,
                    "share": round(count / found.customers, 4),
                }
                for move, count in counts.items()
            ],
            "samples": [
                {
                    "customer_id": each.change["customer_id"],
                    "from": each.change["from"],
                    "to": each.change["to"],
                    **each.change["rfm"],
                    "reason": each.reason,
                    "reason_before": each.reason_before,
                }
                for each in _chosen(moves, counts, samples)
            ],
        }
    return {"moving": moves.customers, "unpublished": moves.withheld, "dimensions": dimensions}


def _chosen(moves: Moves, counts: Mapping[Move, int], most: int) -> list[Sample]:
    """Samples of a dimension: one of each move, the most frequent first, then another of each, and so on."""
    rounds = zip_longest(*(moves.samples.get(move, ()) for move in counts))
    chosen = [sample for each in rounds for sample in each if sample is not None]
    return chosen[:most]


def _show(found: Preview, samples: int) -> None:
    versions = f"policy version {found.active.version} → {found.policy.version}"
    when = "" if found.time == NEVER else f" at {format_instant(found.time)}"
    click.echo(f"{versions}: {found.moves.customers} of {found.customers} customers would move{when}")
    _show_moves(found, found.moves, samples)
    if found.later is not None:
        click.echo(
            f"Then, once the population is summarised, {found.later.customers} customers would move; if that were now:"
        )
        _show_moves(found, found.later, samples)
    for note in found.notes:
        click.echo(f"note: {note}")


def _show_moves(found: Preview, moves: Moves, samples: int) -> None:
    still = []
    for name in found.policy.dimensions:
        counts = moves.of(name)
        if not counts:
            still.append(name)
            continue
        rows = [
            (move.before or "–", move.after or "–", count, f"{100 * count / found.customers:.1f}")
            for move, count in counts.items()
        ]
        columns = ["from", "to", "customers", "% of all"]
        table(f"{name}: {sum(counts.values())} move", columns, rows, numbers=columns[2:])
        _show_samples(name, _chosen(moves, counts, samples))
    if still:
        click.echo(f"nobody moves in {', '.join(still)}")
    if moves.withheld:
        click.echo(f"{moves.withheld} of the moves are into segments too small to be published")


def _show_samples(name: str, chosen: Sequence[Sample]) -> None:
    if not chosen:
        return
    rows = []
    for change, reason, before in chosen:
        rfm = change["rfm"]
        recency = "–" if rfm["recency_days"] is None else rfm["recency_days"]
        move = f"{change['from'] or '–'} → {change['to'] or '–'}"
        why = reason if before in (None, reason) else f"{reason} (before: {before})"
        rows.append((change["customer_id"], move, recency, rfm["frequency"], rfm["monetary"], why))
    columns = ["customer", "move", "recency days", "orders", f"monetary ({chosen[0].change['rfm']['currency']})", "why"]
    table(f"{name}: for example", columns, rows, numbers=columns[2:5])


# apply and rollback


_FIRE = click.option("--fire", is_flag=True, help="campaigns may fire from these moves; else they bear backfill: true")
_WAIT = click.option(
    "--wait",
    type=click.FloatRange(0, 86_400),
    default=30.0,
    show_default=True,
    help="seconds to wait until every shard has taken it; 0 does not wait",
)


@policy.command()
@click.argument("file", type=_FILE)
@_FIRE
@_WAIT
@settings_options("redis", "namespace")
def apply(file: Path, fire: bool, wait: float, **given: Any) -> None:
    """Activate the policy in FILE for every worker, now and without a restart.

    Every shard labels its customers anew; the changes have the cause "policy". See first what it does, with
    `segmenter policy diff`; `segmenter policy rollback` goes back.
    """
    wanted = read_policy(file)
    store, partitions = open_stored(settings_from(given))
    active = latest_activation(store)
    if stored_policy(store, active).text == wanted.text:
        click.echo(f"policy version {wanted.version} is already active")
        return
    following = Activations(store, wanted).apply(wanted, time.time_ns() // 1000, not fire)
    _report(store, partitions, following, wait)


@policy.command()
@_FIRE
@_WAIT
@settings_options("redis", "namespace")
def rollback(fire: bool, wait: float, **given: Any) -> None:
    """Activate the policy that was active before the present one."""
    store, partitions = open_stored(settings_from(given))
    active = latest_activation(store)
    earlier = next((each for each in _policies(store) if each.policy_version != active.policy_version), None)
    if earlier is None:
        raise ConfigurationError(f"no other policy than version {active.policy_version} was ever active")
    wanted = stored_policy(store, earlier)
    following = Activations(store, wanted).apply(wanted, time.time_ns() // 1000, not fire, again=True)
    _report(store, partitions, following, wait)


def _policies(store: StateStore) -> Iterator[Activation]:
    """Every activation of a policy, the latest first."""
    for number in range(store.latest_activation(), 0, -1):
        activation = store.activation(number)
        if activation.cause == "policy":
            yield activation


def _report(store: StateStore, partitions: int, activation: Activation, wait: float) -> None:
    fires = "history, which fires no campaign" if activation.backfill else "new, and campaigns may fire from them"
    click.echo(f"policy version {activation.policy_version} is active (activation {activation.number})")
    click.echo(f"the moves that it causes are marked as {fires}")
    give_up = time.monotonic() + wait
    while (taken := _taken(store, partitions, activation))[0] < taken[1] and time.monotonic() < give_up:
        time.sleep(_POLL)
    done, every = taken
    click.echo(f"{done} of {every} shards with customers have taken it")
    if done < every:
        click.echo("the others take it when their worker comes to it, or when a worker is started")


def _taken(store: StateStore, partitions: int, activation: Activation) -> tuple[int, int]:
    """How many shards have labelled everybody anew, as far as can be seen, and how many there are to do so."""
    headers = [store.header(shard) for shard in range(partitions)]
    alive = [header for header in headers if header.time is not None]
    done = [each for each in alive if each.activation >= activation.number and (each.settled or 0) >= each.since]
    return len(done), len(alive)


# show


@policy.command("show")
@click.option("--text", is_flag=True, help="the policy's TOML, and nothing else")
@settings_options("redis", "namespace")
def show_policy(text: bool, **given: Any) -> None:
    """Show the active policy, its cut-offs in real units, and which policies were active before."""
    store, partitions = open_stored(settings_from(given))
    active = latest_activation(store)
    read = stored_policy(store, active)
    if text:
        click.echo(read.text, nl=not read.text.endswith("\n"))
        return
    history = list(_policies(store))
    since = next(each for each in history if each.policy_version == active.policy_version)
    click.echo(f"policy version {read.version}, activation {since.number}, since {_instant(since.instant)}")
    done, every = _taken(store, partitions, since)
    click.echo(f"{done} of {every} shards with customers have taken it")
    as_of = active.cutoffs.as_of
    if read.needs_population:
        known = "not summarised yet" if as_of == NEVER else f"as of {format_instant(as_of)}, activation {active.number}"
        click.echo(f"population: {known}")
    rows = list(_cutoff_rows(read, active))
    if rows:
        table("cut-offs", ["dimension", "of", "unit", "cut-offs"], rows)
    for name, model in active.cutoffs.clusters.items():
        click.echo(f"{name}: version {model.version} as of {format_instant(model.as_of)}; see segmenter clusters")
    if small := sorted(active.cutoffs.small):
        click.echo(f"too small for a campaign: {', '.join(small)}")
    columns = ["activation", "policy version", "at", "moves are"]
    past = [
        (each.number, each.policy_version, _instant(each.instant), "history" if each.backfill else "new")
        for each in history
    ]
    table("policies, the latest first", columns, past, numbers=columns[:2])


def _instant(instant: int) -> str:
    return "the beginning" if instant == NEVER else format_instant(instant)


def _cutoff_rows(read: Policy, activation: Activation) -> Iterator[tuple[str, str, str, str]]:
    money = read.converter
    for name, dimension in read.dimensions.items():
        cuts = activation.cutoffs.scores.get(name, {})
        if isinstance(dimension, RfmPolicy):
            for of, values in cuts.items():
                unit, shown = {
                    "recency": ("days", [f"{value / DAY:.1f}" for value in values]),
                    "orders": ("orders", [str(value) for value in values]),
                    "monetary": (money.base, [money.text(value) for value in values]),
                }[of]
                yield name, of, unit, ", ".join(shown)
        elif isinstance(dimension, ParetoPolicy) and "monetary" in cuts:
            bounds = zip(dimension.labels, reversed(cuts["monetary"]), strict=False)
            text = ", ".join(f"{label} from {money.text(value)}" for label, value in bounds)
            yield name, "monetary", money.base, f"{text}, {dimension.labels[-1]} below"
