"""Events of generated customers, whose purchases and refunds the stages are measured on."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final, NamedTuple

import orjson

from streams.generator import Population, generate

#: Everything lies in this many days before the run: nobody lapses, under either clock.
_DAYS: Final = 78
_EVENTS_PER_CUSTOMER: Final = 8.0


class BenchRecord(NamedTuple):
    """A record as the consumer gives it."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    timestamp_type: int = 1


def generated_records(count: int) -> list[BenchRecord]:
    """So many events in time order, the same but for the date, as records of one partition produced just now."""
    start = (datetime.now(UTC) - timedelta(days=_DAYS + 1)).replace(hour=0, minute=0, second=0, microsecond=0)
    population = Population(
        customers=max(50, int(count / _EVENTS_PER_CUSTOMER)), days=_DAYS, acquisition_days=30, start=start,
        signup_share=0.0, survey_share=0.0, r=0.8, alpha=0.6, a=0.8, b=20.0,
    )  # fmt: skip
    events = list(islice(generate(population), count))
    if len(events) < count:
        raise ValueError(f"the population gives only {len(events)} events")
    now = int(time.time() * 1000)
    return [
        BenchRecord(i, now + i // 100, event["customer_id"].encode(), orjson.dumps(event))
        for i, event in enumerate(events)
    ]
