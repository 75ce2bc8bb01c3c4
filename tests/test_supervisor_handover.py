"""A second machine beside the first: in every market two at most, one that trains, one bill, no deadline lost by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from launcher.core.offers import Capacity
from launcher.core.prices.options import Option, changeover_seconds
from launcher.core.runs.events import AttemptEnded, EndRequested, HandedOver, RunFinished
from launcher.core.runs.machine import LaunchRequest
from launcher.core.runs.state import RunState, job_name, spent_usd
from tests.builders import RUN, T0, a_placement, a_spec, a_submit, an_offer, an_option
from tests.faults import Deaths, Rivals, Wrapped, supervise_through
from tests.machines import Fate, Work
from tests.sim import Remembering, Sim, a_sim
from tests.test_supervisor_markets import trained_at
from tests.test_supervisor_returns import HOUR, ON_DEMAND, PACE, RULES, SPOT, SPOT_B, STEPS, WORK, supervised

INFINITY = float("inf")
SETUP_SECONDS = 1200.0
STARTS_LATE = Fate(start_seconds=RULES.fallback_delay_seconds)
SPOT_FIRST = (Capacity.SPOT, Capacity.ON_DEMAND)


def a_world(
    fate: Callable[[LaunchRequest], Fate],
    *,
    places: Sequence[Option] = (SPOT, SPOT_B, ON_DEMAND),
    hours_to_deadline: float = 12.0,
    work: Work = WORK,
    terms: dict[str, Any] | None = None,
    **fields: Any,
) -> Sim:
    """`terms`: more of the spec."""
    workload = {"steps": work.steps, "step_seconds": {"H100": 60.0}}
    spec = a_spec(workload=workload, mode=list(SPOT_FIRST), **(terms or {}))
    deadline_at = T0 + timedelta(hours=hours_to_deadline)
    submit = a_submit(spec, deadline_at=deadline_at, approved_usd=fields.pop("approved_usd", "10000"))
    return a_sim(places=places, submit=submit, fate=fate, rules=RULES, work=work, **fields)


def by_capacity(*spot: Fate, firm: Fate = STARTS_LATE) -> Callable[[LaunchRequest], Fate]:
    """Spot machines meet `spot` in the order in which they are asked for, then nothing bad; all others meet `firm`."""
    asked: list[str] = []

    def fate(request: LaunchRequest) -> Fate:
        if request.placement.offer.capacity is not Capacity.SPOT:
            return firm
        if request.job not in asked:
            asked.append(request.job)
        number = asked.index(request.job)
        return spot[number] if number < len(spot) else Fate()

    return fate


def to_spot(*spot: Fate, **fields: Any) -> Sim:
    """Spot comes to the market while the fallback trains; its machines are `spot`, one after the other.

    A set-up is long and slack scarce, so the training goes on meanwhile. The run is short, so that many can be looked
    at: 5 % of so little would pay for no change. It never waits for spot.
    """
    places = [replace(place, setup_seconds=SETUP_SECONDS) for place in fields.pop("places", (SPOT, ON_DEMAND))]
    terms = {"cost": {"max_chase": 2.0}, "priority": "urgent"}
    work = replace(WORK, steps=90, setup_seconds=SETUP_SECONDS)
    sim = a_world(
        by_capacity(*spot, firm=Fate()), places=places, work=work, hours_to_deadline=3.0, terms=terms, **fields
    )
    sim.appears = {places[0].placement.offer.key: 2400.0}
    return sim


def to_fallback(*, spare_seconds: float = 2400.0, **fields: Any) -> Sim:
    """Spot trains, and saves more seldom than was planned, so that the slack will not do to the end."""
    least = ON_DEMAND.seconds_to_finish(STEPS) + changeover_seconds(RULES)
    hours = (least + spare_seconds) / HOUR
    fate = by_capacity(fields.pop("spot", Fate()), firm=fields.pop("firm", STARTS_LATE))
    work = replace(WORK, every_steps=60)
    return a_world(fate, places=(SPOT, ON_DEMAND), work=work, hours_to_deadline=hours, **fields)


def watched(sim: Sim, check: Callable[[str], None]) -> None:
    def call(name: str, effect: Callable[[], Any]) -> Any:
        check(name)
        return effect()

    sim.supervisor(lambda name, port: Wrapped(name, port, call), kind=Remembering).supervise()


def handed_over(sim: Sim) -> int:
    return len(sim.events(HandedOver))


def check_that_one_trains(sim: Sim) -> None:
    """And never more than two are billed."""
    now = sim.clock.now()
    machines = list(sim.backend.machines.values())
    trained = sorted((m.trains_since, m.trained_until(now)) for m in machines if m.trains_since)
    assert all(until <= since for (_, until), (since, _) in pairwise(trained)), trained
    spans = [(m.granted_at, m.ended_at(now) or now) for m in machines]
    most = max((sum(since <= at < until for since, until in spans) for at, _ in spans), default=0)
    assert most <= 2


def miscounted_usd(sim: Sim) -> Decimal:
    now = sim.clock.now()
    return spent_usd(sim.state(), now) - sim.backend.billed_usd(now)


def test_a_run_moves_to_spot_without_losing_a_step_and_is_billed_for_both() -> None:
    sim = to_spot()

    state = supervised(sim)

    old, new = state.attempts[-2:]
    assert state.outcome == "succeeded"
    assert (old.end_cause, old.outcome, new.relieves) == ("handed_over", "stopped", old.number)
    assert new.first_step == old.step
    assert miscounted_usd(sim) == 0
    check_that_one_trains(sim)


def test_the_trainer_works_until_the_other_machine_is_ready() -> None:
    sim = to_spot()

    state = supervised(sim)

    old, new = state.attempts[-2:]
    assert new.ready_at is not None
    assert new.started_at is not None
    assert old.end_requested_at == new.ready_at
    assert (new.ready_at - new.started_at).total_seconds() >= SETUP_SECONDS
    idle = sum((m.lines[0].at - m.ready_at).total_seconds() for m in sim.backend.machines.values() if m.ready_at)
    assert idle <= 3 * RULES.poll_seconds


def test_what_the_run_has_cost_is_told_with_the_go() -> None:
    sim = to_spot()
    told: list[Decimal] = []

    def check(call: str) -> None:
        if call == "journal.hand_over" and not told:
            told.append(sim.backend.billed_usd(sim.clock.now()))

    watched(sim, check)

    assert list(sim.backend.told_usd.values()) == [pytest.approx(told[0])]


COMES_TO_NOTHING = {
    "is refused": Fate(refusal="no_capacity"),
    "is taken while it starts": Fate(life_seconds=100),
    "is taken while it waits": Fate(life_seconds=SETUP_SECONDS + 50),
    "is killed": Fate(killed_seconds=100),
    "never gets ready": Fate(prepares=False),
    "never comes": Fate(grant_seconds=INFINITY),
}


@pytest.mark.parametrize("fate", COMES_TO_NOTHING.values(), ids=COMES_TO_NOTHING.keys())
def test_a_second_machine_that_comes_to_nothing_costs_no_step(fate: Fate) -> None:
    sim, alone = to_spot(*[fate] * 20), to_spot(places=(SPOT_B, ON_DEMAND))
    alone.places = alone.places[1:]

    state, undisturbed = supervised(sim), supervised(alone)

    assert [a.relieves for a in state.attempts] == [None, *[1] * (len(state.attempts) - 1)]
    assert len(state.attempts) > 1
    assert state.attempts[0].ended_at == undisturbed.attempts[0].ended_at
    assert (state.outcome, handed_over(sim), miscounted_usd(sim)) == ("succeeded", 0, 0)


def test_the_other_machine_takes_over_at_once_when_the_trainer_is_lost() -> None:
    """Spot that is taken while the fallback is being set up beside it, because the slack is used up."""
    asked_at = supervised(to_fallback()).attempts[1].requested_at
    life = (asked_at - T0).total_seconds() + 300.0
    sim = to_fallback(spot=Fate(life_seconds=life))

    state = supervised(sim)

    spot, firm = state.attempts[:2]
    assert (spot.outcome, firm.relieves, state.outcome) == ("preempted", spot.number, "succeeded")
    assert firm.handed_over_at == spot.ended_at
    assert firm.handed_over_at < firm.started_at + timedelta(seconds=RULES.fallback_delay_seconds)  # type: ignore[operator]


def test_the_fallback_is_set_up_beside_spot_before_the_slack_is_gone() -> None:
    sim = to_fallback()

    state = supervised(sim)

    assert [a.placement.offer.capacity for a in state.attempts if a.training_at][:2] == [*SPOT_FIRST]
    assert next(event.cause for event in sim.events(EndRequested)) == "handed_over"  # type: ignore[attr-defined]
    assert trained_at(sim) <= state.submitted.deadline_at  # type: ignore[operator]
    check_that_one_trains(sim)


def test_a_stop_ends_the_second_machine_and_then_the_trainer() -> None:
    sim = to_spot()

    def check(call: str) -> None:
        if call == "backend.phase" and len(sim.backend.running()) == 2 and not sim.state().stop_requested_at:
            sim.ask_to_stop()

    watched(sim, check)

    ended = [event.attempt for event in sim.events(AttemptEnded)]  # type: ignore[attr-defined]
    assert sim.state().outcome == "cancelled"
    assert ended[-2:] == [sim.state().attempts[-1].number, sim.state().attempts[-2].number]
    assert handed_over(sim) == 0


def test_a_training_that_completes_before_the_handover_needs_nobody() -> None:
    """The one that is set up too slowly is not waited for."""
    sim = to_spot(Fate(prepares=False))
    sim.appears = dict.fromkeys(sim.appears, 4000.0)

    state = supervised(sim)

    assert state.outcome == "succeeded"
    assert state.attempts[-1].detail.startswith("not needed any more")
    assert sim.backend.running() == []


def test_the_newest_checkpoint_is_brought_before_the_launch_and_again_at_the_handover() -> None:
    west = an_option(a_placement(an_offer(zone="a", region="west"), usd_per_hour="6"), **PACE)
    east = an_option(
        a_placement(an_offer(zone="a", region="east", capacity=Capacity.ON_DEMAND), usd_per_hour="20"), **PACE
    )
    sim = to_spot(places=(west, east))
    sim.folders.is_regional = True

    state = supervised(sim)

    beside, home = f"{sim.submit.run_uri}/west/{RUN}", f"{sim.submit.run_uri}/east/{RUN}"
    old, new = state.attempts[-2:]
    assert sim.folders.brought[-2:] == [(home, beside)] * 2
    assert new.first_step == old.step
    assert new.replicated_bytes == 2 * 10**9


def a_fate(rng: Random) -> Fate:
    """Every other one is a plain life on spot."""
    life = Fate(life_seconds=rng.uniform(600, 20_000), notice_seconds=rng.choice((None, 30.0, 120.0)))
    if rng.random() < 0.5:
        return life
    return replace(
        life,
        refusal=rng.choice((None, None, None, "no_capacity", "quota")),
        grant_seconds=rng.choice((0.0, 0.0, 45.0, 900.0, INFINITY)),
        start_seconds=rng.choice((0.0, 30.0, 400.0)),
        killed_seconds=rng.choice((INFINITY, INFINITY, INFINITY, 100.0, 290.0, 2000.0)),
        silent_seconds=rng.choice((INFINITY, INFINITY, INFINITY, 400.0, 2000.0)),
        prepares=rng.choice((True, True, True, False)),
        obeys=rng.choice((True, True, True, False)),
        exits=rng.choice((True, True, True, False)),
    )


def a_drawn_world(rng: Random, *drawn: Fate, firm: Fate, **fields: Any) -> Sim:
    """3 hours of work. Saves may be rarer than planned, set-ups long, and spot may come late, so that machines change.

    An immediate fallback keeps the deadline.
    """
    setup_seconds = rng.choice((WORK.setup_seconds, SETUP_SECONDS))
    work = replace(WORK, steps=200, setup_seconds=setup_seconds, every_steps=rng.choice((15, 60)))
    places = [replace(place, setup_seconds=setup_seconds) for place in (SPOT, SPOT_B, ON_DEMAND)]
    least = places[-1].seconds_to_finish(work.steps) + changeover_seconds(RULES)
    terms = {"cost": {"max_chase": rng.choice((1.05, 2.0))}, "priority": rng.choice(("normal", "urgent"))}
    hours = least / HOUR + rng.choice((0.0, *[rng.uniform(0.5, 2.5)] * 5))
    fate = by_capacity(*drawn, firm=firm)
    sim = a_world(fate, places=places, work=work, terms=terms, hours_to_deadline=hours, **fields)
    sim.appears = {place.placement.offer.key: rng.choice((0.0, 3000.0)) for place in places[:2]}
    return sim


def moves_of(state: RunState) -> list[Capacity]:
    """Where second machines took over."""
    return [a.placement.offer.capacity for a in state.attempts if a.handed_over_at]


def test_no_deadline_is_lost_by_a_handover() -> None:
    """One that an immediate fallback would keep, as long as it runs within its stated delay."""
    moves: Counter[Capacity] = Counter()
    for seed in range(45):
        rng = Random(seed)
        fates = [a_fate(rng) for _ in range(rng.randint(0, 12))]
        sim = a_drawn_world(rng, *fates, firm=replace(STARTS_LATE, obeys=rng.choice((True, False))))

        state = supervised(sim)

        assert state.outcome == "succeeded", seed
        assert trained_at(sim) <= state.submitted.deadline_at, seed  # type: ignore[operator]  # an instant
        check_that_one_trains(sim)
        moves.update(moves_of(state))
    assert min(moves[capacity] for capacity in SPOT_FIRST) >= 5


def test_two_machines_never_spend_more_than_was_approved() -> None:
    moves: Counter[Capacity] = Counter()
    given_up = 0
    for seed in range(50):
        rng = Random(seed)
        fates = [a_fate(rng) for _ in range(rng.randint(0, 12))]
        firm = replace(rng.choice((STARTS_LATE, STARTS_LATE, a_fate(rng))), refusal=None, life_seconds=INFINITY)
        approved, release = rng.randint(5, 100), rng.choice((0.0, RULES.release_seconds))
        sim = a_drawn_world(rng, *fates, firm=firm, approved_usd=str(approved), stop_seconds=release)

        state = supervised(sim)

        assert sim.backend.billed_usd(sim.clock.now()) <= approved, seed
        assert 0 <= miscounted_usd(sim) <= sum(one_poll_usd(fate) for fate in fates), seed
        check_that_one_trains(sim)
        moves.update(moves_of(state))
        given_up += any(a.relieves and a.end_cause == "cap" for a in state.attempts)
    assert (given_up, min(moves[capacity] for capacity in SPOT_FIRST)) >= (1, 1)


@pytest.mark.parametrize("release", [0.0, RULES.release_seconds])
def test_a_second_machine_that_is_never_ready_is_paid_for_within_the_cap(release: float) -> None:
    """The dear one waits beside the cheap one, whose own end would be much cheaper."""
    asked = 0
    for cents in range(800, 2000, 37):
        approved = Decimal(cents) / 100
        sim = to_fallback(firm=Fate(prepares=False), approved_usd=str(approved), stop_seconds=release)

        supervised(sim)

        asked += any(a.relieves and a.end_cause == "cap" for a in sim.state().attempts)
        assert sim.backend.billed_usd(sim.clock.now()) <= approved
    assert asked > 10


def one_poll_usd(fate: Fate) -> Decimal:
    """Who saves on a notice and leaves is released before anybody asks when the machine was taken."""
    return Decimal(0) if fate.notice_seconds is None else Decimal(7) * Decimal(str(RULES.poll_seconds)) / 3600


def calls_of(sim: Sim) -> list[str]:
    deaths = Deaths({})
    supervise_through(sim, deaths, down_seconds=0)
    return deaths.made


def changeover_calls(made: Sequence[str]) -> list[int]:
    """The calls around the handover, counted from 1."""
    (go,) = [k for k, name in enumerate(made, start=1) if name == "journal.hand_over"][:1]
    return list(range(max(1, go - 60), min(len(made), go + 14)))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_supervisor_may_die_at_every_call_of_a_handover(when: Any) -> None:
    for k in changeover_calls(calls_of(to_spot())):
        sim = to_spot()

        assert supervise_through(sim, Deaths({k: when}), down_seconds=20) == 1, k

        assert sim.state().outcome == "succeeded"
        assert (handed_over(sim), len(sim.events(RunFinished))) == (1, 1)
        assert 0 <= miscounted_usd(sim) <= Decimal(26) * 20 / 3600
        check_that_one_trains(sim)


@pytest.mark.parametrize("back_after", [1, 3, 10_000])
def test_a_supervisor_that_was_held_during_a_handover_does_no_harm_when_it_goes_on(back_after: int) -> None:
    for at in changeover_calls(calls_of(to_spot()))[::4]:
        sim, made = to_spot(), 0

        def next_up(_holder: int, at: int = at) -> int:
            nonlocal made
            made += 1
            return 1 if at <= made < at + back_after else 0

        Rivals(next_up).supervise(sim)

        assert sim.state().outcome == "succeeded"
        assert sim.backend.running() == []
        assert handed_over(sim) == 1
        check_that_one_trains(sim)


def test_a_go_that_was_not_said_is_said_by_the_next_supervisor() -> None:
    made = calls_of(to_spot())
    k = made.index("journal.hand_over") + 1
    sim = to_spot()

    supervise_through(sim, Deaths({k: "before"}), down_seconds=20)

    new = sim.state().attempts[-1]
    assert sim.state().outcome == "succeeded"
    assert (new.outcome, new.handed_over_at is not None) == ("completed", True)
    assert list(sim.backend.go_at) == [job_name(RUN, new.number)]
