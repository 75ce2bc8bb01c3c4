"""A save is due often enough to lose little, and seldom enough to cost little."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_hooks import schedule
from trainer_hooks.schedule import MAX_WRITING_SHARE, SECONDS_BETWEEN_PREEMPTIONS, auto_steps, interval_seconds, is_due

seconds = st.floats(min_value=1e-4, max_value=1e5)


def test_a_number_of_steps_is_that_number() -> None:
    due = [is_due(3, steps=n, step_seconds=1, lost_seconds=None, durable_seconds=None) for n in range(5)]

    assert due == [False] * 3 + [True] * 2


def test_without_a_step_nothing_is_due() -> None:
    assert not is_due("auto", steps=0, step_seconds=1e9, lost_seconds=1, durable_seconds=1)


def test_auto_is_the_formula_of_young_and_daly() -> None:
    assert interval_seconds(2.0, 2.0, seconds_between_preemptions=3600.0) == math.sqrt(2 * 2.0 * 3600.0)


@pytest.mark.parametrize(
    ("lost", "durable", "expected"),
    [
        (0.0, 0.0, schedule.MIN_SECONDS),
        (1e-6, 1e-6, schedule.MIN_SECONDS),
        (20.0, 20.0, math.sqrt(40 * 10800)),
        (200.0, 200.0, 200.0 * 19),  # a twentieth of the time, though Young would save more often
        (94.0, 94.0, 1786.0),
        (150.0, 60.0, 150.0 * 19),
        (0.0, 40.0, 80.0),  # free for the training, but half of the time is enough for the disk
        (0.0, 3600.0, 7200.0),  # above MAX_SECONDS: a second one cannot start before the first is written
    ],
)
def test_auto_is_held_between_its_bounds(lost: float, durable: float, expected: float) -> None:
    assert interval_seconds(lost, durable) == pytest.approx(expected)


def test_before_the_first_save_auto_waits_a_quarter_of_a_minute() -> None:
    assert auto_steps(step_seconds=0.1, lost_seconds=None, durable_seconds=None) == 150
    assert auto_steps(step_seconds=60, lost_seconds=None, durable_seconds=None) == 1


@given(lost=seconds, durable=seconds, step=seconds)
def test_saving_takes_no_more_than_its_share(lost: float, durable: float, step: float) -> None:
    trained = auto_steps(step_seconds=step, lost_seconds=lost, durable_seconds=durable) * step

    assert lost <= schedule.MAX_SAVING_SHARE * (trained + lost) * (1 + 1e-9)


@given(lost=seconds, durable=seconds, step=seconds)
def test_a_save_is_written_long_before_the_next_one_is_due(lost: float, durable: float, step: float) -> None:
    trained = auto_steps(step_seconds=step, lost_seconds=lost, durable_seconds=durable) * step

    assert durable <= MAX_WRITING_SHARE * trained * (1 + 1e-9)


@given(lost=seconds, durable=seconds)
def test_no_bound_but_those_of_the_shares_lets_more_than_half_an_hour_pass(lost: float, durable: float) -> None:
    found = interval_seconds(lost, durable)

    assert found >= schedule.MIN_SECONDS
    assert found <= schedule.MAX_SECONDS or found == pytest.approx(max(19 * lost, 2 * durable))


@given(lost=seconds, durable=seconds, step=seconds, more=st.floats(1, 100), later=st.floats(1, 100))
def test_a_dearer_save_is_made_no_more_often(
    lost: float, durable: float, step: float, more: float, later: float
) -> None:
    before = auto_steps(step_seconds=step, lost_seconds=lost, durable_seconds=durable)
    after = auto_steps(step_seconds=step, lost_seconds=lost * more, durable_seconds=durable * later)

    assert after >= before


@given(lost=seconds, durable=seconds, between=st.floats(600, 1e6), safer=st.floats(1, 100))
def test_on_safer_machines_saves_are_no_more_frequent(
    lost: float, durable: float, between: float, safer: float
) -> None:
    before = interval_seconds(lost, durable, seconds_between_preemptions=between)

    assert interval_seconds(lost, durable, seconds_between_preemptions=between * safer) >= before


@pytest.mark.parametrize("lost", [0.01, 0.1, 1.0, 5.0, 30.0, 90.0])
@pytest.mark.parametrize("durable", [0.0, 10.0, 300.0])
def test_no_other_allowed_interval_loses_noticeably_less(lost: float, durable: float) -> None:
    lives = _lives(20_000)
    shortest = max(schedule.MIN_SECONDS, 19 * lost, 2 * durable)
    tried = [shortest * (schedule.MAX_SECONDS / shortest) ** (n / 60) for n in range(61)]

    best = min(_lost_share(interval, lost, durable, lives) for interval in tried)
    chosen = _lost_share(interval_seconds(lost, durable), lost, durable, lives)

    assert chosen <= 1.05 * best


@pytest.mark.parametrize("times", [0.25, 4.0])
def test_the_simulation_tells_a_bad_interval_from_a_good_one(times: float) -> None:
    lives, good = _lives(20_000), interval_seconds(5.0, 10.0)

    assert _lost_share(times * good, 5.0, 10.0, lives) > 1.5 * _lost_share(good, 5.0, 10.0, lives)


def _lives(count: int) -> list[float]:
    luck = random.Random(20240416)
    return [luck.expovariate(1 / SECONDS_BETWEEN_PREEMPTIONS) for _ in range(count)]


def _lost_share(interval: float, lost: float, durable: float, lives: list[float]) -> float:
    """Share of the machines' time that was no training that lasted, when each is taken without warning.

    In a life, save n begins at n · interval + (n − 1) · lost, and counts if it is durable before the end.
    """
    cycle = interval + lost
    saves = [max(0, math.floor((life - interval - durable) / cycle) + 1) for life in lives]
    kept = sum(min(n * interval, life) for n, life in zip(saves, lives, strict=True))
    return 1 - kept / sum(lives)
