"""What a run has learned of its places: outages, when it asks again, how long machines live; and the laws of both."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.core.hazards import LIFE_HAZARD, RETURN_HAZARD, age_at, cumulated, hazard_at, lived_hours
from launcher.core.policy.spot import Outage, blocks, learned_scale, outages, pause_hours
from launcher.core.prices.options import Rules
from launcher.core.runs.events import AttemptEnded, AttemptReleased, AttemptStarted, Event
from launcher.core.runs.state import RunState
from tests.builders import a_state, a_submit, after
from tests.core.test_conduct import SPOT_A, a_refusal, asked

RULES = Rules()
HOUR = 3600.0
KEY = SPOT_A.placement.offer.key


def refused(*times: float, reason: str = "no_capacity") -> RunState:
    """Seconds behind the submit, in whole tens."""
    events: dict[float, list[Event]] = {}
    for number, at in enumerate(times, start=1):
        events[at] = list(a_refusal(reason, attempt=number))
    state = a_state(a_submit(), *[event for at in times for event in events[at]], every_seconds=1)
    moved = zip(state.attempts, times, strict=True)
    return replace(state, attempts=tuple(replace(a, refused_at=after(at)) for a, at in moved))


def pause_seconds(state: RunState, *, doubling: bool = False) -> float:
    asked_again_at = blocks(state, RULES, doubling=doubling)[KEY]
    return (asked_again_at - outages(state)[KEY].seen_at).total_seconds()


def test_an_outage_lasts_from_the_first_refusal_to_the_next_grant() -> None:
    refusals = [*a_refusal("no_capacity"), *a_refusal("unavailable", attempt=2)]

    def known(*events: Event) -> dict[str, Outage]:
        return outages(a_state(a_submit(), *events, every_seconds=10))

    first = Outage(since=after(20), seen_at=after(40), attempt=2, is_quota=False, refusals=2)
    assert known(*refusals) == {KEY: first}
    granted = [asked(SPOT_A, attempt=3), AttemptStarted(attempt=3, started_at=after(50))]
    assert known(*refusals, *granted) == {}
    end = [AttemptEnded(attempt=3, outcome="preempted", detail="taken"), AttemptReleased(attempt=3)]
    taken = known(*refusals, *granted, *end)[KEY]
    assert taken == Outage(since=after(70), seen_at=after(70), attempt=3, is_quota=False, refusals=1)


def test_a_place_that_refused_is_asked_again_after_a_quarter_of_an_hour_or_so() -> None:
    assert 0.8 * RULES.retry_seconds <= pause_seconds(refused(10)) <= 1.2 * RULES.retry_seconds


def test_a_long_outage_is_asked_about_less_often_than_a_young_one() -> None:
    """A tenth of its age goes by."""
    assert pause_seconds(refused(0, 10 * HOUR)) >= 0.8 * HOUR
    assert pause_hours(0.25, 1.0) == 0.25
    assert pause_hours(0.25, 5.0) == 0.5
    assert pause_hours(0.25, 100.0) == 1.0  # and never more than an hour


def test_who_would_lose_a_machine_by_asking_believes_each_refusal_twice_as_long() -> None:
    """A second's outage, so that its age adds nothing."""
    once, thrice = (pause_seconds(refused(*range(1, n + 1)), doubling=True) for n in (1, 3))

    assert thrice >= 4 * once * 0.8 / 1.2


def test_a_quota_is_asked_about_every_few_hours() -> None:
    assert pause_seconds(refused(10, reason="quota")) >= 0.8 * RULES.quota_retry_seconds


@given(stated=st.floats(0.01, 10), expected=st.floats(0, 50), taken=st.integers(0, 20))
def test_what_a_place_shows_outweighs_what_it_states_only_by_and_by(stated: float, expected: float, taken: int) -> None:
    scale = learned_scale(stated, taken=taken, expected=expected)

    assert learned_scale(stated, taken=0, expected=0.0) == stated
    assert learned_scale(stated, taken=taken + 1, expected=expected) > scale
    assert learned_scale(stated, taken=taken, expected=expected + 1) < scale
    assert min(stated, stated * taken / max(expected, 1e-9)) <= scale * (1 + 1e-9)


@given(st.floats(0, 30), st.floats(0.01, 5))
@settings(max_examples=20)
def test_a_life_is_the_integral_of_its_survival(hours: float, scale: float) -> None:
    step = hours / 300
    slices = [math.exp(-scale * cumulated(LIFE_HAZARD, (i + 0.5) * step)) * step for i in range(300)]

    assert lived_hours(LIFE_HAZARD, scale, hours) == pytest.approx(sum(slices), rel=5e-3, abs=1e-9)
    assert lived_hours(LIFE_HAZARD, 0.0, hours) == hours


@given(st.floats(0, 50))
def test_the_age_of_a_cumulated_hazard_leads_back_to_it(age: float) -> None:
    assert age_at(RETURN_HAZARD, cumulated(RETURN_HAZARD, age)) == pytest.approx(age)
    assert hazard_at(RETURN_HAZARD, age) >= 0.05
