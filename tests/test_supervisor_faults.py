"""The supervisor dies at every port call, or is not alone; nothing is billed unseen, done twice or lost.

The world is the same after one port call and before the next: what lies between is pure. So death before each call
and after the last covers every moment at which a supervisor can die.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from functools import cache

import pytest

from launcher.core.offers import Capacity
from launcher.core.prices.options import Rules
from launcher.core.runs.events import AttemptRequested, CheckpointCommitted, RunFinished, TrainingResumed
from launcher.core.runs.state import attempt_of, spent_usd
from tests.builders import RUN, a_placement, a_spec, a_submit, an_offer, an_option
from tests.faults import Deaths, Rivals, supervise_through
from tests.machines import Fate, Work
from tests.sim import Sim, a_sim

SPOT_A = an_option(a_placement(an_offer(zone="a"), usd_per_hour="6"))
SPOT_B = an_option(a_placement(an_offer(zone="b"), usd_per_hour="7"))
ON_DEMAND = an_option(a_placement(an_offer(zone="a", capacity=Capacity.ON_DEMAND), usd_per_hour="20"))
RULES = Rules(poll_seconds=100, retry_seconds=300)
DOWN_SECONDS = 35.0
FATES = {
    1: Fate(life_seconds=300),
    2: Fate(refusal="no_capacity"),
    3: Fate(life_seconds=300, notice_seconds=120),
}


CONTESTED = {**FATES, 2: Fate(refusal="no_capacity", refused_calls=1)}


def two_preemptions_a_refusal_and_a_completion(fates: dict[int, Fate] = FATES, *, rules: Rules = RULES) -> Sim:
    return a_sim(
        places=[SPOT_A, SPOT_B, ON_DEMAND],
        submit=a_submit(a_spec(steps=50)),
        fate=fates,
        rules=rules,
        work=Work(steps=50, step_seconds=10, setup_seconds=30, save_seconds=5, every_steps=10),
    )


@cache
def calls_of_an_undisturbed_run() -> tuple[str, ...]:
    deaths = Deaths({})
    supervise_through(two_preemptions_a_refusal_and_a_completion(), deaths, down_seconds=0)
    return tuple(deaths.made)


def miscounted_usd(sim: Sim) -> Decimal:
    """The ledger's bill above the market's own."""
    now = sim.clock.now()
    return spent_usd(sim.state(), now) - sim.backend.billed_usd(now)


def check_invariants(sim: Sim) -> None:
    assert sim.state().outcome == "succeeded"
    assert sim.backend.running() == []
    assert len(sim.events(RunFinished)) == 1
    assert sim.ledger.read(RUN)[-1].event.kind == "run_finished"
    asked = [event.attempt for event in sim.events(AttemptRequested)]
    assert asked == list(range(1, len(asked) + 1))
    assert {attempt_of(job) for job in sim.backend.grants} <= set(asked)
    check_that_the_resume_step_never_falls(sim)


def check_that_the_resume_step_never_falls(sim: Sim) -> None:
    resumed = [event.step for event in sim.events(TrainingResumed)]
    committed = [event.step for event in sim.events(CheckpointCommitted)]
    assert resumed == sorted(resumed)
    assert committed == sorted(committed)


def test_an_undisturbed_run_meets_two_preemptions_and_a_refusal_and_bills_to_the_cent() -> None:
    sim = two_preemptions_a_refusal_and_a_completion()

    sim.supervisor().supervise()

    check_invariants(sim)
    ends = [(a.refused.partition(":")[0] or a.outcome, a.noticed_at is not None) for a in sim.state().attempts]
    assert ends == [("preempted", False), ("no_capacity", False), ("preempted", True), ("completed", False)]
    assert miscounted_usd(sim) == 0


def test_a_supervisor_may_die_at_every_call_and_start_again() -> None:
    """Exact, but where it died between the end of a bill and its record: that time is counted as billed."""
    num_calls = len(calls_of_an_undisturbed_run())
    cases: list[dict[int, str]] = [{k: "before"} for k in range(1, num_calls + 1)] + [{num_calls: "after"}]
    for case in cases:
        sim = two_preemptions_a_refusal_and_a_completion()
        deaths = Deaths(case)  # type: ignore[arg-type]  # literals

        assert supervise_through(sim, deaths, down_seconds=DOWN_SECONDS) == 1, case

        check_invariants(sim)
        (died_at,) = case
        unrecorded = deaths.made[max(0, died_at - 2)] == "backend.stop"
        assert 0 <= miscounted_usd(sim) <= (burn_usd(DOWN_SECONDS) if unrecorded else 0), case


def burn_usd(seconds: float) -> Decimal:
    return max(SPOT_A.placement.usd_per_hour, SPOT_B.placement.usd_per_hour) * Decimal(str(seconds)) / 3600


@pytest.mark.parametrize("call", ["ledger.append", "backend.launch", "backend.stop", "journal.request_stop"])
def test_an_effect_whose_caller_died_is_not_repeated(call: str) -> None:
    """Death before and after each call that changes the world, in a run that is asked to stop as well."""
    for n in range(1, 30):
        for when in ("before", "after"):
            sim = a_stopped_run()
            made = nth_call(a_stopped_run(), call, n)
            if made is None:
                return
            supervise_through(sim, Deaths({made: when}), down_seconds=DOWN_SECONDS)  # type: ignore[dict-item]

            assert sim.state().outcome == "cancelled"
            assert sim.backend.running() == []
            assert len(sim.events(RunFinished)) == 1
            assert 0 <= miscounted_usd(sim) <= burn_usd(DOWN_SECONDS)


def a_stopped_run() -> Sim:
    """Asked to stop after 3 minutes of training."""
    sim = two_preemptions_a_refusal_and_a_completion({})
    supervisor = sim.supervisor()
    for _ in range(6):
        sim.clock.sleep(supervisor.turn() or 0)
    sim.ask_to_stop()
    return sim


def nth_call(sim: Sim, name: str, n: int) -> int | None:
    deaths = Deaths({})
    supervise_through(sim, deaths, down_seconds=0)
    places = [k for k, made in enumerate(deaths.made, start=1) if made == name]
    return places[n - 1] if n <= len(places) else None


@pytest.mark.parametrize("seed", range(25))
def test_a_supervisor_may_die_again_during_its_recovery(seed: int) -> None:
    rng = random.Random(seed)
    first = rng.randint(1, len(calls_of_an_undisturbed_run()))
    gaps = [rng.randint(1, 8) for _ in range(rng.choice((1, 1, 2)))]
    at = {first + sum(gaps[:n]): rng.choice(("before", "after")) for n in range(len(gaps) + 1)}
    sim = two_preemptions_a_refusal_and_a_completion()

    supervise_through(sim, Deaths(at), down_seconds=DOWN_SECONDS)  # type: ignore[arg-type]

    check_invariants(sim)
    assert 0 <= miscounted_usd(sim) <= len(at) * burn_usd(DOWN_SECONDS)


def test_a_finished_run_is_left_alone() -> None:
    sim = two_preemptions_a_refusal_and_a_completion()
    sim.supervisor().supervise()
    entries, grants = sim.ledger.read(RUN), list(sim.backend.grants)

    sim.supervisor().supervise()

    assert sim.ledger.read(RUN) == entries
    assert sim.backend.grants == grants


def hand_over(at: int, *, back_after: int) -> Callable[[int], int]:
    """The first supervisor is held at call `at`; the other goes on, and gives way after `back_after` calls."""
    made = 0

    def next_up(_holder: int) -> int:
        nonlocal made
        made += 1
        return 1 if at <= made < at + back_after else 0

    return next_up


def check_rivals(sim: Sim) -> None:
    """A machine may run unseen while one supervisor is held and the other sleeps, for six polls at most."""
    check_invariants(sim)
    assert abs(miscounted_usd(sim)) <= burn_usd(6 * RULES.poll_seconds + RULES.release_seconds)


@pytest.mark.parametrize("back_after", [1, 3, 8, 10_000])
def test_a_supervisor_that_was_held_at_any_call_does_no_harm_when_it_goes_on(back_after: int) -> None:
    for at in range(1, len(calls_of_an_undisturbed_run()) + 1, 5):
        sim = two_preemptions_a_refusal_and_a_completion()

        Rivals(hand_over(at, back_after=back_after)).supervise(sim)

        check_rivals(sim)


@pytest.mark.parametrize("seed", range(30))
def test_two_supervisors_that_change_places_at_random_do_no_harm(seed: int) -> None:
    """One is refused what the other is granted, and then waits for longer than a machine may run unseen."""
    sim = two_preemptions_a_refusal_and_a_completion(CONTESTED, rules=replace(RULES, retry_seconds=1800))

    Rivals(at_random(seed)).supervise(sim)

    check_rivals(sim)
    assert len(set(sim.backend.grants)) == len(sim.backend.grants)


@pytest.mark.parametrize("seed", range(15))
def test_the_sweep_alone_leaves_nothing_behind_on_a_backend_that_forgets_what_was_released(seed: int) -> None:
    sim = two_preemptions_a_refusal_and_a_completion(CONTESTED)
    sim.backend.forgets = True

    Rivals(at_random(seed)).supervise(sim)

    check_invariants(sim)


@pytest.mark.parametrize("seed", range(15))
def test_the_order_of_writers_alone_leaves_nothing_behind_where_nothing_can_be_swept(seed: int) -> None:
    sim = two_preemptions_a_refusal_and_a_completion(CONTESTED)
    sim.backend.blind = True

    Rivals(at_random(seed)).supervise(sim)

    check_rivals(sim)


def at_random(seed: int) -> Callable[[int], int]:
    """The same supervisor goes on for 2, 5 or 20 calls in the mean."""
    rng = random.Random(seed)
    stickiness = rng.choice((0.5, 0.8, 0.95))
    return lambda me: me if rng.random() < stickiness else 1 - me
