"""What all tests share: Hypothesis profiles, and where the recorded data lies."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.real_kafka import KafkaUnavailable, RealKafka
from tests.support.real_redis import RealRedis, RedisUnavailable

settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of recorded events and oracles, beside the repository; tests that need it skip without it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the recorded events are not here: put the data beside the repository, in ../shared/data")
    return folder


@pytest.fixture
def redis() -> Iterator[RealRedis]:
    """A Redis of the test's own."""
    try:
        with RealRedis(aof=False) as server:
            yield server
    except RedisUnavailable as unavailable:
        pytest.skip(str(unavailable))


@pytest.fixture(scope="session")
def kafka() -> Iterator[RealKafka]:
    """A real Apache Kafka without topics, shared by all tests: each uses topics, group and namespace of its own."""
    server = RealKafka()
    try:
        server.start()
    except KafkaUnavailable as unavailable:
        pytest.skip(str(unavailable))
    try:
        yield server
    finally:
        server.close()
