"""A pytest plugin: the ``replay`` fixture, for tests of what recorded events do under a policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from models.changes import SegmentChanged

Replay = Callable[..., "list[SegmentChanged]"]


@pytest.fixture(name="replay")
def replay_fixture() -> Replay:
    """``replay(events, policy=None, *, until=None)``: the changes that events cause; see streams.replay.replay."""

    # Imported late: pytest loads plugins before it measures coverage.
    def run(events: Iterable[Mapping[str, Any]], *args: Any, **kwargs: Any) -> list[SegmentChanged]:
        from streams.replay import replay

        return replay(events, *args, **kwargs)

    return run
