"""The weather that a run has had: what its ledger knows of places, and nothing against it where it is drawn."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from launcher.core.estimates.sightings import Known, Past, seen
from launcher.core.offers import Placement
from launcher.core.policy.market import Market
from launcher.core.replays.hindsight import actual_of, known_skies, of_run, step_factor
from launcher.core.replays.prospect import Prospect
from launcher.core.replays.replay import Question
from launcher.core.runs.events import (
    Event,
    RunFinished,
)
from launcher.core.runs.state import RunState, spent_usd
from tests.builders import T0, a_spec, a_state, a_submit, after
from tests.core.futures import a_market, an_option, an_outlook, on_demand, place_in
from tests.core.lives import FIRM, HOUR, A, B, lived, refused

STEPS = 3600  # ten hours


def a_run(*events: Event, hours_apart: float = 1.0, **submit: Any) -> RunState:
    submit = {"deadline_at": after(30 * HOUR), "deadline_assumed": False} | submit
    return a_state(a_submit(a_spec(steps=STEPS), **submit), *events, every_seconds=hours_apart * HOUR)


def a_market_of(*placements: Placement) -> Market:
    return a_market(*(an_option(p, preemptions_per_hour=0.32) for p in placements), on_demand(), steps=STEPS, hours=30)


def played(state: RunState, market: Market, count: int = 9) -> Any:
    prospect = Prospect(name=state.run_id, market=market, outlook=an_outlook(), deadline_assumed=False, simulated=False)
    return of_run(Question(count=count), state, prospect, now=after(30 * HOUR))


def pasts(state: RunState, now: datetime) -> dict[str, Past]:
    return seen(state.attempts, since=state.submitted_at, now=now)


def known(state: RunState, placement: Placement = A) -> tuple[Known, ...]:
    return pasts(state, after(30 * HOUR))[placement.offer.key].spells


def test_no_fill_contradicts_what_is_known() -> None:
    state = a_run(*lived(1, 0.5, 4.0, "preempted"), *refused(2), *lived(3, 9.0, 12.0, "stopped"))
    place = next(p for p in a_market_of(A).places if p.is_spot)
    past = pasts(state, after(30 * HOUR))

    begun, later = set(), set()
    for sky in known_skies(past, count=200, seed=1, factor=1.0, horizon_hours=120.0):
        weather = sky.weather()
        begun.add(weather.spell(place, 0.0)[0])
        ups = [weather.spell(place, at)[0] for at in (0.5, 3.99, 4.0, 7.99, 8.0, 11.99)]
        assert ups == [True, True, False, False, True, True]
        assert weather.spell(place, 3.0)[1] == pytest.approx(4.0)
        later.add(weather.spell(place, 30.0)[0])
    assert begun == later == {True, False}


def test_where_knowledge_ends_a_place_mostly_stays_as_it_was() -> None:
    state = a_run(*lived(1, 0.0, 8.0, "stopped"), *refused(2, B))
    past = pasts(state, after(30 * HOUR))
    market = a_market_of(A, B)
    a, b = (place_in(market, p.option) for p in market.places if p.is_spot)

    skies = [sky.weather() for sky in known_skies(past, count=300, seed=1, factor=1.0, horizon_hours=120.0)]

    assert sum(sky.spell(a, 8.5)[0] for sky in skies) / 300 > 0.9
    assert sum(sky.spell(b, 7.1)[0] for sky in skies) / 300 < 0.3  # refused at 7 h


def test_a_place_that_the_run_never_asked_for_comes_and_goes() -> None:
    past = pasts(a_run(*lived(1, 0.0, 8.0, "stopped")), after(30 * HOUR))
    b = next(p for p in a_market_of(A, B).places if p.key == B.offer.key)

    skies = [sky.weather() for sky in known_skies(past, count=100, seed=1, factor=1.0, horizon_hours=120.0)]

    assert 0.4 < sum(sky.spell(b, 5.0)[0] for sky in skies) / 100 < 0.9


def test_the_same_seed_fills_alike() -> None:
    state = a_run(*lived(1, 0.5, 4.0, "preempted"), *refused(2))

    assert played(state, a_market_of(A, B)) == played(state, a_market_of(A, B))


def test_a_run_that_lived_on_one_machine_would_have_cost_what_it_did() -> None:
    """Ten hours of steps with their saves, from the submit on; the machine is known to have lived so long."""
    market = a_market_of(A)
    ends = next(p for p in market.places if p.is_spot).finish_hours(STEPS) + 25 / 3600
    state = a_run(*lived(1, 0.0, ends, "completed", step=STEPS, step_seconds=10.0), hours_apart=3.0)

    found = played(state, market)

    ours = found.outcomes[0]
    assert float(ours.cost_usd.mean) == pytest.approx(float(found.actual.cost_usd), rel=0.01)
    assert ours.cost_usd.p10 == ours.cost_usd.p90
    assert ours.hours.mean == pytest.approx(ends, rel=0.01)


def test_a_preemption_that_happened_happens_to_every_policy_that_is_there() -> None:
    state = a_run(*lived(1, 0.0, 4.0, "preempted"), *lived(2, 6.0, 14.0, "completed"), hours_apart=0.01)

    found = played(state, a_market_of(A))

    for outcome in found.outcomes:
        if outcome.policy.name != "on-demand":
            assert next(m.at_hours for m in outcome.timeline.marks if m.kind == "preempted") == pytest.approx(4.0)


def test_steps_take_as_long_as_they_did() -> None:
    state = a_run(
        *lived(1, 0, 1, "preempted", step=100, step_seconds=12.0),
        *lived(2, 1, 2, "preempted", first=100, step=400, step_seconds=8.0),
    )

    assert step_factor(state) == pytest.approx((100 * 1.2 + 300 * 0.8) / 400)
    assert step_factor(a_run()) == 1.0


def test_what_it_really_cost_stands_beside_it() -> None:
    events = [
        *lived(1, 1.0, 4.0, "preempted"),
        *lived(2, 5.0, 9.0, "completed", FIRM, step=STEPS),
        RunFinished(outcome="succeeded", detail=""),
    ]
    state = a_run(*events)

    actual = actual_of(state, after(99 * HOUR))

    assert state.finished_at == T0 + timedelta(hours=11)
    assert actual.cost_usd == spent_usd(state, state.finished_at) == 3 * Decimal(6) + 4 * Decimal(20)
    assert (actual.is_finished, actual.is_late, actual.hours) == (True, False, 11.0)
    assert (actual.preemptions, actual.fallback_hours) == (1, 4.0)
    assert [(d.what, d.where, d.why) for d in actual.decisions] == [
        ("launch", "aws a", "cheapest spot"),
        ("launch", FIRM.offer.where, "cheapest spot"),
    ]
    assert actual_of(a_run(*events[:-1], deadline_at=after(HOUR)), after(99 * HOUR)).is_late
