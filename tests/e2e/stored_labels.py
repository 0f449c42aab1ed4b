"""The labels that a replay's store holds, as a table."""

import pandas as pd

from models.rows import unpack
from streams.replay import Replayed


def stored_labels(result: Replayed) -> pd.DataFrame:
    """A row for each stored customer, a column for each dimension, None where there is no label."""
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
