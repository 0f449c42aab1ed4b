"""Two workers on the embedded broker, one of them killed: the changes are those of a batch computation."""

from collections.abc import Callable
from pathlib import Path

import pytest

from streams.embedded.stack import EmbeddedStack
from streams.errors import ServiceUnavailable
from streams.generator import Population
from streams.settings import Settings
from tests.support.crash import survive_a_crash
from tests.support.recordings import Recording, cdnow, generated
from tests.support.stored import stored
from tests.support.topics import Topics


def _sample(request: pytest.FixtureRequest, folder: Path) -> Recording:
    return cdnow(request.getfixturevalue("data_folder"), "cdnow_sample_purchases")


def _generated(request: pytest.FixtureRequest, folder: Path) -> Recording:
    """With signups and refunds, so that two topics must be merged."""
    return generated(folder, Population(customers=1000, days=400, seed=7), "2025-06-01T00:00:00Z")


@pytest.mark.slow
@pytest.mark.parametrize("record", [_sample, _generated], ids=["cdnow_sample", "generated"])
def test_killing_a_worker_loses_and_doubles_nothing(
    record: Callable[[pytest.FixtureRequest, Path], Recording], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """What is consumed after repeats are dropped equals the oracle's (else a replay's) rows, in order per customer."""
    recording = record(request, tmp_path)
    try:
        stack = EmbeddedStack(Settings())
        with stack, Topics(stack.broker.address) as topics, stored(stack.redis.url) as state:
            settings = {**stack.environment(), "SEGMENTER_SESSION_TIMEOUT": "3"}
            survive_a_crash(recording, settings, topics, state, rate=2500, folder=tmp_path)
    except ServiceUnavailable as unavailable:
        pytest.skip(str(unavailable))
