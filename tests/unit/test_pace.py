"""Pace: how many customers time alone may move at once."""

import pytest

from streams.pace import Pace


class Hand:
    """A monotonic clock that is moved by hand."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Hand:
    hand = Hand()
    monkeypatch.setattr("streams.pace.time", hand)
    return hand


@pytest.mark.usefixtures("clock")
def test_alone_time_moves_many_and_some_commits_may_be_under_way() -> None:
    """Nobody waits for it."""
    pace = Pace(5000)
    assert pace.slice == 1000
    assert [pace.behind(pending) for pending in (0, 4, 5)] == [False, False, True]


def test_beside_live_events_time_moves_few_and_waits_for_the_broker(clock: Hand) -> None:
    """For a second after each of them."""
    pace = Pace(5000)
    assert pace.beside(1) == 120
    clock.now += 0.9
    assert pace.slice == 120
    assert [pace.behind(pending) for pending in (0, 1)] == [False, True]
    clock.now += 0.2
    assert pace.slice == 1000


@pytest.mark.usefixtures("clock")
def test_time_keeps_up_with_a_backlog() -> None:
    """A fifth of what is folded may lapse with it: fewer would be left behind for as long as the backlog lasts."""
    assert Pace(5000).beside(5000) == 1000


@pytest.mark.usefixtures("clock")
def test_no_commit_is_larger_than_a_batch() -> None:
    """Whoever makes batches small has a reason."""
    pace = Pace(20)
    assert pace.slice == 20
    assert pace.beside(20) == 20
