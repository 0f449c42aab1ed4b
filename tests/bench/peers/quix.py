"""The same with Quix Streams: ``quix.py BROKER REDIS_URL GROUP STATE_FOLDER``.

A stateful function in a StreamingDataFrame, as its documentation shows. State is in RocksDB with a changelog topic,
which is how Quix keeps it. Redis is not used.

It skips what the segmenter does beside: validation, dedupe, one atomic commit of state and offsets (with the default
guarantee, at least once), lapses without an event, causes, dead letters.

Settings: orjson, which is its own JSON. Changes and the changelog linger for 20 ms, so that they share record batches.
Checkpoints are made every 5 s, the default; changes do not wait for them. The rest is at its default.
"""

from __future__ import annotations

import sys

from lifecycle import CHANGES, PURCHASES, Change, handle, new_customer
from quixstreams import Application, State


def decide(event: dict[str, object], state: State) -> Change | None:
    """Fold one event into the state of its key."""
    customer = state.get("customer") or new_customer()
    change = handle(customer, event)
    state.set("customer", customer)
    return change


def quix_application(broker: str, group: str, folder: str) -> Application:
    """The application: one dataframe, one topic in, one topic out."""
    app = Application(
        broker_address=broker,
        consumer_group=group,
        auto_offset_reset="earliest",
        state_dir=folder,
        producer_extra_config={"linger.ms": 20},
        loglevel="WARNING",
    )
    purchases = app.topic(PURCHASES, key_deserializer="str", value_deserializer="json")
    changes = app.topic(CHANGES, key_serializer="str", value_serializer="json")
    changed = app.dataframe(purchases).apply(decide, stateful=True).filter(lambda change: change is not None)
    changed.to_topic(changes)
    return app


if __name__ == "__main__":
    _, broker, _, group, folder = sys.argv
    quix_application(broker, group, folder).run()
