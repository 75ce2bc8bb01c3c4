"""A save is due often enough to lose little, and seldom enough to cost little."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_hooks import schedule
from trainer_hooks.schedule import auto_steps, interval_seconds, is_due

seconds = st.floats(min_value=1e-4, max_value=1e5)


def test_a_number_of_steps_is_that_number() -> None:
    assert [is_due(3, steps=n, step_seconds=1, save_seconds=None) for n in range(5)] == [False] * 3 + [True] * 2


def test_without_a_step_nothing_is_due() -> None:
    assert not is_due("auto", steps=0, step_seconds=1e9, save_seconds=1)


def test_auto_is_the_formula_of_young_and_daly() -> None:
    assert interval_seconds(2.0, seconds_between_preemptions=3600.0) == math.sqrt(2 * 2.0 * 3600.0)


@pytest.mark.parametrize(
    ("save_seconds", "expected"),
    [(0.0, schedule.MIN_SECONDS), (1e-6, schedule.MIN_SECONDS), (400.0, 400.0 * 19), (20.0, math.sqrt(40 * 10800))],
)
def test_auto_has_a_floor_and_a_ceiling(save_seconds: float, expected: float) -> None:
    assert interval_seconds(save_seconds) == pytest.approx(expected)


def test_before_the_first_save_auto_waits_a_quarter_of_a_minute() -> None:
    assert auto_steps(step_seconds=0.1, save_seconds=None) == 150
    assert auto_steps(step_seconds=60, save_seconds=None) == 1


@given(save_seconds=seconds, step_seconds=seconds)
def test_saving_takes_no_more_than_its_share(save_seconds: float, step_seconds: float) -> None:
    trained = auto_steps(step_seconds=step_seconds, save_seconds=save_seconds) * step_seconds

    assert save_seconds <= schedule.MAX_SAVING_SHARE * (trained + save_seconds) * (1 + 1e-9)


@given(save_seconds=seconds, step_seconds=seconds, factor=st.floats(min_value=1, max_value=100))
def test_a_slower_save_is_made_no_more_often(save_seconds: float, step_seconds: float, factor: float) -> None:
    slower = auto_steps(step_seconds=step_seconds, save_seconds=save_seconds * factor)

    assert slower >= auto_steps(step_seconds=step_seconds, save_seconds=save_seconds)
