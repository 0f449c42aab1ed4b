"""The next part of what is read, looked for in a thread while one is worked on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar, cast

T = TypeVar("T")

_END: Final = object()


def ahead(parts: Iterator[T]) -> Iterator[T]:
    """The same parts. What looking for one raises is raised where it would have come."""
    with ThreadPoolExecutor(1, "ahead") as thread:
        coming = thread.submit(next, parts, cast(T, _END))
        while (part := coming.result()) is not _END:
            coming = thread.submit(next, parts, cast(T, _END))
            yield part
