"""A run's life as stretches of billed time: what they add up to, and what they say of lost work."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest

from launcher.core.estimates.rollout import Future
from launcher.core.policy.diary import Diary, Stay
from launcher.core.replays.timeline import Timeline, timeline_of, timeline_of_future
from launcher.core.runs.events import (
    AttemptEnded,
    AttemptRefused,
    AttemptReleased,
    AttemptRequested,
    AttemptStarted,
    CheckpointCommitted,
    EndRequested,
    HandedOver,
    ProgressReported,
    RunFinished,
    TrainingResumed,
)
from launcher.core.runs.state import RunState, spent_usd
from tests.builders import a_placement, a_state, a_submit, after, an_offer
from tests.core.futures import a_market, on_demand, spot

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


def test_two_machines_side_by_side_are_two_stretches_and_their_money_adds_up() -> None:
    """At $6/h from 60 to 540, and beside it at $12/h from 240 on; the second one trains from 600 on."""
    state = a_state(
        a_submit(),
        AttemptRequested(attempt=1, placement=SPOT, why="cheapest"),
        AttemptStarted(attempt=1, started_at=after(60)),
        TrainingResumed(attempt=1, step=0),
        AttemptRequested(attempt=2, placement=FIRM, why="due", relieves=1),
        AttemptStarted(attempt=2, started_at=after(240)),
        ProgressReported(attempt=1, step=50, segment=3),
        CheckpointCommitted(attempt=1, step=50, name="step-50-a1", bytes=10**9, seconds=1, segment=4),
        AttemptEnded(attempt=1, outcome="stopped", detail="", step=50, has_exited=True),
        AttemptReleased(attempt=1),
        HandedOver(attempt=2),
        TrainingResumed(attempt=2, step=50),
        every_seconds=60,
    )

    timeline = timeline_of(state, after(900))

    assert stretches(timeline) == [
        ("setup", 60, 180),
        ("training", 180, 480),
        ("closing", 480, 540),
        ("setup", 240, 660),
        ("training", 660, 900),
    ]
    spend = [(round(at * 3600), usd) for at, usd in timeline.spend]
    assert spend == [(0, 0), *[(at, pytest.approx(usd)) for at, usd in SIDE_BY_SIDE]]


SIDE_BY_SIDE = [
    (60, Decimal(0)),
    (240, Decimal("0.3")),
    (540, Decimal("0.3") + Decimal("1.5")),
    (900, Decimal("0.3") + Decimal("1.5") + Decimal("1.2")),
]


def test_waits_are_times_without_any_machine() -> None:
    timeline = timeline_of(a_preempted_run(), after(9999))

    assert [(round(3600 * a), round(3600 * b)) for a, b in timeline.waits] == [(0, 240), (900, 1000)]
    assert timeline.total_usd == timeline.spend[-1][1]


HANDED_OVER = (
    AttemptRequested(attempt=1, placement=SPOT, why="cheapest"),
    AttemptStarted(attempt=1, started_at=after(0)),
    TrainingResumed(attempt=1, step=0),
    AttemptRequested(attempt=2, placement=FIRM, why="due", relieves=1),
    AttemptStarted(attempt=2, started_at=after(240)),
    EndRequested(attempt=1, cause="handed_over", why="the other one is ready"),
    AttemptEnded(attempt=1, outcome="stopped", detail="", step=50, has_exited=True),
)


def test_a_machine_that_gave_its_turn_away_was_not_preempted() -> None:
    timeline = timeline_of(a_state(a_submit(), *HANDED_OVER, every_seconds=60), after(900))

    assert [(m.kind, m.machine, round(3600 * m.at_hours)) for m in timeline.marks] == [("handed over", 1, 420)]
    assert timeline.waits == ()


def test_a_future_is_told_by_its_machines() -> None:
    """An hour at $6, taken with 6 min of steps; two hours at $20, the last 3 min of them billed behind the training."""
    market = a_market(spot("a"), on_demand())
    cheap, firm = (next(p for p in market.places if p.is_spot is is_spot) for is_spot in (True, False))
    lives = (
        Stay(
            place=cheap,
            since=1.0,
            ready_at=1.1,
            until=2.0,
            closing_hours=0.0,
            lost_hours=0.1,
            ending="preempted",
            usd=6.0,
        ),
        Stay(
            place=firm,
            since=3.0,
            ready_at=3.1,
            until=5.0,
            closing_hours=0.05,
            lost_hours=0.0,
            ending="finished",
            usd=40.0,
        ),
    )
    future = Future(hours=5.0)
    future.usd["steps"], future.usd["storage"] = 46.0, 1.0

    timeline = timeline_of_future("ours", future, Diary(stays=[*lives], refusals=[(0.5, cheap)]), deadline_hours=9.0)

    assert [(s.machine, s.doing, round(s.begin_hours, 2), round(s.end_hours, 2)) for s in timeline.stretches] == [
        (1, "setup", 1.0, 1.1),
        (1, "training", 1.1, 1.9),
        (1, "lost", 1.9, 2.0),
        (2, "setup", 3.0, 3.1),
        (2, "training", 3.1, 4.95),
        (2, "closing", 4.95, 5.0),
    ]
    assert [(m.kind, m.machine, m.at_hours) for m in timeline.marks] == [("refused", None, 0.5), ("preempted", 1, 2.0)]
    assert timeline.waits == ((0.0, 1.0), (2.0, 3.0))
    assert dict(timeline.spend) == {
        0.0: Decimal("0.00"),
        1.0: Decimal("0.20"),
        2.0: Decimal("6.40"),
        3.0: Decimal("6.60"),
        5.0: Decimal("47.00"),
    }
    assert (timeline.end_hours, timeline.deadline_hours) == (5.0, 9.0)


def test_a_future_without_an_end_is_shown_up_to_its_last_machine() -> None:
    market = a_market(spot("a"), on_demand())
    stay = Stay(
        place=market.places[0],
        since=1.0,
        ready_at=1.1,
        until=2.0,
        closing_hours=0.0,
        lost_hours=0.0,
        ending="preempted",
        usd=6.0,
    )

    timeline = timeline_of_future("x", Future(hours=math.inf), Diary(stays=[stay]), deadline_hours=math.inf)

    assert timeline.end_hours == 2.0
