"""Clusters that are learned from the stream, once through, are as good as those of batch k-means on all customers."""

from pathlib import Path

import pytest

from tests.bench.clusters import RECORDINGS, Batch, cluster_policy, learned, recording, reordered

#: The least share of the silhouette of scikit-learn's KMeans.
ENOUGH = 0.95


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDINGS)
def test_the_silhouette_is_near_that_of_batch_k_means(data_folder: Path, name: str) -> None:
    """Of CDNOW and Online Retail II, by the labels that were published; and any order within the days has the same."""
    events = recording(data_folder, name)
    policy = cluster_policy(RECORDINGS[name])
    found = learned(events, policy)
    batch = Batch.of(found.values, sample=5000)
    assert batch.silhouette_of(found.labels) >= ENOUGH * batch.silhouette
    assert batch.silhouette_of(found.nearest) >= ENOUGH * batch.silhouette
    assert batch.likeness(found.labels) > 0.6
    if name == "or2_orders":
        again = learned(reordered(events, 1), policy)
        assert again.model == found.model
        assert (again.labels == found.labels).mean() > 0.999
