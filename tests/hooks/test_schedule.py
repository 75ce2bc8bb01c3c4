"""A save is due often enough to lose little, and seldom enough to cost little."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_hooks import schedule
from trainer_hooks.schedule import (
    MAX_WRITING_SHARE,
    SaveCost,
    Stakes,
    auto_steps,
    interval_seconds,
    is_due,
    least_loss_seconds,
)

seconds = st.floats(min_value=1e-4, max_value=1e5)
UNKNOWN = Stakes()


def a_cost(lost: float, durable: float, safe: float | None = None) -> SaveCost:
    return SaveCost(lost_seconds=lost, durable_seconds=durable, safe_seconds=durable if safe is None else safe)


def every(between: float) -> Stakes:
    return Stakes(seconds_between_interruptions=between)


def test_a_number_of_steps_is_that_number() -> None:
    due = [is_due(3, steps=n, step_seconds=1, cost=None, stakes=UNKNOWN) for n in range(5)]

    assert due == [False] * 3 + [True] * 2


def test_without_a_step_nothing_is_due() -> None:
    assert not is_due("auto", steps=0, step_seconds=1e9, cost=a_cost(1, 1), stakes=Stakes(max_loss_seconds=1e-3))


def test_auto_is_dalys_optimum_and_nearly_youngs() -> None:
    found = interval_seconds(a_cost(2.0, 2.0), every(3600.0))

    assert found == pytest.approx(120 * (1 + 1 / 180 + 1 / 32400) - 2)  # √(δ/2M) is a sixtieth
    assert found == pytest.approx(math.sqrt(2 * 2.0 * 3600.0) - 2.0 * 2 / 3, rel=1e-3)


def test_auto_counts_a_save_by_the_training_that_it_costs_and_not_by_how_long_it_is_written() -> None:
    beside, blocking = (interval_seconds(a_cost(lost, 60.0), every(36_000.0)) for lost in (0.5, 60.0))

    assert beside == pytest.approx(math.sqrt(2 * 0.5 * 36_000), rel=0.01)
    assert blocking == pytest.approx(math.sqrt(2 * 60 * 36_000), rel=0.03)


def test_where_machines_only_break_auto_saves_seldom_but_at_least_each_half_hour() -> None:
    month, never = every(30 * 86400.0), every(math.inf)

    assert interval_seconds(a_cost(0.05, 5.0), month) == pytest.approx(509, rel=0.01)
    assert [interval_seconds(a_cost(2.0, 5.0), rate) for rate in (month, never)] == [schedule.MAX_SECONDS] * 2


@pytest.mark.parametrize(
    ("lost", "durable", "expected"),
    [
        (0.0, 0.0, schedule.MIN_SECONDS),
        (1e-6, 1e-6, schedule.MIN_SECONDS),
        (20.0, 20.0, 644.0),
        (210.0, 210.0, 1991.0),  # above MAX_SECONDS: saves each half hour would cost more than a hundredth
        (600.0, 600.0, 600.0 * 9),  # a tenth of the time, though Daly would save more often
        (600.0, 60.0, 600.0 * 9),
        (0.0, 40.0, 80.0),  # free for the training, but half of the time is enough for the disk
        (0.0, 3600.0, 7200.0),  # above MAX_SECONDS: a second one cannot start before the first is written
    ],
)
def test_auto_is_held_between_its_bounds(lost: float, durable: float, expected: float) -> None:
    assert interval_seconds(a_cost(lost, durable), UNKNOWN) == pytest.approx(expected, rel=1e-3)


def test_before_the_first_save_auto_waits_a_quarter_of_a_minute() -> None:
    assert auto_steps(step_seconds=0.1, cost=None, stakes=UNKNOWN) == 150
    assert auto_steps(step_seconds=60, cost=None, stakes=UNKNOWN) == 1


@given(lost=seconds, durable=seconds, step=seconds)
def test_saving_takes_no_more_than_its_share(lost: float, durable: float, step: float) -> None:
    trained = auto_steps(step_seconds=step, cost=a_cost(lost, durable), stakes=UNKNOWN) * step

    assert lost <= schedule.MAX_SAVING_SHARE * (trained + lost) * (1 + 1e-9)


@given(lost=seconds, durable=seconds, step=seconds)
def test_a_save_is_written_long_before_the_next_one_is_due(lost: float, durable: float, step: float) -> None:
    trained = auto_steps(step_seconds=step, cost=a_cost(lost, durable), stakes=UNKNOWN) * step

    assert durable <= MAX_WRITING_SHARE * trained * (1 + 1e-9)


@given(lost=seconds, durable=seconds)
def test_more_than_half_an_hour_passes_only_where_saves_are_dear_or_slow(lost: float, durable: float) -> None:
    found = interval_seconds(a_cost(lost, durable), UNKNOWN)

    assert found >= schedule.MIN_SECONDS
    assert found <= schedule.MAX_SECONDS or lost > 0.01 * schedule.MAX_SECONDS or found == pytest.approx(2 * durable)


@given(lost=seconds, durable=seconds, step=seconds, more=st.floats(1, 100), later=st.floats(1, 100))
def test_a_dearer_save_is_made_no_more_often(
    lost: float, durable: float, step: float, more: float, later: float
) -> None:
    before = auto_steps(step_seconds=step, cost=a_cost(lost, durable), stakes=UNKNOWN)
    after = auto_steps(step_seconds=step, cost=a_cost(lost * more, durable * later), stakes=UNKNOWN)

    assert after >= before


@given(lost=seconds, durable=seconds, between=st.floats(600, 1e6), safer=st.floats(1, 100))
def test_on_safer_machines_saves_are_no_more_frequent(
    lost: float, durable: float, between: float, safer: float
) -> None:
    before = interval_seconds(a_cost(lost, durable), every(between))

    assert interval_seconds(a_cost(lost, durable), every(between * safer)) >= before * (1 - 1e-12)


@pytest.mark.parametrize("lost", [0.01, 0.1, 1.0, 5.0, 30.0, 90.0])
@pytest.mark.parametrize("durable", [0.0, 10.0, 300.0])
@pytest.mark.parametrize("hours", [1.0, 3.0, 12.0])
def test_no_other_allowed_interval_loses_noticeably_less(lost: float, durable: float, hours: float) -> None:
    lives = _lives(10_000, hours)
    shortest = max(schedule.MIN_SECONDS, 9 * lost, 2 * durable)
    tried = [shortest * (schedule.MAX_SECONDS / shortest) ** (n / 30) for n in range(31)]

    best = min(_lost_share(interval, lost, durable, lives) for interval in tried)
    chosen = _lost_share(interval_seconds(a_cost(lost, durable), every(hours * 3600)), lost, durable, lives)

    assert chosen <= 1.05 * best


@pytest.mark.parametrize("times", [0.25, 4.0])
def test_the_simulation_tells_a_bad_interval_from_a_good_one(times: float) -> None:
    lives, good = _lives(20_000, 3.0), interval_seconds(a_cost(5.0, 10.0), UNKNOWN)

    assert _lost_share(times * good, 5.0, 10.0, lives) > 1.5 * _lost_share(good, 5.0, 10.0, lives)


@given(lost=seconds, later=st.floats(1, 100), step=seconds, covered=st.floats(1, 1e5), steps=st.integers(1, 10**6))
def test_no_more_is_lost_than_the_money_covers_or_than_saves_let_one_keep(
    lost: float, later: float, step: float, covered: float, steps: int
) -> None:
    """Of `n` steps a save is due, or one more would still be covered."""
    cost, stakes = a_cost(lost, lost, lost * later), Stakes(max_loss_seconds=covered)
    may_be_lost = (steps + 1) * step + cost.safe_seconds

    is_saved = is_due(10**9, steps=steps, step_seconds=step, cost=cost, stakes=stakes)

    least = least_loss_seconds(step_seconds=step, cost=cost)
    assert is_saved or may_be_lost <= max(covered, least + step) * (1 + 1e-9)


@given(lost=seconds, durable=seconds, step=seconds, covered=st.floats(1, 1e5), steps=st.integers(1, 10**6))
def test_a_limit_of_money_makes_saves_no_more_frequent_than_the_shares_allow(
    lost: float, durable: float, step: float, covered: float, steps: int
) -> None:
    cost, trained = a_cost(lost, max(lost, durable)), steps * step

    if is_due("auto", steps=steps, step_seconds=step, cost=cost, stakes=Stakes(max_loss_seconds=covered)):
        assert lost <= schedule.MAX_SAVING_SHARE * (trained + lost) * (1 + 1e-9)
        assert cost.safe_seconds <= MAX_WRITING_SHARE * trained * (1 + 1e-9)


def test_the_limit_holds_over_a_number_of_steps_and_over_auto_and_before_the_first_save() -> None:
    stakes, cost = Stakes(max_loss_seconds=100.0), a_cost(0.1, 10.0, 40.0)

    def first_due(wanted: schedule.Every, known: SaveCost | None) -> int:
        return next(n for n in range(2000) if is_due(wanted, steps=n, step_seconds=1.0, cost=known, stakes=stakes))

    assert first_due(1000, cost) == 80  # writing takes half of the time at most; 100 s are covered up to 60
    assert first_due(1000, a_cost(0.1, 10.0, 20.0)) == 80  # 100 s, less the 20 until it is safe
    assert first_due("auto", a_cost(5.0, 10.0, 10.0)) == 90
    assert first_due(30, a_cost(0.1, 10.0, 20.0)) == 30
    assert first_due(1000, None) == 100


def test_the_least_loss_is_an_interval_and_what_is_not_safe_yet() -> None:
    assert least_loss_seconds(step_seconds=1.0, cost=a_cost(0.1, 10.0, 40.0)) == 120.0
    assert least_loss_seconds(step_seconds=600.0, cost=a_cost(0.1, 10.0, 40.0)) == 640.0


def _lives(count: int, mean_hours: float) -> list[float]:
    luck = random.Random(20240416)
    return [luck.expovariate(1 / (mean_hours * 3600)) for _ in range(count)]


def _lost_share(interval: float, lost: float, durable: float, lives: list[float]) -> float:
    """Share of the machines' time that was no training that lasted, when each is taken without warning.

    In a life, save n begins at n · interval + (n − 1) · lost, and counts if it is durable before the end.
    """
    cycle = interval + lost
    saves = [max(0, math.floor((life - interval - durable) / cycle) + 1) for life in lives]
    kept = sum(min(n * interval, life) for n, life in zip(saves, lives, strict=True))
    return 1 - kept / sum(lives)
