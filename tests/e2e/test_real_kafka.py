"""All of CDNOW through a real Apache Kafka and two workers, one of them killed: the changes are the oracle's."""

from pathlib import Path

import pytest

from tests.support.commands import output_of
from tests.support.crash import survive_a_crash
from tests.support.real_kafka import KafkaUnavailable, RealKafka
from tests.support.real_redis import RealRedis, RedisUnavailable
from tests.support.recordings import cdnow
from tests.support.stored import stored
from tests.support.topics import Topics


@pytest.mark.kafka
@pytest.mark.slow
def test_killing_a_worker_on_a_real_broker_loses_and_doubles_nothing(data_folder: Path, tmp_path: Path) -> None:
    """71,567 changes, no other, in order per customer, nothing left in an outbox, no dead letter."""
    recording = cdnow(data_folder, "cdnow_purchases")
    assert recording.moves.total() == 71_567
    try:
        with RealKafka() as kafka, RealRedis() as redis:
            settings = {"SEGMENTER_BROKER": kafka.address, "SEGMENTER_REDIS": redis.url}
            output_of("topics", "create", "--partitions", "4", settings=settings)
            with Topics(kafka.address) as topics, stored(redis.url) as state:
                survive_a_crash(recording, settings, topics, state, rate=3000, folder=tmp_path)
    except (KafkaUnavailable, RedisUnavailable) as unavailable:
        pytest.skip(str(unavailable))
