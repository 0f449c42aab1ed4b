"""MemoryStore fulfils the contract of StateStore."""

import pytest

from models.counts import Count
from streams.commit import ShardHeader
from streams.ports import StateStore
from streams.store.memory import MemoryStore
from tests.contract.store_contract import NOTHING, START, StoreContract, held, started


class TestMemoryStore(StoreContract):
    """The contract, on MemoryStore."""

    @pytest.fixture
    def store(self) -> StateStore:
        """An empty store."""
        return MemoryStore()

    def test_stores_do_not_share_anything(self, store: StateStore) -> None:
        """A second store is empty."""
        started(store)
        assert held(MemoryStore()) == NOTHING

    def test_what_is_returned_is_a_copy(self, store: StateStore) -> None:
        """Changing what a store was given or gave changes nothing in it."""
        offsets = dict(START)
        store.acquire(0, "t", offsets, {})
        offsets["purchases"] = 99
        store.header(0).offsets["purchases"] = 99  # type: ignore[index]
        store.segments(0)["lifecycle:new"] = Count(1, 1)  # type: ignore[index]
        assert held(store) == (ShardHeader(offsets=START, owner="t"), {}, {})
