"""Time that neither jumps nor runs back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from launcher.adapters.system_clock import SystemClock

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Machine:
    """A wall clock that can be set, and a monotonic one that cannot."""

    def __init__(self) -> None:
        self.wall_seconds, self.monotonic_seconds = EPOCH.timestamp() + 100.0, 5.0

    def clock(self, scale: float = 1.0, not_before: datetime | None = None) -> SystemClock:
        return SystemClock(
            epoch=EPOCH,
            scale=scale,
            not_before=not_before,
            wall=lambda: self.wall_seconds,
            monotonic=lambda: self.monotonic_seconds,
        )


def test_a_wall_clock_that_jumps_moves_nothing() -> None:
    machine = Machine()
    clock = machine.clock()
    before = clock.now()

    machine.wall_seconds -= 86400
    machine.monotonic_seconds += 2

    assert clock.now() == before + timedelta(seconds=2)


def test_scaled_time_runs_faster_from_its_epoch_on() -> None:
    clock = Machine().clock(scale=60)

    assert clock.now() == EPOCH + timedelta(seconds=100 * 60)
    assert clock.to_wall(clock.from_wall(EPOCH + timedelta(seconds=7))) == EPOCH + timedelta(seconds=7)


def test_unscaled_time_is_the_wall_clock_whatever_the_epoch() -> None:
    assert Machine().clock().now() == EPOCH + timedelta(seconds=100)


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_a_clock_that_was_set_back_goes_on_from_what_is_written_down(scale: float) -> None:
    machine = Machine()
    written = machine.clock(scale).now()
    machine.wall_seconds -= 50

    clock = machine.clock(scale, not_before=written)
    machine.monotonic_seconds += 2

    assert clock.now() == written + timedelta(seconds=2 * scale)


def test_a_clock_that_is_ahead_of_what_is_written_down_is_left_alone() -> None:
    machine = Machine()

    assert machine.clock(not_before=EPOCH).now() == machine.clock().now()
