"""What the policy is told of a run: its pace, its places, and what they have shown."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.core.hazards import FRESH_PREEMPTIONS_PER_HOUR
from launcher.core.offers import Capacity
from launcher.core.policy.standing import SETTLED_STEPS, market, standing, step_seconds
from launcher.core.policy.view import View
from launcher.core.prices.options import Rules
from launcher.core.runs.events import (
    AttemptEnded,
    AttemptRefused,
    AttemptReleased,
    AttemptRequested,
    AttemptStarted,
    CheckpointCommitted,
    Event,
    Pace,
    TrainingResumed,
)
from launcher.core.runs.state import RunState
from tests.builders import a_placement, a_spec, a_state, a_submit, after, an_offer, an_option

PACE = Pace(
    step_seconds={"H100": 10.0, "A100-80GB": 20.0},
    setup_seconds=60.0,
    save_seconds=1.0,
    checkpoint_gb=1.0,
    source="declared",
)
HAZARD = {"preemptions_per_hour": FRESH_PREEMPTIONS_PER_HOUR, "interval_seconds": 600.0}
SPOT = an_option(a_placement(an_offer(zone="a")), **HAZARD)
OTHER = an_option(a_placement(an_offer(zone="b"), usd_per_hour="7"), **HAZARD)
ON_DEMAND = an_option(a_placement(an_offer(capacity=Capacity.ON_DEMAND), usd_per_hour="20"), interval_seconds=600.0)


def a_run(*events: Event, **submit: Any) -> RunState:
    return a_state(a_submit(a_spec(), pace=PACE, **submit), *events, every_seconds=600)


def lived(steps: int, measured: float, *, attempt: int = 1, end: str | None = None) -> list[Event]:
    """Asked for, granted and at work; `measured` seconds a step."""
    known: list[Event] = [
        AttemptRequested(attempt=attempt, placement=SPOT.placement, why=""),
        AttemptStarted(attempt=attempt, started_at=after(0)),
        TrainingResumed(attempt=attempt, step=0),
    ]
    ended = AttemptEnded(attempt=attempt, outcome="preempted", detail="", step=steps, step_seconds=measured)
    return [*known, ended, AttemptReleased(attempt=attempt)]


def seen_by_policy(state: RunState, *, at: float) -> Any:
    view = View(state=state, options=(SPOT, OTHER, ON_DEMAND), now=after(at), rules=Rules())
    return standing(view, market(view))


def test_before_an_attempt_has_settled_the_promised_pace_counts() -> None:
    assert step_seconds(a_run()) == PACE.step_seconds
    assert step_seconds(a_run(*lived(SETTLED_STEPS - 1, 13.0))) == PACE.step_seconds


def test_a_measured_pace_counts_for_all_types_in_proportion() -> None:
    assert step_seconds(a_run(*lived(SETTLED_STEPS, 12.0))) == {"H100": 12.0, "A100-80GB": 24.0}


def test_steps_behind_the_newest_checkpoint_are_still_to_be_done() -> None:
    saved = CheckpointCommitted(attempt=1, step=40, name="step-40-a1", bytes=10, seconds=1.0, segment=1)
    events = lived(0, 10.0)[:3]

    found = seen_by_policy(a_run(*events, saved), at=3000)

    assert found.steps == 960
    assert found.here.place.key == SPOT.placement.offer.key
    assert found.here.trains
    assert found.homes


def test_a_refusal_blocks_the_place_for_about_a_quarter_of_an_hour() -> None:
    asked = AttemptRequested(attempt=1, placement=OTHER.placement, why="")
    refused = AttemptRefused(attempt=1, reason="no_capacity", detail="none")

    found = seen_by_policy(a_run(asked, refused), at=1300).seen

    assert list(found) == [OTHER.placement.offer.key]
    known = found[OTHER.placement.offer.key]
    assert known.since == pytest.approx(1200 / 3600)
    assert 0.8 * 900 / 3600 <= known.again_at - known.since <= 1.2 * 900 / 3600


def test_a_place_that_takes_its_machines_soon_is_believed_to_go_on_so() -> None:
    """Forty minutes of a life, in which hardly a preemption was to be expected."""
    key = SPOT.placement.offer.key

    scale = seen_by_policy(a_run(*lived(10, 10.0)), at=3600).scales[key]

    assert scale == pytest.approx((2 + 1) / (2 + 0.2 * 0.32 + 0.3 * 0.25 + 0.21 / 6))


def test_a_deadline_that_nobody_gave_makes_waiting_cost_something() -> None:
    def wait_price(**fields: Any) -> float:
        view = View(state=a_run(**fields), options=(SPOT, ON_DEMAND), now=after(60), rules=Rules())
        return market(view).wait_price

    assert wait_price(deadline_assumed=False) == 0 < wait_price(deadline_assumed=True)


def test_a_trainer_that_saves_more_rarely_than_planned_is_believed_to_go_on_so() -> None:
    saves = [
        CheckpointCommitted(attempt=1, step=step, name=f"step-{step}-a1", bytes=10, seconds=1.0, segment=1)
        for step in (60, 260)
    ]
    begun = lived(300, 10.0)
    state = a_run(*begun[:3], saves[0])
    rare = a_run(*begun[:3], *saves)

    def interval_hours(state: RunState) -> list[float]:
        view = View(state=state, options=(SPOT, ON_DEMAND), now=after(3600), rules=Rules())
        return [place.interval_hours * 3600 for place in market(view).places]

    assert interval_hours(state) == pytest.approx([605.0, 605.0])
    assert interval_hours(rare) == pytest.approx([2005.0, 2005.0])


def test_a_place_whose_lease_the_run_has_had_is_known() -> None:
    leased = an_option(a_placement(an_offer(zone="a", lease_seconds=3600.0)), **HAZARD)
    begun = [
        AttemptRequested(attempt=1, placement=leased.placement, why=""),
        AttemptStarted(attempt=1, started_at=after(0)),
    ]

    found = [seen_by_policy(a_run(*events), at=3600).leased for events in (begun[:1], begun, lived(10, 10.0))]

    assert found == [frozenset(), frozenset({leased.placement.offer.key}), frozenset()]
