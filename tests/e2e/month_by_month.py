"""A replay that stops at instants, and a comparison of what it has stored by then with a batch computation."""

from collections.abc import Iterator, Sequence

import pandas as pd

from models.activation import Activation
from models.policy import Policy
from models.rows import unpack
from streams.recorded import RecordedEvent
from streams.replay import Replay, Replayed
from tests.e2e.batch import labels


def run(
    policy: Policy, events: Sequence[RecordedEvent], ends: Sequence[int], shards: int
) -> Iterator[tuple[int, Replayed, list[Activation]]]:
    """A replay that is looked at, at each of the instants, after all that is due has been applied."""
    replay, rest = Replay(policy, shards), 0
    for end in ends:
        first = rest
        while rest < len(events) and events[rest].occurred_at < end:
            rest += 1
        for _ in replay.feed(events[first:rest]):
            pass
        yield end, replay.finish(end), replay.activations


def in_force(activations: Sequence[Activation], instant: int) -> Activation:
    """The activation that a shard is at, at an instant of its time."""
    return [each for each in activations if each.active_from <= instant][-1]


def assert_labels(
    result: Replayed, events: pd.DataFrame, instant: int, activations: Sequence[Activation], columns: list[str]
) -> None:
    """Every stored label is the batch computation's, and every customer is there."""
    scores = in_force(activations, instant).cutoffs.scores
    wanted = labels(events, instant, scores.get("rfm", {}), scores.get("value", {}))
    found = stored_labels(result)[columns]
    pd.testing.assert_frame_equal(found, wanted[columns].sort_index(), check_names=False, check_dtype=False)


def stored_labels(result: Replayed) -> pd.DataFrame:
    """The labels that the replay's store holds: a row for each customer, a column for each dimension, None for none."""
    parts = []
    for store, shard in result._stores:
        layouts = store.header(shard).layouts
        for rows in store.rows(shard):
            for group in unpack(rows, layouts):
                codes = group.head["label"]
                names = {
                    dimension: pd.Series([*texts, None], dtype=object).to_numpy()[codes[:, d]]
                    for d, (dimension, texts) in enumerate(group.layout.labels.items())
                }
                parts.append(pd.DataFrame(names, index=group.customers, dtype=object))
    return pd.concat(parts).sort_index()
