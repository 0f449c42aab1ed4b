"""The same as a Bytewax dataflow: ``bytewax_flow.py BROKER REDIS_URL GROUP STATE_FOLDER``.

Source, a stateful step keyed by customer, sink, as its documentation shows. State is in memory, snapshots of what has
changed and the offsets go to a recovery store (SQLite) together, at the end of each epoch. Redis is not used, and
neither is the group: Bytewax keeps its own offsets.

It skips what the segmenter does beside: validation, dedupe (after a crash the changes of an epoch are published
again), lapses without an event, causes, dead letters, rebalancing.

Settings: one worker; orjson; 10,000 records at a time, because the sink waits for the broker after each batch; a full
queue of fetched records is filled again after 50 ms, not after a second. An epoch lasts 10 s, the default; changes do
not wait for its end. ``stateful_batch``, the operator below ``stateful_flat_map``, was tried and is no faster here.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import bytewax.operators as op
import orjson
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main
from lifecycle import CHANGES, PURCHASES, Change, State, handle, new_customer

BATCH = 10_000
Message = KafkaSourceMessage[bytes, bytes]


def keyed(messages: list[Message]) -> list[tuple[str, dict[str, object]]]:
    """The events with their customers."""
    events = [orjson.loads(message.value) for message in messages]
    return [(event["customer_id"], event) for event in events]


def decide(state: State | None, event: dict[str, object]) -> tuple[State, list[Change]]:
    """Fold one event into its customer's state."""
    state = state or new_customer()
    change = handle(state, event)
    return state, [] if change is None else [change]


def to_message(keyed_change: tuple[str, Change]) -> KafkaSinkMessage[bytes, bytes]:
    """A change as it is published."""
    customer, change = keyed_change
    return KafkaSinkMessage(customer.encode(), orjson.dumps(change))


def lifecycle_flow(broker: str) -> Dataflow:
    """The dataflow."""
    flow = Dataflow("lifecycle")
    source = KafkaSource([broker], [PURCHASES], batch_size=BATCH, add_config={"fetch.queue.backoff.ms": "50"})
    messages = op.input("purchases", flow, source)
    events = op.flat_map_batch("by_customer", messages, keyed)
    changes = op.stateful_flat_map("decide", events, decide)
    op.output("changes", op.map("encode", changes, to_message), KafkaSink([broker], CHANGES))
    return flow


def main(broker: str, folder: Path) -> None:
    """Run it until SIGTERM."""
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.glob("part-*.sqlite3")):
        init_db_dir(folder, 1)
    # It has no stop in good order: however it ends, it goes on from its last snapshot.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    cli_main(lifecycle_flow(broker), recovery_config=RecoveryConfig(folder))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[4]))
