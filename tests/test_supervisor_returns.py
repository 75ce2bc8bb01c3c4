"""Moving from spot to the fallback and back, a machine beside the other, in markets whose capacity comes and goes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from itertools import accumulate, pairwise
from random import Random

import pytest

from launcher.core.offers import Capacity
from launcher.core.prices.options import Rules, changeover_seconds
from launcher.core.runs.events import AttemptRequested
from launcher.core.runs.machine import LaunchRequest
from launcher.core.runs.state import RunState
from tests.builders import T0, a_placement, a_spec, a_submit, an_offer, an_option
from tests.machines import Fate, Work
from tests.sim import Remembering, Sim, a_sim
from tests.test_supervisor_markets import trained_at

HOUR = 3600.0
FOREVER = 1e9
STEPS = 600  # of 60 s: 10 hours
WORK = Work(steps=STEPS, step_seconds=60, setup_seconds=240, save_seconds=15, every_steps=15)
PACE = {"step_seconds": 60.0, "setup_seconds": 240.0, "save_seconds": 15.0, "interval_seconds": 900.0}
SPOT = an_option(a_placement(an_offer(zone="a"), usd_per_hour="6"), **PACE)
SPOT_B = an_option(a_placement(an_offer(zone="b"), usd_per_hour="7"), **PACE)
ON_DEMAND = an_option(a_placement(an_offer(zone="a", capacity=Capacity.ON_DEMAND), usd_per_hour="20"), **PACE)
RULES = Rules(poll_seconds=120.0, fallback_delay_seconds=600.0)

SPOT_FIRST = (Capacity.SPOT, Capacity.ON_DEMAND)

Spells = Sequence[tuple[float, float]]
"""When a place has capacity: (since, until) in seconds behind T0."""


def some_spells(rng: Random) -> Spells:
    """Of 1 minute to 3 hours, and as long a wait before each."""
    ends = list(accumulate(rng.uniform(60, 10_800) for _ in range(16)))
    return list(pairwise(ends))[rng.randint(0, 1) :: 2]


def a_market(
    *places: Spells,
    hours_to_deadline: float,
    approved_usd: str = "10000",
    start_seconds: float = RULES.fallback_delay_seconds,
    mode: Sequence[Capacity] = SPOT_FIRST,
) -> Sim:
    """Spot in zones a, b … as `places` say; the fallback always has capacity, and is billed while it starts."""
    options = [SPOT, SPOT_B][: len(places)]
    capacity = {o.placement.offer.key: spells for o, spells in zip(options, places, strict=True)}

    def fate(request: LaunchRequest) -> Fate:
        offer = request.placement.offer
        if offer.capacity is not Capacity.SPOT:
            return Fate(start_seconds=start_seconds)
        now = (sim.clock.now() - T0).total_seconds()
        left = next((until - now for since, until in capacity[offer.key] if since <= now < until), None)
        return Fate(refusal="no_capacity") if left is None else Fate(life_seconds=left, notice_seconds=120.0)

    submit = a_submit(
        a_spec(workload={"steps": STEPS, "step_seconds": {"H100": 60.0}}, mode=list(mode)),
        deadline_at=T0 + timedelta(hours=hours_to_deadline),
        approved_usd=approved_usd,
    )
    sim = a_sim(places=[*options, ON_DEMAND], submit=submit, fate=fate, rules=RULES, work=WORK)
    return sim


def supervised(sim: Sim) -> RunState:
    return sim.supervisor(kind=Remembering).supervise()


def bill(sim: Sim) -> Decimal:
    assert supervised(sim).outcome == "succeeded"
    return sim.backend.billed_usd(sim.clock.now())


def tries(sim: Sim) -> int:
    """Spot machines that were asked for beside the fallback, and granted."""
    beside = [a for a in sim.state().attempts if a.relieves and a.placement.offer.capacity is Capacity.SPOT]
    return sum(a.started_at is not None for a in beside)


ON_DEMAND_USD = 20 * ON_DEMAND.seconds_to_finish(STEPS) / 3600


def test_a_run_goes_back_to_spot_when_spot_is_back() -> None:
    """Spot is away for three hours, and the slack too small to wait for all of them."""
    away = [(0, HOUR), (4 * HOUR, FOREVER)]
    sim, stays = (a_market(away, hours_to_deadline=13.0, mode=mode) for mode in (SPOT_FIRST, SPOT_FIRST[::-1]))

    usd = bill(sim)

    assert float(usd) < 0.45 * ON_DEMAND_USD < 0.45 * float(bill(stays))
    assert tries(sim) == 1
    assert sum(a.started_at is not None for a in sim.state().attempts) == 3


@pytest.mark.parametrize("hours_to_deadline", [12.5, 15.0])
def test_a_market_without_spot_is_asked_for_nothing(hours_to_deadline: float) -> None:
    """A refusal costs no step: the bill is that of a run that never asks."""
    sim, stays = (
        a_market([], [], hours_to_deadline=hours_to_deadline, mode=mode) for mode in (SPOT_FIRST, SPOT_FIRST[::-1])
    )

    usd = bill(sim)

    assert tries(sim) == 0
    assert len(sim.events(AttemptRequested)) > 10
    assert usd == bill(stays)


def test_a_market_that_soon_takes_every_machine_is_not_run_after() -> None:
    """Five minutes of spot in every half hour: hardly more than a start takes."""
    short = [(i * HOUR / 2, i * HOUR / 2 + 300) for i in range(60)]

    sim = a_market(short, short, hours_to_deadline=15.0)

    assert float(bill(sim)) < 1.15 * ON_DEMAND_USD
    assert tries(sim) <= 5


def test_going_back_never_costs_the_deadline() -> None:
    """One that an immediate fallback would keep, however long the fallback takes to run within the stated delay."""
    least = ON_DEMAND.seconds_to_finish(STEPS) + changeover_seconds(RULES)
    went_back = 0
    for seed in range(15):
        rng = Random(seed)
        hours = least / HOUR + rng.uniform(0, 5)
        sim = a_market(some_spells(rng), some_spells(rng), hours_to_deadline=hours)

        state = supervised(sim)

        assert state.outcome == "succeeded", seed
        assert trained_at(sim) <= state.submitted.deadline_at, seed  # type: ignore[operator]  # an instant
        assert tries(sim) <= 8, seed
        assert sim.backend.running() == []
        went_back += tries(sim) > 0
    assert went_back >= 3


def test_going_back_never_spends_more_than_was_approved() -> None:
    went_back = 0
    for seed in range(15):
        rng = Random(seed)
        approved = rng.randint(20, 250)
        hours = rng.uniform(12, 15)
        sim = a_market(some_spells(rng), some_spells(rng), hours_to_deadline=hours, approved_usd=str(approved))

        supervised(sim)

        one_poll = Decimal(20) * Decimal(str(RULES.poll_seconds)) / 3600
        assert sim.backend.billed_usd(sim.clock.now()) <= approved + one_poll, seed
        went_back += tries(sim) > 0
    assert went_back >= 3


def test_a_run_that_could_be_finished_on_the_fallback_still_is_after_a_failed_try() -> None:
    """Whatever amount pays for the whole run on demand: a try for spot never makes it run out of money."""
    for extra in (2, 5, 10, 20, 30):
        sim = a_market([], hours_to_deadline=15.0, approved_usd=f"{ON_DEMAND_USD + extra:.0f}", start_seconds=0)

        assert supervised(sim).outcome == "succeeded"
        assert sim.backend.billed_usd(sim.clock.now()) < ON_DEMAND_USD + extra
