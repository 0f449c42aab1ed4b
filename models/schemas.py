"""JSON Schemas of every topic's values, generated from the wire forms; committed under docs/schemas."""

from __future__ import annotations

from typing import Any, Final

from pydantic import TypeAdapter

from models.changes import CHANGE, DEAD_LETTER, SNAPSHOT
from models.events import VALUES

#: Topic, by its default name → what its values are.
_TOPICS: Final[dict[str, TypeAdapter[Any]]] = {
    **{str(role): adapter for role, adapter in VALUES.items()},
    "segment-changes": CHANGE,
    "customer-segments": SNAPSHOT,
    "dead-letters": DEAD_LETTER,
}


def schemas() -> dict[str, dict[str, Any]]:
    """JSON Schema (draft 2020-12) of the values of each topic."""
    return {
        topic: {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **adapter.json_schema(),
            "title": f"Value of a record on {topic}",
        }
        for topic, adapter in _TOPICS.items()
    }
