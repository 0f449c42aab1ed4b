"""Without any one of its safeguards the suite fails; what fault runs alone notice is in docs/RELIABILITY.md."""

from pathlib import Path

import pytest

from streams.embedded.redis import find_redis_server
from streams.errors import ServiceUnavailable
from tests.faults.catalogue import FAULTS
from tests.faults.mutations import MUTATIONS, Mutation, mutated, noticed_by_tests


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_missing_safeguard_is_noticed(mutation: Mutation, tmp_path: Path) -> None:
    """The tests that are said to hold it fail in a copy of the project that lacks it."""
    try:
        find_redis_server()
    except ServiceUnavailable as unavailable:
        pytest.skip(str(unavailable))
    assert noticed_by_tests(mutation, mutated(mutation, tmp_path))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_faults_that_notice_exist(mutation: Mutation) -> None:
    """By the names under which they run."""
    assert set(mutation.faults) <= set(FAULTS)
