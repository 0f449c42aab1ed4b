"""How commands show things: tables and progress on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

import click
import orjson
from rich import box
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from models.errors import InstantError
from models.instants import parse
from streams.errors import ConfigurationError


class _Instant(click.ParamType):
    """An RFC 3339 instant, as microseconds."""

    name = "instant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse(value)
        except InstantError as error:
            self.fail(str(error), param, ctx)


INSTANT: Final = _Instant()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[str] = ()) -> None:
    """Print rows under a title; columns named in ``numbers`` are aligned to the right."""
    shown = Table(title=title, title_justify="left", box=box.SIMPLE, title_style="bold")
    for column in columns:
        shown.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(str(cell) for cell in row))
    # Where nobody measures a width, nothing may be folded to fit one.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(shown)


@contextlib.contextmanager
def progress(verb: str) -> Iterator[Callable[[int], None]]:
    """A counter of events on a terminal; nothing elsewhere. Yields a function to call with the count so far."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda count: None
        return
    columns = (TextColumn("{task.completed:,.0f} events {task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(verb, total=None)
        yield lambda count: bar.update(task, completed=count)


@contextlib.contextmanager
def output(path: str) -> Iterator[IO[bytes]]:
    """A file to write, or standard output for ``-``. Raises ConfigurationError if it cannot be written."""
    if path == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        with Path(path).open("wb") as file:
            yield file
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from None


def write_lines(path: str, values: Any) -> None:
    """Write values as NDJSON."""
    with output(path) as file:
        for value in values:
            file.write(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE))
