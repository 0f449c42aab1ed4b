"""The same fold and commit without Faust: what of the segmenter's time is Faust's. ``without_faust BROKER REDIS_URL``.

The segmenter's own processor, store, outbox and publisher, behind the aiokafka consumer that Faust would use. All
partitions are its own for good: there is no group, no rebalance, no time that passes without events, nobody watches.
"""

from __future__ import annotations

import asyncio
import sys

from aiokafka.structs import ConsumerRecord

from models.events import ROLES
from models.instants import FOREVER
from streams import memory
from streams.activations import Activations
from streams.aside import Aside
from streams.commit import Range
from streams.kafka.publisher import KafkaPublisher, OutputTopics
from streams.kafka.transport import FETCH_WAIT_MS
from streams.outbox import Outbox
from streams.processor import BatchProcessor, Clock, Shard
from streams.settings import Settings
from streams.store.redis import RedisStore
from tests.bench.consume import purchases_consumer
from tests.bench.policies import shipped
from tests.bench.workload import PARTITIONS

#: Fetches of a partition that may wait, as many as Faust lets wait.
_WAITING = 16


async def _shard(
    processor: BatchProcessor, outbox: Outbox, aside: Aside, fetches: asyncio.Queue[list[ConsumerRecord]]
) -> None:
    most = Settings().batch_size
    header = await asyncio.to_thread(processor.load, dict.fromkeys(ROLES, 0), {})
    outbox.start(header)
    position = header.offsets["purchases"]
    while True:
        records = await fetches.get()
        while len(records) < most and not fetches.empty():
            records += fetches.get_nowait()
        for start in range(0, len(records), most):
            part = records[start : start + most]
            batch, refusals = processor.read("purchases", part, FOREVER)
            step = processor.fold(batch, refusals, {"purchases": Range(position, part[-1].offset + 1)})
            position = part[-1].offset + 1
            await aside.do(step.commit.size, processor.commit, step)
            await outbox.put(step.commit, None)


async def main(broker: str, redis_url: str) -> None:
    """Run until SIGTERM."""
    settings, policy = Settings(), shipped("lifecycle")
    store = RedisStore(redis_url, settings.namespace)
    store.register(PARTITIONS, settings.group)
    activations = Activations(store, policy)
    publisher = KafkaPublisher({"bootstrap.servers": broker}, OutputTopics(*settings.output_topics))
    consumer = await purchases_consumer(broker)
    memory.collect_seldom()
    aside = Aside(store)
    queues = [asyncio.Queue[list[ConsumerRecord]](_WAITING) for _ in range(PARTITIONS)]
    async with asyncio.TaskGroup() as shards:
        for number, queue in enumerate(queues):
            shard = Shard(number, PARTITIONS, settings.topics)
            processor = BatchProcessor(shard, activations, store, Clock.INGESTION)
            shards.create_task(_shard(processor, Outbox(number, store, publisher, aside), aside, queue))
        while True:
            for tp, records in (await consumer.getmany(timeout_ms=FETCH_WAIT_MS)).items():
                await queues[tp.partition].put(records)


if __name__ == "__main__":
    memory.bound()
    asyncio.run(main(*sys.argv[1:]))
