"""The steady clock: follows slewing at once, a step only when it has lasted."""

import pytest
from prometheus_client import REGISTRY

from streams.clock import SteadyClock

HOUR = 3600.0


class Machine:
    """A machine's two clocks, moved by hand; between looks it goes on at the pace of a watch."""

    def __init__(self) -> None:
        self.wall, self.steady = 1_700_000_000.0, 50.0
        self.clock = SteadyClock(lambda: self.wall, lambda: self.steady)

    def passes(self, seconds: float, drift: float = 0.0) -> float:
        """Let time pass, the wall clock being adjusted by ``drift``, and look."""
        self.wall += seconds + drift
        self.steady += seconds
        return self.clock.now()


def gauge() -> float:
    return REGISTRY.get_sample_value("segmenter_clock_step_seconds") or 0.0


def test_it_is_the_wall_clock() -> None:
    machine = Machine()
    assert machine.clock.now() == machine.wall
    assert machine.passes(10) == machine.wall
    assert machine.clock.instant() == int(machine.wall * 1_000_000)


def test_slewing_is_followed() -> None:
    """A clock that is adjusted little by little is right."""
    machine = Machine()
    for _ in range(100):
        assert machine.passes(1, drift=0.5) == pytest.approx(machine.wall)
    assert gauge() == 0


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_step_that_is_taken_back_never_was(step: float) -> None:
    """Time goes on as if nobody had touched the clock, and the metric says what somebody did."""
    machine = Machine()
    began = machine.clock.now()
    assert machine.passes(1, drift=step) == pytest.approx(began + 1)
    assert machine.passes(200) == pytest.approx(began + 201)
    assert gauge() == pytest.approx(step)
    assert machine.passes(1, drift=-step) == pytest.approx(began + 202)
    assert gauge() == 0
    assert machine.passes(299, drift=step) == pytest.approx(began + 501)


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_step_that_lasts_is_followed(step: float, caplog: pytest.LogCaptureFixture) -> None:
    """The clock had been wrong, and was set right; both the step and that it is followed are logged."""
    machine = Machine()
    machine.passes(1, drift=step)
    machine.passes(299)
    assert machine.clock.now() == pytest.approx(machine.wall - step)
    machine.passes(1)
    assert machine.clock.now() == pytest.approx(machine.wall)
    assert gauge() == 0
    assert [record.action for record in caplog.records] == ["clock_stepped", "clock_followed"]


def test_another_step_must_last_anew() -> None:
    """However long ago the first was."""
    machine = Machine()
    began = machine.clock.now()
    machine.passes(1, drift=HOUR)
    machine.passes(290)
    machine.passes(1, drift=-2 * HOUR)
    assert machine.passes(290) == pytest.approx(began + 582)
    machine.passes(10)
    assert machine.clock.now() == pytest.approx(machine.wall)


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_what_is_ahead_is_ahead_of_both_clocks(step: float) -> None:
    """A record is not refused because a clock has just been set right, or wrong."""
    machine = Machine()
    machine.passes(1, drift=step)
    assert machine.clock.latest() == int(max(machine.wall, machine.clock.now()) * 1_000_000)


def test_a_moment_that_the_wall_clock_noted() -> None:
    """Its age is what counts; a moment that seems to lie ahead is now."""
    machine = Machine()
    noted = machine.wall
    machine.passes(5)
    assert machine.clock.noted(noted) == pytest.approx(noted + 0)
    machine.passes(1, drift=-HOUR)
    assert machine.clock.noted(noted) == pytest.approx(machine.clock.now())
