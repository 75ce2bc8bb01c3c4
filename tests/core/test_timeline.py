"""A run's life as stretches of billed time: what they add up to, and what they say of lost work."""

from __future__ import annotations

from decimal import Decimal

import pytest

from launcher.core.events import (
    AttemptEnded,
    AttemptRefused,
    AttemptReleased,
    AttemptRequested,
    AttemptStarted,
    CheckpointCommitted,
    ProgressReported,
    RunFinished,
    TrainingResumed,
)
from launcher.core.state import RunState, spent_usd
from launcher.core.timeline import Timeline, timeline_of
from tests.builders import a_placement, a_state, a_submit, after, an_offer

SPOT, FIRM = a_placement(an_offer(zone="a")), a_placement(an_offer(zone="b"), usd_per_hour="12")


def a_preempted_run() -> RunState:
    """One minute an event: 600 s of training, 100 steps done of which 40 are kept; then done elsewhere."""
    return a_state(
        a_submit(),
        AttemptRequested(attempt=1, placement=SPOT, why="cheapest"),
        AttemptRefused(attempt=1, reason="no_capacity", detail="full"),
        AttemptRequested(attempt=2, placement=SPOT, why="again"),
        AttemptStarted(attempt=2, started_at=after(240)),
        TrainingResumed(attempt=2, step=0),
        CheckpointCommitted(attempt=2, step=40, name="step-40-a2", bytes=10**9, seconds=1, segment=2),
        ProgressReported(attempt=2, step=100, segment=3),
        AttemptEnded(attempt=2, outcome="preempted", detail="taken", gone_at=after(900)),
        AttemptReleased(attempt=2),
        AttemptRequested(attempt=3, placement=FIRM, why="due"),
        AttemptStarted(attempt=3, started_at=after(1000)),
        TrainingResumed(attempt=3, step=40),
        AttemptEnded(attempt=3, outcome="completed", detail="", step=1000),
        AttemptReleased(attempt=3),
        RunFinished(outcome="succeeded", detail=""),
        every_seconds=120,
    )


def stretches(timeline: Timeline) -> list[tuple[str, float, float]]:
    return [(s.doing, round(s.begin_hours * 3600), round(s.end_hours * 3600)) for s in timeline.stretches]


def test_each_second_of_the_bill_is_in_one_stretch() -> None:
    state = a_preempted_run()

    timeline = timeline_of(state, after(9999))

    assert stretches(timeline) == [
        ("setup", 240, 600),
        ("training", 600, 720),  # 40 of 100 steps, of 300 s until the machine was gone
        ("lost", 720, 900),
        ("setup", 1000, 1440),
        ("training", 1440, 1560),
        ("closing", 1560, 1680),
    ]
    billed = sum(s.end_hours - s.begin_hours for s in timeline.stretches)
    assert billed * 3600 == pytest.approx((900 - 240) + (1680 - 1000))


def test_refusals_and_preemptions_are_marked_where_and_when_they_were() -> None:
    timeline = timeline_of(a_preempted_run(), after(9999))

    assert [(m.kind, m.place, round(m.at_hours * 3600)) for m in timeline.marks] == [
        ("refused", SPOT.offer.where, 240),
        ("preempted", SPOT.offer.where, 900),
    ]
    assert timeline.places == (SPOT.offer.where, FIRM.offer.where)


def test_the_money_rises_to_the_bill_of_the_run() -> None:
    state = a_preempted_run()

    spend = timeline_of(state, after(9999)).spend

    assert [at for at, _ in spend] == sorted(at for at, _ in spend)
    assert [usd for _, usd in spend] == sorted(usd for _, usd in spend)
    assert spend[0] == (0.0, Decimal(0))
    assert spend[-1][1] == spent_usd(state, state.at)
    assert dict(spend)[900 / 3600] == Decimal(660) * 6 / 3600


def test_of_a_run_that_goes_on_nothing_is_lost_yet() -> None:
    state = a_state(
        a_submit(),
        AttemptRequested(attempt=1, placement=SPOT, why="cheapest"),
        AttemptStarted(attempt=1, started_at=after(60)),
        TrainingResumed(attempt=1, step=0),
        ProgressReported(attempt=1, step=100, segment=3),
        every_seconds=60,
    )

    timeline = timeline_of(state, after(600))

    assert stretches(timeline) == [("setup", 60, 180), ("training", 180, 600)]
    assert timeline.end_hours == pytest.approx(600 / 3600)
