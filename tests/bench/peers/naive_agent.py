"""The Faust agent that a tutorial leads to, with its state in Redis: ``naive_agent.py BROKER REDIS_URL [GROUP]``.

One event at a time: Faust decodes the JSON, the customer's state is read from Redis and written back as JSON, and a
change is sent with ``topic.send``. It has none of what makes a segmenter safe to run: no validation, no dedupe, no
outbox, no atomic commit of state and offsets, no lapse without an event, no causes. Its settings are the defaults but
for those below.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import faust
import redis.asyncio
from lifecycle import CHANGES, PURCHASES, handle, new_customer


def naive_app(broker: str, redis_url: str, group: str = "naive") -> faust.App:
    """The application: one agent, one topic in, one topic out."""
    app = faust.App(
        group,
        broker=f"kafka://{broker}",
        store="memory://",
        web_enabled=False,
        # Topics are there, and the embedded broker knows no CreateTopics.
        topic_allow_declare=False,
        topic_disable_leader=True,
        # Else it may take minutes to end.
        stream_wait_empty=False,
        worker_redirect_stdouts=False,
    )
    purchases = app.topic(PURCHASES, key_type=str, key_serializer="raw", value_serializer="json")
    changes = app.topic(CHANGES, key_type=str, key_serializer="raw", value_serializer="json")
    client = redis.asyncio.Redis.from_url(redis_url, decode_responses=True)

    @app.agent(purchases)  # type: ignore[untyped-decorator]
    async def segment(events: faust.types.StreamT[Any]) -> None:
        async for event in events:
            customer = event["customer_id"]
            stored = await client.get(f"customer:{customer}")
            state = json.loads(stored) if stored else new_customer()
            change = handle(state, event)
            if change is not None:
                await changes.send(key=customer, value=change)
            await client.set(f"customer:{customer}", json.dumps(state))

    return app


if __name__ == "__main__":
    faust.Worker(naive_app(*sys.argv[1:4]), loglevel="error").execute_from_commandline()
