"""The upper limit: consuming and validating, nothing else. ``consume BROKER REDIS_URL`` counts in Redis."""

from __future__ import annotations

import asyncio
import sys

import aiokafka
import redis
from aiokafka.structs import TopicPartition

from models.instants import FOREVER
from models.records import Reader, read
from streams import memory
from streams.kafka.records import leave_records_plain
from streams.kafka.transport import FETCH_BYTES, FETCH_WAIT_MS
from tests.bench.policies import shipped
from tests.bench.workload import PARTITIONS, PURCHASES

COUNTER = "consumed"


async def purchases_consumer(broker: str) -> aiokafka.AIOKafkaConsumer:
    """The consumer that the worker uses, with all partitions of the purchases and no group."""
    leave_records_plain()
    consumer = aiokafka.AIOKafkaConsumer(
        bootstrap_servers=broker,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        isolation_level="read_committed",
        max_partition_fetch_bytes=FETCH_BYTES,
        fetch_max_wait_ms=FETCH_WAIT_MS,
    )
    await consumer.start()
    consumer.assign([TopicPartition(PURCHASES, partition) for partition in range(PARTITIONS)])
    return consumer


async def main(broker: str, redis_url: str) -> None:
    """Run until SIGTERM."""
    client, policy = redis.Redis.from_url(redis_url), shipped("lifecycle")
    consumer = await purchases_consumer(broker)
    memory.collect_seldom()
    while True:
        for tp, records in (await consumer.getmany(timeout_ms=FETCH_WAIT_MS)).items():
            batch, _ = read("purchases", records, Reader(policy, tp.partition, PARTITIONS, FOREVER))
            client.incrby(COUNTER, len(batch))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
