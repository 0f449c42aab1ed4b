"""The same as a Faust agent with a Table: ``faust_table.py BROKER REDIS_URL GROUP STATE_FOLDER``.

State is where Faust's documentation recommends it for production: in RocksDB, with a changelog topic on the broker
from which a lost disk is filled again. Redis is not used.

It skips what the segmenter does beside: validation, dedupe, one atomic commit of state and offsets (after a crash
events are folded twice), lapses without an event, causes, dead letters.

Settings: orjson, which Faust uses where it is installed; changes and the changelog linger for 20 ms, so that they
share record batches; record batches of up to 256 KiB; no debug logging, whose records Faust's worker has made and then
thrown away, several an event. The rest is at its default: acks from all replicas, commits every 2.8 s, sessions of
60 s.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import faust
from lifecycle import CHANGES, PURCHASES, handle, new_customer

#: Of the input; a table's changelog must have as many.
PARTITIONS = 4


def table_app(broker: str, group: str, folder: str) -> faust.App:
    """The application: one agent, one table."""
    app = faust.App(
        group,
        broker=f"kafka://{broker}",
        store="rocksdb://",
        datadir=folder,
        topic_partitions=PARTITIONS,
        topic_replication_factor=1,
        topic_disable_leader=True,
        producer_linger=0.02,
        producer_max_batch_size=256 * 1024,
        web_enabled=False,
        # Else it may take minutes to end.
        stream_wait_empty=False,
        worker_redirect_stdouts=False,
    )
    purchases = app.topic(PURCHASES, key_type=str, key_serializer="raw", value_serializer="json")
    changes = app.topic(CHANGES, key_type=str, key_serializer="raw", value_serializer="json")
    customers = app.Table("customers", default=new_customer, key_type=str)

    @app.agent(purchases)  # type: ignore[untyped-decorator]
    async def segment(events: faust.types.StreamT[Any]) -> None:
        async for event in events:
            customer = event["customer_id"]
            state = customers[customer]
            change = handle(state, event)
            if change is not None:
                await changes.send(key=customer, value=change)
            customers[customer] = state

    return app


if __name__ == "__main__":
    logging.disable(logging.DEBUG)
    _, broker, _, group, folder = sys.argv
    # As a worker and not through App.main: that takes the command line for itself.
    faust.Worker(table_app(broker, group, folder), loglevel="error").execute_from_commandline()
