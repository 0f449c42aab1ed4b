"""Stories: tests that mostly wait for something to happen, run at the same time, a few at a time.

A story is a function of a folder of its own; it fails as a test does. A module hands its stories to ``telling``, which
makes its fixture, and has one parametrized test that asks for the result of each.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from streams.embedded.redis import find_redis_server
from streams.errors import ServiceUnavailable

Story = Callable[[Path], None]
#: Each story's result, which raises what the story raised.
Told = dict[str, "Future[None]"]


@contextmanager
def tell(
    stories: Sequence[Story], request: pytest.FixtureRequest, folders: pytest.TempPathFactory, at_once: int
) -> Iterator[Told]:
    """Begin to run those of the stories whose tests were selected, in their order."""
    selected = {
        item.callspec.params.get("story")
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.module is request.module and hasattr(item, "callspec")
    }
    with ThreadPoolExecutor(at_once) as pool:
        told = {
            story.__name__: pool.submit(story, folders.mktemp(story.__name__))
            for story in stories
            if story.__name__ in selected
        }
        try:
            yield told
        finally:
            for future in told.values():
                future.cancel()


def telling(stories: Sequence[Story], at_once: int) -> Callable[..., Iterator[Told]]:
    """The fixture of a module whose stories need a redis-server."""

    @pytest.fixture(scope="module")
    def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
        """The stories under way."""
        try:
            find_redis_server()
        except ServiceUnavailable as unavailable:
            pytest.skip(str(unavailable))
        with tell(stories, request, tmp_path_factory, at_once) as under_way:
            yield under_way

    return told
