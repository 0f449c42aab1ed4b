"""What every Python peer does with one purchase or refund: the same rules and the same state, wherever that is kept.

It is what an application would write by hand. An event is taken as it is: no validation, no dedupe, one currency with
two decimals, and all instants in the same form, so that they can be compared as text. A customer lapses only when
another event comes.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

PURCHASES = "purchases"
CHANGES = "segment-changes"
REGULAR_ORDERS = 3
LAPSE_AFTER = timedelta(days=90)

#: A customer's state, which is JSON as it is. Money is in cents: exact, and cheap to store.
State = dict[str, Any]
#: What is published when a customer's label changes.
Change = dict[str, Any]


def new_customer() -> State:
    """The state before the first event."""
    return {
        "orders": 0,
        "gross": 0,
        "refunded": 0,
        "first_purchase_at": None,
        "last_purchase_at": None,
        "label": None,
    }


def handle(state: State, event: dict[str, Any]) -> Change | None:
    """Add one event to its customer's state; return the change if that gives another label."""
    fold(state, event)
    now = datetime.now(UTC)
    label = lifecycle(state["orders"], state["last_purchase_at"], now)
    if label == state["label"]:
        return None
    change = change_of(state, event, label, now)
    state["label"] = label
    return change


def fold(state: State, event: dict[str, Any]) -> None:
    """Add one purchase or refund to a customer's state."""
    cents = int(Decimal(event["amount"]) * 100)
    if event["kind"] == "refund":
        state["refunded"] += cents
        return
    at = event["occurred_at"]
    state["orders"] += 1
    state["gross"] += cents
    if state["first_purchase_at"] is None or at < state["first_purchase_at"]:
        state["first_purchase_at"] = at
    if state["last_purchase_at"] is None or at > state["last_purchase_at"]:
        state["last_purchase_at"] = at


def lifecycle(orders: int, last_purchase_at: str | None, now: datetime) -> str | None:
    """The label by the default policy's rules for purchases."""
    if last_purchase_at is None:
        return None
    if now - datetime.fromisoformat(last_purchase_at) > LAPSE_AFTER:
        return "lapsed"
    return "regular" if orders >= REGULAR_ORDERS else "new"


def change_of(state: State, event: dict[str, Any], label: str | None, now: datetime) -> Change:
    """The change to the label from the one in the state."""
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
            "monetary": str(Decimal(state["gross"] - state["refunded"]).scaleb(-2)),
        },
    }
