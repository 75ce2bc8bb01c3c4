"""Estimates beside what runs cost: how they are judged, and, where there are traces, how they do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.policy.calibration import (
    CELLS,
    HISTORY_DAYS,
    LONGEST_TICKS,
    Cell,
    Judged,
    _starts,
    bias,
    inside,
    judge,
    record,
)
from benchmarks.policy.tables import V100
from benchmarks.policy.traces import TICKS_PER_HOUR, NoTraces, traces_folder, zone

HISTORY_HOURS = HISTORY_DAYS * 24


def test_a_record_is_what_was_seen_before_the_start_and_nothing_behind_it() -> None:
    begin = HISTORY_HOURS * TICKS_PER_HOUR
    up = [True] * begin + [False] * 3 * TICKS_PER_HOUR + [True] * TICKS_PER_HOUR + [False] * 9
    seen = zone("us-east-1a", up)

    assert record(seen, begin) == (True, (HISTORY_HOURS,))
    assert record(seen, begin + 4 * TICKS_PER_HOUR) == (
        True,
        (HISTORY_HOURS - 4, HISTORY_HOURS - 1, HISTORY_HOURS),
    )


def test_no_start_of_the_first_half_sees_a_day_of_the_second() -> None:
    days = zone("us-east-1a", [True] * 45 * 24 * TICKS_PER_HOUR)

    first, second, both = (_starts([days], half, 7, HISTORY_DAYS) for half in ("first", "second", "both"))

    assert first[0] == both[0] == HISTORY_HOURS * TICKS_PER_HOUR
    assert first[-1] + LONGEST_TICKS <= second[0]
    assert second[-1] == both[-1] == days.ticks - LONGEST_TICKS


def test_bias_is_in_money_and_the_range_has_its_ends() -> None:
    judged = [Judged(9, 10, 11, 11), Judged(90, 120, 130, 89)]

    assert bias(judged) == pytest.approx(0.3)
    assert inside(judged) == 0.5


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return traces_folder(None)
    except NoTraces as absent:
        pytest.skip(str(absent))


@pytest.mark.system
@pytest.mark.parametrize(("cell", "off"), [(CELLS[1], 0.25), (CELLS[-4], 0.03)], ids=["one zone", "3 regions"])
def test_an_estimate_with_a_history_holds_on_real_traces(cell: Cell, off: float, folder: Path) -> None:
    """A small sample; `python -m benchmarks policy calibration` has the whole table."""
    (found,) = judge([replace(cell, num_windows=18)], folder, set_name=V100, half="both", processes=1)

    naive, _, known = found.by.values()
    assert inside(known) >= 0.7
    assert abs(bias(known)) < min(off, abs(bias(naive)))
