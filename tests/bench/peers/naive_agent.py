"""The other side of the comparison: a Faust agent that does the same work the way a tutorial does.

One event at a time: Faust decodes the JSON, the customer's state is read from Redis and written back as JSON, and a
change is sent with ``topic.send``. It has none of what makes a segmenter safe to run: no validation, no dedupe, no
outbox, no atomic commit, no lapse without an event. Run it as ``naive_agent.py BROKER REDIS_URL``.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import faust
import redis.asyncio

REGULAR_ORDERS = 3
LAPSE_AFTER = timedelta(days=90)
EMPTY: dict[str, Any] = {
    "orders": 0, "gross": "0", "refunded": "0", "first_purchase_at": None, "last_purchase_at": None, "label": None,
}  # fmt: skip


def lifecycle(orders: int, last_purchase_at: str | None, now: datetime) -> str | None:
    """The label by the default policy's rules for purchases."""
    if last_purchase_at is None:
        return None
    if now - datetime.fromisoformat(last_purchase_at) > LAPSE_AFTER:
        return "lapsed"
    return "regular" if orders >= REGULAR_ORDERS else "new"


def fold(state: dict[str, Any], event: dict[str, Any]) -> None:
    """Add one purchase or refund to a customer's state."""
    amount = Decimal(event["amount"])
    if event["kind"] == "refund":
        state["refunded"] = str(Decimal(state["refunded"]) + amount)
        return
    at = event["occurred_at"]
    state["orders"] += 1
    state["gross"] = str(Decimal(state["gross"]) + amount)
    state["first_purchase_at"] = min(state["first_purchase_at"] or at, at)
    state["last_purchase_at"] = max(state["last_purchase_at"] or at, at)


def change_of(state: dict[str, Any], event: dict[str, Any], label: str | None, now: datetime) -> dict[str, Any]:
    """What is published when a customer's label changes."""
    last = state["last_purchase_at"]
    return {
        "customer_id": event["customer_id"],
        "dimension": "lifecycle",
        "from": state["label"],
        "to": label,
        "event_id": event["event_id"],
        "effective_at": event["occurred_at"],
        "decided_at": now.isoformat(),
        "rfm": {
            "recency_days": None if last is None else (now - datetime.fromisoformat(last)).days,
            "frequency": state["orders"],
            "monetary": str(Decimal(state["gross"]) - Decimal(state["refunded"])),
        },
    }


def naive_app(broker: str, redis_url: str) -> faust.App:
    """The application: one agent, one topic in, one topic out."""
    app = faust.App(
        "naive",
        broker=f"kafka://{broker}",
        store="memory://",
        web_enabled=False,
        # The embedded broker makes topics when they are used, and knows no CreateTopics.
        topic_allow_declare=False,
        topic_disable_leader=True,
        worker_redirect_stdouts=False,
    )
    purchases = app.topic("purchases", key_type=str, key_serializer="raw", value_serializer="json")
    changes = app.topic("segment-changes", key_type=str, key_serializer="raw", value_serializer="json")
    client = redis.asyncio.Redis.from_url(redis_url, decode_responses=True)

    @app.agent(purchases)  # type: ignore[untyped-decorator]
    async def segment(events: faust.types.StreamT[Any]) -> None:
        async for event in events:
            customer = event["customer_id"]
            stored = await client.get(f"customer:{customer}")
            state: dict[str, Any] = json.loads(stored) if stored else dict(EMPTY)
            fold(state, event)
            now = datetime.now(UTC)
            label = lifecycle(state["orders"], state["last_purchase_at"], now)
            if label != state["label"]:
                await changes.send(key=customer, value=change_of(state, event, label, now))
                state["label"] = label
            await client.set(f"customer:{customer}", json.dumps(state))

    return app


if __name__ == "__main__":
    faust.Worker(naive_app(sys.argv[1], sys.argv[2]), loglevel="error").execute_from_commandline()
