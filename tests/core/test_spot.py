"""When giving up the fallback to ask for spot is expected to pay, and when a place is worth asking again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.core.conduct import Keep, Launch, next_action
from launcher.core.events import AttemptEnded, AttemptReleased, AttemptStarted, Event, TrainingResumed
from launcher.core.hazards import LIFE_HAZARD, RETURN_HAZARD, age_at, cumulated, hazard_at, lived_hours
from launcher.core.options import Option, Rules, changeover_seconds, closing_seconds, useful_seconds
from launcher.core.spot import Outage, outages, return_to
from tests.builders import a_placement, a_spec, a_state, a_submit, after, reading
from tests.core.test_conduct import ON_DEMAND, RESERVED, RULES, SPOT_A, SPOT_B, a_life, a_refusal, asked

HOUR = 3600.0
STEPS = 7200  # of 10 s: 20 hours
WORK_SECONDS = 60 + STEPS * 10 + 5
ROOM = changeover_seconds(RULES) + 2 * (closing_seconds(RULES, 5, 10) + useful_seconds(SPOT_A, RULES))


def on_the_fallback(*before: Event, option: Option = ON_DEMAND, attempt: int = 1) -> list[Event]:
    """After `before`, at work there; nothing is committed."""
    start = AttemptStarted(attempt=attempt, started_at=after(0))
    return [*before, asked(option, attempt=attempt), start, TrainingResumed(attempt=attempt, step=0)]


def decided(
    *events: Event,
    at: float = 60.0,
    options: Sequence[Option] = (SPOT_A, ON_DEMAND, RESERVED),
    slack: float = 10 * HOUR,
    rules: Rules = RULES,
    **submit: Any,
) -> Any:
    submit = {
        "approved_usd": "10000",
        "spec": a_spec(steps=STEPS),
        "deadline_at": after(at + WORK_SECONDS + slack),
    } | submit
    state = a_state(a_submit(submit.pop("spec"), **submit), *events, every_seconds=1)
    return next_action(state, options, now=after(at), rules=rules)


def goes_back(action: Any) -> bool:
    assert isinstance(action, Launch | Keep), action
    return isinstance(action, Launch) and action.relieves is not None


REFUSED = a_refusal("no_capacity")
BACK_ON = on_the_fallback(*REFUSED, attempt=2)


@pytest.mark.parametrize("option", [ON_DEMAND, RESERVED])
def test_a_run_on_its_fallback_goes_back_to_spot_that_may_be_there_again(option: Option) -> None:
    action = decided(*on_the_fallback(*REFUSED, option=option, attempt=2), at=2 * HOUR)

    assert goes_back(action)
    assert action.why.startswith("aws a at $6.00/h of spot is expected to save $")


def test_a_place_that_refused_is_not_asked_at_every_look() -> None:
    waits = [at for at in range(60, 7200, 60) if not goes_back(decided(*BACK_ON, at=at))]

    assert waits == list(range(60, waits[-1] + 60, 60))
    assert 0.8 * RULES.retry_seconds <= waits[-1] <= 3600


def test_a_long_outage_is_asked_about_less_often_than_a_young_one() -> None:
    def pause(outage_hours: float) -> float:
        outage = Outage(since=after(0), seen_at=after(outage_hours * HOUR), attempt=2, is_quota=False, refusals=2)
        state = a_state(a_submit(a_spec(steps=STEPS)))
        way = replace(return_to(state, ON_DEMAND, SPOT_A, steps=STEPS, now=after(0), rules=RULES), outage=outage)
        return next(s for s in range(0, 86400, 60) if way.is_worth_it(after(outage_hours * HOUR + s)))

    assert pause(0.1) < pause(1.5) < pause(9.0) < 6 * HOUR


def test_a_place_that_was_never_asked_may_well_have_capacity() -> None:
    assert goes_back(decided(*BACK_ON, options=(SPOT_A, SPOT_B, ON_DEMAND)))


STAYS: dict[str, dict[str, Any]] = {
    "the ladder has no spot": {"spec": a_spec(steps=STEPS, mode=["on_demand"])},
    "the ladder has spot above": {"spec": a_spec(steps=STEPS, mode=["on_demand", "spot"])},
    "spot is dearer": {"options": (replace(SPOT_A, placement=a_placement(usd_per_hour="21")), ON_DEMAND)},
    "spot is slower than it is cheap": {"options": (replace(SPOT_A, step_seconds=40.0), ON_DEMAND)},
    "the data is far from spot": {"options": (replace(SPOT_A, traffic=reading(Decimal(500))), ON_DEMAND)},
    "there is little left to do": {"spec": a_spec(steps=30)},
    "spot dies at once": {"options": (replace(SPOT_A, preemptions_per_hour=60.0), ON_DEMAND)},
    "its price is not known now": {"options": (SPOT_A, RESERVED)},
}


@pytest.mark.parametrize("changes", STAYS.values(), ids=STAYS.keys())
def test_a_run_stays_on_its_fallback_where(changes: dict[str, Any]) -> None:
    assert not goes_back(decided(*BACK_ON, **{"at": 2 * HOUR} | changes))


def test_paid_capacity_is_left_for_spot_only_where_it_is_ranked_by_what_was_committed() -> None:
    placement = RESERVED.placement
    paid = replace(
        RESERVED, placement=replace(placement, price=replace(placement.price, marginal_usd_per_hour=Decimal(0)))
    )
    events = on_the_fallback(*REFUSED, option=paid, attempt=2)

    assert goes_back(decided(*events, at=2 * HOUR, options=(SPOT_A, paid)))
    marginal = replace(RULES, rank_reserved_by="marginal")
    assert not goes_back(decided(*events, at=2 * HOUR, options=(SPOT_A, paid), rules=marginal))


@pytest.mark.parametrize(("spare", "leaves"), [(1, True), (-1, False)])
def test_the_slack_must_bear_the_move_twice(spare: float, leaves: bool) -> None:
    assert goes_back(decided(*BACK_ON, at=2 * HOUR, slack=ROOM + spare)) == leaves


@pytest.mark.parametrize(
    ("share", "spare_usd", "leaves"),
    [(1.0, 1.2, True), (1.0, 1.0, False), (1.0, -5.0, False), (0.79, 0.0, True)],
    ids=["bears a failed try", "does not", "may not bear staying", "does not bear staying by far"],
)
def test_the_money_must_bear_a_failed_try(share: float, spare_usd: float, leaves: bool) -> None:
    """20 h at $20/h are left to do; a save, and starts of a minute here and there are worth $1.15."""
    spent, stay = 20 * 2.0, 20 * 20.0

    action = decided(*BACK_ON, at=2 * HOUR, approved_usd=f"{spent + share * stay + spare_usd:.2f}")

    assert goes_back(action) == leaves


def test_what_is_expected_counts_both_outcomes_of_the_try() -> None:
    """Spot that is never taken, 20 hours of work, a chance of 0.64: by hand."""
    steady = replace(SPOT_A, preemptions_per_hour=0.0, traffic=reading(Decimal(3)))
    here = replace(ON_DEMAND, setup_seconds=360.0)
    closing = 20 * closing_seconds(RULES, 5, 10) / HOUR

    way = return_to(a_state(), here, steady, steps=STEPS, now=after(0), rules=RULES)

    granted = (20 - 6) * 20 - 6 / 60 - 3
    assert way.expected_usd == pytest.approx(0.64 * granted - 0.36 * 20 * 0.1 - closing)
    assert way.failed_usd == pytest.approx(20 * 0.1 + closing)
    assert float(way.risked_usd) == pytest.approx(20 * 0.1 + 6 / 60 + 3 + closing)


def test_a_machine_that_does_not_train_yet_is_not_given_up() -> None:
    assert decided(*BACK_ON[:-1], at=2 * HOUR) == Keep()


def preempted_at_once(times: int) -> list[Event]:
    """Lives of five minutes in zone a."""
    events: list[Event] = []
    for n in range(1, times + 1):
        events += [asked(SPOT_A, attempt=n), AttemptStarted(attempt=n, started_at=after(-300 * (n - 1)))]
        end = AttemptEnded(attempt=n, outcome="preempted", detail="taken", gone_at=after(-300 * (n - 1) + 300))
        events += [end, AttemptReleased(attempt=n)]
    return events


def test_a_place_that_keeps_taking_its_machines_loses_its_credit() -> None:
    def expected(times: int) -> float:
        state = a_state(a_submit(a_spec(steps=STEPS)), *preempted_at_once(times), every_seconds=1)
        return return_to(state, ON_DEMAND, SPOT_A, steps=STEPS, now=after(20 * HOUR), rules=RULES).expected_usd

    assert expected(0) > expected(1) > expected(3) > expected(10)
    assert expected(10) < 0.3 * expected(0)


def test_an_outage_lasts_from_the_first_refusal_to_the_next_grant() -> None:
    refusals = [*a_refusal("no_capacity"), *a_refusal("unavailable", attempt=2)]

    def known(*events: Event) -> dict[str, Outage]:
        return outages(a_state(a_submit(), *events, every_seconds=10))

    key = SPOT_A.placement.offer.key
    first = Outage(since=after(20), seen_at=after(40), attempt=2, is_quota=False, refusals=2)
    assert known(*refusals) == {key: first}
    assert known(*refusals, asked(SPOT_A, attempt=3), AttemptStarted(attempt=3, started_at=after(50))) == {}
    taken = known(*refusals, *a_life("preempted", attempt=3))[key]
    assert taken == Outage(since=after(70), seen_at=after(70), attempt=3, is_quota=False, refusals=1)


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0, 100))
def test_the_chance_of_capacity_grows_with_the_time_since_a_refusal(age: float, first: float, more: float) -> None:
    seen = after(age * HOUR)
    outage = Outage(since=after(0), seen_at=seen, attempt=1, is_quota=False, refusals=1)

    early, late = (outage.chance(seen + timedelta(hours=h)) for h in (first, first + more))

    assert 0 <= early <= late <= 0.64


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
    assert hazard_at(RETURN_HAZARD, age) >= 0.13
