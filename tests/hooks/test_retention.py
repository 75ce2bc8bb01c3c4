"""What stays: enough to fall back on, the milestones and the best; and pruning often is pruning once."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_hooks.checkpoint.retention import Candidate, Retention, kept


def a_candidate(step: int, *, attempt: int = 1, **metrics: float) -> Candidate:
    return Candidate(name=f"step-{step}-a{attempt}", step=step, attempt=attempt, metrics=metrics)


def kept_steps(steps: list[int], **retention: Any) -> list[int]:
    found = kept([a_candidate(step) for step in steps], Retention(**retention))
    return [step for step in steps if f"step-{step}-a1" in found]


def test_the_last_ones_stay() -> None:
    assert kept_steps([10, 20, 30], keep=2) == [20, 30]
    assert kept_steps([30, 10, 20], keep=2) == [30, 20]
    assert kept_steps([10], keep=2) == [10]
    assert kept_steps([], keep=2) == []


def test_a_later_attempt_is_newer_whatever_its_step() -> None:
    candidates = [a_candidate(step) for step in (10, 20, 30)] + [a_candidate(15, attempt=2)]

    assert kept(candidates, Retention()) == {"step-30-a1", "step-15-a2"}


def test_the_first_at_or_after_each_multiple_stays() -> None:
    steps = [30, 60, 90, 120, 150, 180, 200, 230, 310, 320, 330]

    assert kept_steps(steps, keep=2, every_steps=100) == [120, 200, 310, 320, 330]


def test_an_untrained_state_is_no_milestone() -> None:
    assert kept_steps([0, 1, 50, 60], keep=2, every_steps=100) == [50, 60]


def test_a_milestone_of_an_older_attempt_makes_way_for_that_of_a_later_one() -> None:
    left_behind = [a_candidate(step) for step in (100, 200, 300)]
    resumed = [a_candidate(step, attempt=2) for step in (250, 310, 320, 330)]

    found = kept(left_behind + resumed, Retention(keep=2, every_steps=100))

    assert found == {"step-100-a1", "step-250-a2", "step-310-a2", "step-320-a2", "step-330-a2"}


@pytest.mark.parametrize(("mode", "best"), [("min", {20, 40}), ("max", {10, 30})])
def test_the_best_stay(mode: Any, best: set[int]) -> None:
    losses = {10: 5.0, 20: 1.0, 30: 4.0, 40: 2.0, 50: 3.0, 60: 3.0}
    candidates = [a_candidate(step, loss=loss) for step, loss in losses.items()]

    found = kept(candidates, Retention(keep=2, best="loss", best_mode=mode, best_keep=2))

    assert found == {f"step-{step}-a1" for step in best | {50, 60}}


def test_what_was_not_measured_is_never_the_best() -> None:
    candidates = [
        a_candidate(10, loss=math.nan),
        a_candidate(20),
        a_candidate(30, loss=math.inf),
        a_candidate(40, accuracy=-9.0),
        a_candidate(50, loss=7.0),
        a_candidate(60, loss=8.0),
        a_candidate(70, loss=9.0),
    ]

    assert kept(candidates, Retention(best="loss")) == {"step-50-a1", "step-60-a1", "step-70-a1"}


def test_of_equals_the_newest_is_the_best() -> None:
    candidates = [a_candidate(step, loss=1.0) for step in (10, 20)] + [a_candidate(step, loss=2.0) for step in (30, 40)]

    assert kept(candidates, Retention(best="loss")) == {"step-20-a1", "step-30-a1", "step-40-a1"}


@pytest.mark.parametrize(
    "wrong",
    [{"keep": 1}, {"keep": 0}, {"every_steps": 0}, {"every_steps": -5}, {"best_keep": 0}, {"best_mode": "most"}],
)
def test_a_wrong_setting_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is "):
        Retention(**wrong)


@st.composite
def histories(draw: st.DrawFn) -> list[Candidate]:
    """Attempts that each go on from a checkpoint of the attempt before."""
    found: list[Candidate] = []
    step = 0
    for attempt in range(1, draw(st.integers(1, 4)) + 1):
        own: list[Candidate] = []
        for gap in draw(st.lists(st.integers(1, 40), min_size=1, max_size=8)):
            step += gap
            own.append(a_candidate(step, attempt=attempt, loss=draw(st.integers(0, 5))))
        found += own
        step = draw(st.sampled_from(own)).step
    return found


retentions = st.builds(
    Retention,
    keep=st.integers(2, 4),
    every_steps=st.none() | st.integers(1, 60),
    best=st.none() | st.just("loss"),
    best_mode=st.sampled_from(["min", "max"]),
    best_keep=st.integers(1, 3),
)


@given(histories(), retentions)
def test_pruning_after_every_save_keeps_at_least_what_pruning_once_keeps(
    history: list[Candidate], retention: Retention
) -> None:
    there: list[Candidate] = []
    for one in history:
        there.append(one)
        names = kept(there, retention)
        assert {one.name for one in there[-retention.keep :]} <= names, "the newest, above all"
        there = [candidate for candidate in there if candidate.name in names]

    assert kept(history, retention) <= {one.name for one in there}


@given(histories(), retentions)
def test_what_stays_is_bounded(history: list[Candidate], retention: Retention) -> None:
    found = kept(history, retention)

    every = retention.every_steps
    milestones = max(one.step for one in history) // every if every else 0
    best = retention.best_keep if retention.best else 0
    assert len(found) <= retention.keep + milestones + best
    assert kept([one for one in history if one.name in found], retention) == found, "once more changes nothing"
