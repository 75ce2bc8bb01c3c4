"""The expected time of a saved training is what a simulation finds, and its optimum is one."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.estimates.daly import best_interval_seconds, expected_hours

RATES = [0.02, 0.1, 0.3, 1.0]  # failures per hour
NUM_LIVES = 100_000


@pytest.mark.parametrize("failures_per_hour", RATES)
@pytest.mark.parametrize(("interval", "save", "durable", "restart"), [(900, 15, 15, 300), (120, 0.5, 60, 600)])
def test_the_exact_form_is_what_a_simulation_finds(
    failures_per_hour: float, interval: float, save: float, durable: float, restart: float
) -> None:
    """A save beside the training is durable behind its cost; that time counts as a part of the restart."""
    found = expected_hours(
        1.0,
        interval_hours=interval / 3600,
        save_hours=save / 3600,
        restart_hours=(restart + durable - save) / 3600,
        failures_per_hour=failures_per_hour,
    )

    assert found == pytest.approx(_simulated(failures_per_hour, interval, save, durable, restart), rel=0.005)


@pytest.mark.parametrize(("between_hours", "published_minutes"), [(24, 117), (6, 57), (0.25, 9.1)])
def test_the_optimum_is_the_published_one(between_hours: float, published_minutes: float) -> None:
    """Figures 3 to 5 of Daly 2006, for saves of 5 min."""
    assert best_interval_seconds(300, between_hours * 3600) / 60 == pytest.approx(published_minutes, abs=0.5)


@given(between=st.floats(100, 1e7), share=st.floats(1e-6, 0.5))
def test_the_optimum_is_within_one_percent_of_the_exact_forms(between: float, share: float) -> None:
    save = share * between
    best = best_interval_seconds(save, between)

    assert _slope(best * 0.99, save, between) < 0 < _slope(best * 1.01, save, between)


def test_without_failures_only_saves_take_time() -> None:
    found = expected_hours(10.0, interval_hours=0.5, save_hours=0.05, restart_hours=9.0, failures_per_hour=0.0)

    assert found == pytest.approx(11.0)


def test_what_nobody_lives_to_see_takes_for_ever() -> None:
    found = expected_hours(1.0, interval_hours=1.0, save_hours=0.0, restart_hours=1.0, failures_per_hour=1e4)

    assert found == math.inf


@pytest.mark.parametrize("wrong", [{"interval_hours": 0.0}, {"save_hours": -1.0}, {"failures_per_hour": -0.1}])
def test_impossible_numbers_are_refused(wrong: dict[str, float]) -> None:
    usual = {"interval_hours": 1.0, "save_hours": 0.1, "restart_hours": 0.1, "failures_per_hour": 0.1}

    with pytest.raises(ValueError, match="more than 0"):
        expected_hours(1.0, **usual | wrong)


def _slope(interval: float, save: float, between: float) -> float:
    """The sign of the derivative of (e^((τ+δ)/M) − 1)/τ by τ."""
    return (interval / between - 1) + math.exp(-(interval + save) / between)


def _simulated(failures_per_hour: float, interval: float, save: float, durable: float, restart: float) -> float:
    """Hours per hour of training that lasts, over lives that each begin with a restart and end without warning.

    In a life, save n begins at restart + n · interval + (n − 1) · save, and counts if it is durable before the end.
    Lives are drawn one from each even quantile, so that the noise is far below what is claimed.
    """
    luck = random.Random(20240416)
    shares = [(n + luck.random()) / NUM_LIVES for n in range(NUM_LIVES)]
    lives = [-math.log1p(-share) / failures_per_hour * 3600 for share in shares]
    cycle = interval + save
    kept = sum(max(0, math.floor((life - restart - interval - durable) / cycle) + 1) * interval for life in lives)
    return sum(lives) / kept
