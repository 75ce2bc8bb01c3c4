"""What runs saw of spot places: spells and outages, and what they teach an estimate."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.core.estimates.sightings import Known, lately, seen
from launcher.core.hazards import LIFE_HAZARD, RETURN_HAZARD, cumulated
from launcher.core.offers import Placement
from launcher.core.runs.events import Event
from launcher.core.runs.state import RunState
from tests.builders import T0, a_spec, a_state, a_submit, after
from tests.core.lives import FIRM, HOUR, A, lived, refused

NOW = after(30 * HOUR)


def a_run(*events: Event, hours_apart: float = 1.0, **submit: Any) -> RunState:
    return a_state(a_submit(a_spec(), **submit), *events, every_seconds=hours_apart * HOUR)


def known(state: RunState, placement: Placement = A) -> tuple[Known, ...]:
    return seen(state.attempts, since=T0, now=NOW)[placement.offer.key].spells


def test_a_place_was_up_while_a_machine_lived_there() -> None:
    state = a_run(*lived(1, 0.5, 4.0, "stopped"))

    assert known(state) == (Known(0.5, 4.0, is_up=True),)


def test_a_place_was_down_from_a_preemption_until_it_granted_a_machine_again() -> None:
    state = a_run(*lived(1, 0.5, 4.0, "preempted"), *refused(2), *lived(3, 9.0, 12.0, "completed"))

    assert state.attempts[2].requested_at == after(8 * HOUR)
    assert known(state) == (Known(0.5, 4.0, is_up=True), Known(4.0, 8.0, is_up=False), Known(8.0, 12.0, is_up=True))


def test_refusals_in_a_row_are_one_outage_up_to_the_last_of_them() -> None:
    state = a_run(*refused(1), *refused(2), *refused(3))

    assert known(state) == (Known(2.0, 6.0, is_up=False),)


def test_capacity_that_stays_has_no_weather() -> None:
    assert seen(a_run(*lived(1, 0.5, 4.0, "completed", FIRM)).attempts, since=T0, now=NOW) == {}


def test_lives_and_outages_of_all_runs_teach_of_a_place() -> None:
    """Two lives of 3.5 and 4 hours, the first taken; an outage of four hours that ended."""
    first = a_run(*lived(1, 0.5, 4.0, "preempted"), *refused(2))
    second = a_run(*lived(1, 9.0, 12.0, "stopped"), hours_apart=8.0)

    learned = lately([first, second], NOW)[A.offer.key]

    assert second.attempts[0].requested_at == after(8 * HOUR)
    assert learned.is_up is None
    assert learned.lost == (1, pytest.approx(cumulated(LIFE_HAZARD, 3.5) + cumulated(LIFE_HAZARD, 4.0)))
    assert learned.found == (1, pytest.approx(cumulated(RETURN_HAZARD, 4.0)))


@pytest.mark.parametrize(("hours_ago", "is_up"), [(0.4, False), (0.6, None)])
def test_an_outage_is_believed_to_last_for_half_an_hour_behind_its_last_sight(
    hours_ago: float, is_up: bool | None
) -> None:
    state = a_run(*refused(1))

    learned = lately([state], after((2.0 + hours_ago) * HOUR))[A.offer.key]

    assert (learned.is_up, learned.age_hours) == (is_up, pytest.approx(hours_ago if is_up is False else 0.0))


def test_where_a_machine_lives_there_is_capacity() -> None:
    state = a_run(*lived(1, 0.5, 4.0, "stopped")[:3])

    learned = lately([state], after(5 * HOUR))[A.offer.key]

    assert (learned.is_up, learned.age_hours, learned.lost[0]) == (True, 4.5, 0)


def test_what_is_older_than_14_days_and_what_was_simulated_teach_nothing() -> None:
    state = a_run(*lived(1, 0.5, 4.0, "preempted"))

    assert A.offer.key in lately([state], after(14 * 24 * HOUR))
    assert lately([state], after((14 * 24 + 5) * HOUR)) == {}
    assert lately([a_run(*lived(1, 0.5, 4.0, "preempted"), simulated=True)], NOW) == {}
