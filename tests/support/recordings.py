"""Recorded events as files to produce, and the changes that must come of them."""

import csv
import gzip
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
from streams.generator import Population, generate
from streams.replay import replay
from tests.support.topics import Move, moves

CDNOW_UNTIL = "1998-07-01T00:00:00Z"


#: The policy behind the oracle.
LIFECYCLE = Path(models.__file__).parent / "policies" / "lifecycle.toml"


@dataclass(frozen=True)
class Recording:
    """A file of events in time order, the instant that time reaches after them, and the moves they cause.

    ``policy`` is the file of the policy under which they do, None for the default one.
    """

    file: Path
    until: str
    moves: Counter[Move]
    policy: Path | None = None


def cdnow(data: Path, name: str) -> Recording:
    """CDNOW purchases with the lifecycle's moves that pandas computed: those of the customers in the file."""
    file = data / f"{name}.ndjson.gz"
    with gzip.open(file, "rt") as lines:
        customers = {json.loads(line)["customer_id"] for line in lines}
    columns = ("customer_id", "at", "from", "to", "cause", "event_id")
    with gzip.open(data / "oracle" / "cdnow_transition_log.csv.gz", "rt", newline="") as log:
        rows = [tuple(row[column] for column in columns) for row in csv.DictReader(log)]
    wanted: Counter[Any] = Counter(row for row in rows if row[0] in customers)
    return Recording(file, CDNOW_UNTIL, wanted, LIFECYCLE)


def generated(folder: Path, population: Population, until: str) -> Recording:
    """Generated events of every kind, with the moves in all dimensions that a replay in process finds."""
    events = list(generate(population))
    file = folder / "generated.ndjson.gz"
    with gzip.open(file, "wt") as lines:
        lines.writelines(json.dumps(event) + "\n" for event in events)
    return Recording(file, until, moves(replay(events, until=until)))
