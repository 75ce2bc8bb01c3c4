"""The supervisor's rules, one by one, against a simulated market."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from launcher.core.offers import Capacity
from launcher.core.prices.options import Option, Rules
from launcher.core.runs.events import (
    AttemptRefused,
    AttemptReleased,
    AttemptRequested,
    EndRequested,
    PriceChanged,
    RunFinished,
    RunReopened,
    RunWaits,
    StopRequested,
)
from launcher.core.runs.machine import LaunchRequest
from launcher.core.runs.state import Pause, RunState, job_name, spent_usd
from launcher.errors import BackendError, InputError, LaunchError, LedgerUnavailable, NoSuchRun, Problem
from launcher.ports import Clock
from tests.builders import RUN, a_placement, a_spec, a_submit, after, an_offer, an_option
from tests.faults import Deaths, Wrapped, supervise_through
from tests.machines import Fate, Work
from tests.sim import MemoryLedger, Sim, a_sim

SPOT_A = an_option(a_placement(an_offer(zone="a"), usd_per_hour="6"))
SPOT_B = an_option(a_placement(an_offer(zone="b"), usd_per_hour="7"))
ON_DEMAND = an_option(a_placement(an_offer(zone="a", capacity=Capacity.ON_DEMAND), usd_per_hour="20"))
RULES = Rules(poll_seconds=60)


def a_run(fate: dict[int, Fate] | Callable[[LaunchRequest], Fate] | None = None, **fields: Any) -> Sim:
    plain: dict[str, Any] = {
        "places": [SPOT_A, SPOT_B],
        "submit": a_submit(a_spec(steps=60)),
        "rules": RULES,
        "work": Work(steps=60, step_seconds=10, setup_seconds=30, save_seconds=5, every_steps=10),
    }
    return a_sim(fate={} if fate is None else fate, **plain | fields)


def supervise_watched(sim: Sim, check: Callable[[str], None]) -> None:
    """Supervise, with `check(call)` before the effect of every port call."""

    def call(name: str, effect: Callable[[], Any]) -> Any:
        check(name)
        return effect()

    sim.supervisor(lambda name, port: Wrapped(name, port, call)).supervise()


def an_orphan(sim: Sim, attempt: int) -> str:
    """A machine of the run that the ledger knows nothing of, left by a supervisor that is gone."""
    job = job_name(RUN, attempt)
    sim.backend.launch(
        LaunchRequest(job=job, placement=SPOT_A.placement, setup=None, run="x", workdir="/home/ada", env={})
    )
    assert sim.backend.running() == [job]
    return job


def test_an_unknown_run_is_refused() -> None:
    sim = a_run()
    sim.ledger = MemoryLedger()

    with pytest.raises(NoSuchRun):
        sim.supervisor().supervise()


def test_the_intent_is_recorded_before_the_launch() -> None:
    sim = a_run({1: Fate(life_seconds=200), 2: Fate(refusal="no_capacity")})
    launches = []

    def check(call: str) -> None:
        if call == "backend.launch":
            launches.append(sim.state().attempts[-1])

    supervise_watched(sim, check)

    assert [(a.number, a.is_live) for a in launches] == [(1, True), (2, True), (3, True)]


def test_the_verdict_is_recorded_before_the_release_and_the_release_after_it() -> None:
    sim = a_run({1: Fate(life_seconds=200)})
    stops = []

    def check(call: str) -> None:
        if call == "backend.stop":
            stops.append(sim.state().attempts[-1])

    supervise_watched(sim, check)

    assert [(a.outcome, a.released_at) for a in stops] == [("preempted", None), ("completed", None)]
    assert [event.attempt for event in sim.events(AttemptReleased)] == [1, 2]


def test_a_supervisor_remembers_nothing_between_two_turns() -> None:
    fates = {1: Fate(life_seconds=300, notice_seconds=60), 2: Fate(refusal="no_capacity")}
    steady, forgetful = a_run(fates), a_run(fates)

    steady.supervisor().supervise()
    while (seconds := forgetful.supervisor().turn()) is not None:
        forgetful.clock.sleep(seconds)

    assert forgetful.ledger.read(RUN) == steady.ledger.read(RUN)


@pytest.mark.parametrize("fate", [Fate(life_seconds=200), Fate()], ids=["preempted", "completed"])
def test_nothing_new_begins_while_an_ended_attempt_is_unreleased(fate: Fate) -> None:
    sim = a_run({1: fate})
    begun: list[int] = []

    def deaf_to_releases(name: str, effect: Callable[[], Any]) -> Any:
        if name == "backend.stop" and len(begun) < 10:
            begun.append(len(sim.events(AttemptRequested)) + len(sim.events(RunFinished)))
            raise BackendError("no answer")
        return effect()

    sim.supervisor(lambda name, port: Wrapped(name, port, deaf_to_releases)).supervise()

    assert begun == [1] * 10
    assert sim.state().outcome == "succeeded"


@pytest.mark.parametrize(
    "error", [LedgerUnavailable("disk full"), InputError([Problem("L1", "pricing.yaml is broken")])]
)
def test_a_run_goes_on_when_a_ledger_or_a_file_is_mended(error: LaunchError) -> None:
    sim = a_run({1: Fate(life_seconds=400)})
    options, calls = sim.options, itertools.count()

    def broken_at_first(state: RunState, now: datetime) -> Sequence[Option]:
        if next(calls) in (0, 1, 9):
            raise error
        return options(state, now)

    state = replace(sim.supervisor(), options=broken_at_first).supervise()

    assert state.outcome == "succeeded"
    assert sim.backend.running() == []


def test_a_run_goes_on_when_the_backend_answers_again() -> None:
    sim = a_run({1: Fate(life_seconds=400)}, deaf=[(0, 130), (400, 700)])

    state = sim.supervisor().supervise()

    assert state.outcome == "succeeded"
    assert sim.backend.running() == []
    assert sim.backend.grants == [job_name(RUN, 1), job_name(RUN, 2)]


def test_orphans_are_stopped_at_the_start() -> None:
    sim = a_run()
    an_orphan(sim, 7)

    assert running_at_the_first_launch(sim) == []


def test_a_backend_that_is_deaf_at_the_start_is_swept_when_it_answers() -> None:
    sim = a_run({}, deaf=[(10, 100)])
    an_orphan(sim, 7)
    sim.clock.sleep(20)

    assert running_at_the_first_launch(sim) == []


def running_at_the_first_launch(sim: Sim) -> list[str]:
    seen: list[list[str]] = []

    def check(call: str) -> None:
        if call == "backend.launch":
            seen.append(sim.backend.running())

    supervise_watched(sim, check)
    return seen[0]


def test_orphans_are_stopped_when_another_writer_was_first() -> None:
    sim = a_run()
    supervisor = sim.supervisor()
    supervisor.turn()
    an_orphan_seen = []

    def check(call: str) -> None:
        if call == "ledger.append" and not an_orphan_seen:
            sim.ask_to_stop()
            an_orphan_seen.append(job_name(RUN, 7))
            sim.backend.launch(sim.request(sim.state(), replace(sim.state().attempts[0], number=7)))
        if call == "clock.sleep":
            assert job_name(RUN, 7) not in sim.backend.running()

    supervise_watched(sim, check)

    assert an_orphan_seen
    assert sim.state().outcome == "cancelled"


def test_orphans_are_stopped_at_the_end() -> None:
    sim = a_run()
    sim.supervisor().supervise()
    an_orphan(sim, 7)

    sim.supervisor().turn()

    assert sim.backend.running() == []


def test_a_sweep_spares_a_machine_whose_intent_was_recorded_while_it_looked() -> None:
    """Names first, then the ledger: the other order stops a rival's new machine."""
    sim = a_run()
    rival = sim.supervisor()

    def check(call: str) -> None:
        if call == "backend.names" and not sim.events(AttemptRequested):
            rival.turn()

    supervise_watched(sim, check)

    assert sim.backend.grants == [job_name(RUN, 1)]
    assert [a.outcome for a in sim.state().attempts] == ["completed"]


def test_a_launch_that_was_overtaken_leaves_no_machine_even_on_a_backend_that_forgets() -> None:
    """The supervisor is held before its launch until a rival has brought the run to its end."""
    sim = a_run()
    sim.backend.forgets = True
    rival = sim.supervisor()
    held = []

    def check(call: str) -> None:
        if call == "backend.launch" and not held:
            held.append(call)
            rival.supervise()

    supervise_watched(sim, check)

    assert sim.backend.grants == [job_name(RUN, 1), job_name(RUN, 1)]
    assert sim.backend.running() == []
    assert len(sim.events(RunFinished)) == 1


def test_a_launch_whose_attempt_a_rival_had_closed_is_undone_at_once() -> None:
    """On a backend that forgets the refused job, and long before the run ends."""
    sim = a_run({1: Fate(refusal="no_capacity", refused_calls=1)})
    sim.backend.forgets = True
    rival = sim.supervisor()

    def check(call: str) -> None:
        if call == "backend.launch" and not sim.events(AttemptRefused):
            rival.turn()
        if call == "clock.sleep":
            assert job_name(RUN, 1) not in sim.backend.running()

    supervise_watched(sim, check)

    assert sim.backend.grants == [job_name(RUN, 1), job_name(RUN, 2)]


def test_a_refused_job_stays_refused_for_a_rival_that_launches_it_late() -> None:
    sim = a_run({1: Fate(refusal="no_capacity", refused_calls=1)}, places=[SPOT_A])
    rival = sim.supervisor()

    def check(call: str) -> None:
        if call == "backend.launch" and not sim.events(AttemptRefused):
            rival.turn()

    supervise_watched(sim, check)

    assert sim.backend.grants == [job_name(RUN, 2)]


def test_a_rivals_entries_are_never_adopted_unseen() -> None:
    """A refusal that comes back after the run has ended is not written behind its end."""
    sim = a_run({1: Fate(refusal="no_capacity", refused_calls=2)})
    rival = sim.supervisor()

    def check(_call: str) -> None:
        if sim.events(AttemptRequested) and not sim.events(AttemptRefused):
            rival.supervise()

    supervise_watched(sim, check)

    assert sim.ledger.read(RUN)[-1].event.kind == "run_finished"
    assert len(sim.events(AttemptRefused)) == 1


def test_a_stop_is_heard_wherever_it_falls_between_two_calls() -> None:
    quiet = a_run({1: Fate(life_seconds=200)})
    deaths = Deaths({})
    supervise_through(quiet, deaths, down_seconds=0)

    for k in range(1, len(deaths.made) - 2, 2):
        sim = a_run({1: Fate(life_seconds=200)})
        made: list[str] = []

        def check(call: str, sim: Sim = sim, made: list[str] = made, k: int = k) -> None:
            made.append(call)
            if len(made) == k and not sim.state().is_finished:
                sim.ask_to_stop()

        supervise_watched(sim, check)

        done = sim.state().attempts and sim.state().attempts[-1].outcome == "completed"
        assert sim.state().outcome == ("succeeded" if done else "cancelled"), k
        assert sim.backend.running() == []
        assert len(sim.events(RunFinished)) == 1


def test_a_stop_is_heard_within_six_polls_of_a_long_wait() -> None:
    sim = a_run({1: Fate(refusal="quota")}, places=[SPOT_A])
    supervisor = sim.supervisor()
    while not sim.events(AttemptRefused):
        sim.clock.sleep(supervisor.turn() or 0)

    pause = supervisor.turn()

    assert pause is not None
    assert RULES.poll_seconds < pause <= 6 * RULES.poll_seconds


def test_a_stopped_run_saves_first() -> None:
    sim = a_run()
    supervisor = sim.supervisor()
    for _ in range(6):
        sim.clock.sleep(supervisor.turn() or 0)
    sim.ask_to_stop()

    state = supervisor.supervise()

    assert state.outcome == "cancelled"
    assert state.attempts[0].detail == "saved and ended when asked"
    assert state.committed_step % 10 != 0  # not one of the regular saves


def test_a_supervisor_that_died_before_it_asked_asks_again() -> None:
    sim = a_run()
    supervisor = sim.supervisor()
    for _ in range(6):
        sim.clock.sleep(supervisor.turn() or 0)
    sim.ask_to_stop()
    made = Deaths({})
    supervise_through(a_copy_stopped_at_the_same_point(), made, down_seconds=0)
    k = made.made.index("journal.request_stop") + 1

    supervise_through(sim, Deaths({k: "before"}), down_seconds=30)

    assert [event.cause for event in sim.events(EndRequested)] == ["stop_requested"]
    assert sim.state().attempts[0].detail == "saved and ended when asked"


def a_copy_stopped_at_the_same_point() -> Sim:
    sim = a_run()
    supervisor = sim.supervisor()
    for _ in range(6):
        sim.clock.sleep(supervisor.turn() or 0)
    sim.ask_to_stop()
    return sim


def test_a_training_that_ignores_the_stop_is_killed_after_the_grace_time() -> None:
    sim = a_run({1: Fate(obeys=False)}, submit=a_submit(a_spec(steps=5000)))
    supervisor = sim.supervisor()
    for _ in range(6):
        sim.clock.sleep(supervisor.turn() or 0)
    sim.ask_to_stop()
    asked_at = sim.clock.now()

    state = supervisor.supervise()

    waited = ((state.attempts[0].ended_at or asked_at) - asked_at).total_seconds()
    assert RULES.grace_seconds <= waited <= RULES.grace_seconds + RULES.poll_seconds
    assert state.outcome == "cancelled"


DISOBEDIENT = {
    "obeys": Fate(),
    "ignores": Fate(obeys=False),
    "never speaks": Fate(speaks=False),
    "does not exit": Fate(exits=False),
    "hangs": Fate(silent_seconds=1200),
}


@pytest.mark.parametrize("fate", DISOBEDIENT.values(), ids=DISOBEDIENT.keys())
def test_the_bill_stays_within_the_approved_amount(fate: Fate) -> None:
    steps = 5000
    sim = a_run(
        lambda _request: fate,
        submit=a_submit(a_spec(steps=steps), approved_usd="9.00"),
        work=Work(steps=steps, step_seconds=10, setup_seconds=30, save_seconds=5, every_steps=50),
        stop_seconds=RULES.release_seconds,
    )

    state = sim.supervisor().supervise()

    assert state.outcome == "out_of_budget"
    assert sim.backend.billed_usd(sim.clock.now()) <= Decimal("9.00")
    assert spent_usd(state, sim.clock.now()) >= Decimal("8.00")  # what was approved is used


def test_the_last_save_is_paid_for() -> None:
    sim = a_run(
        submit=a_submit(a_spec(steps=5000), approved_usd="3.00"),
        work=Work(steps=5000, step_seconds=10, setup_seconds=30, save_seconds=5, every_steps=4000),
    )

    state = sim.supervisor().supervise()

    assert state.outcome == "out_of_budget"
    assert state.attempts[0].detail == "saved and ended when asked"
    assert state.committed_step > 100


def test_a_run_with_more_money_goes_on_where_it_ended() -> None:
    sim = a_run(submit=a_submit(a_spec(steps=60), approved_usd="0.60"))
    ended = sim.supervisor().supervise()
    more = RunReopened(approved_usd=Decimal(100), by="ada")
    sim.ledger.append(RUN, [more], after_seq=ended.seq, at=sim.clock.now())

    state = sim.supervisor().supervise()

    assert ended.outcome == "out_of_budget"
    assert ended.committed_step > 0
    assert state.outcome == "succeeded"
    assert state.attempts[-1].first_step == ended.committed_step


def test_silence_is_an_end() -> None:
    sim = a_run({1: Fate(silent_seconds=200)})

    state = sim.supervisor().supervise()

    lost, second = state.attempts
    assert (lost.outcome, second.outcome) == ("lost", "completed")
    assert second.first_step == lost.committed_step
    silent_for = RULES.silence_seconds + 200
    assert lost.ended_at is not None
    assert lost.started_at is not None
    assert (lost.ended_at - lost.started_at).total_seconds() <= silent_for + RULES.poll_seconds


def test_a_training_that_failed_but_hangs_is_not_paid_for_ever() -> None:
    sim = a_run({1: Fate(failing=True, exits=False)})

    state = sim.supervisor().supervise()

    assert (state.outcome, len(state.attempts)) == ("failed", 1)


def test_a_failed_training_is_final() -> None:
    sim = a_run({1: Fate(failing=True)})

    state = sim.supervisor().supervise()

    assert (state.outcome, len(state.attempts)) == ("failed", 1)


def test_a_rejected_request_is_final() -> None:
    sim = a_run({1: Fate(refusal="rejected")})

    state = sim.supervisor().supervise()

    assert (state.outcome, len(state.attempts)) == ("failed", 1)


KILLS = {
    "before the first step": lambda _n: Fate(killed_seconds=70),
    "before the first save": lambda _n: Fate(killed_seconds=155),
    "and places refuse in between": lambda n: Fate(killed_seconds=70) if n % 2 else Fate(refusal="no_capacity"),
    "launches hang": lambda _n: Fate(grant_seconds=float("inf")),
}


@pytest.mark.parametrize("fate", KILLS.values(), ids=KILLS.keys())
def test_attempts_that_lead_nowhere_come_to_an_end(fate: Callable[[int], Fate]) -> None:
    sim = a_run(lambda request: fate(int(request.job[-3:])), submit=a_submit(a_spec(steps=60), approved_usd="10000"))

    state = sim.supervisor().supervise()

    assert state.outcome == "failed"
    assert sum(a.outcome == "lost" for a in state.attempts) == RULES.max_fruitless_attempts


def test_attempts_that_save_a_step_each_are_not_fruitless() -> None:
    work = Work(steps=60, step_seconds=10, setup_seconds=30, save_seconds=5, every_steps=5)
    sim = a_run(lambda _request: Fate(killed_seconds=140), work=work)

    state = sim.supervisor().supervise()

    assert state.outcome == "succeeded"
    assert len(state.attempts) > RULES.max_fruitless_attempts


def test_a_price_that_changes_is_billed_from_the_poll_that_finds_it() -> None:
    key = SPOT_A.placement.offer.key
    sim = a_run(places=[SPOT_A], prices={key: [(0, Decimal(6)), (300, Decimal(12))]})

    state = sim.supervisor().supervise()

    assert len(sim.events(PriceChanged)) == 1
    missed = sim.backend.billed_usd(sim.clock.now()) - spent_usd(state, sim.clock.now())
    assert 0 <= missed <= Decimal(6) * 60 / 3600  # the difference, for one poll


def test_a_price_that_rises_before_the_release_is_billed_too() -> None:
    """The machine is paid for until it is let go, though its training has ended."""
    key = SPOT_A.placement.offer.key
    ends_at = 30 + 60 * 10 + 6 * 5
    sim = a_run(places=[SPOT_A], prices={key: [(0, Decimal(6)), (ends_at + 30, Decimal(12))]}, stop_seconds=600)

    state = sim.supervisor().supervise()

    missed = sim.backend.billed_usd(sim.clock.now()) - spent_usd(state, sim.clock.now())
    assert len(sim.events(PriceChanged)) == 1
    assert 0 <= missed <= Decimal(6) * 60 / 3600


def test_a_wait_is_told_with_its_reason_once_and_is_over_with_the_next_attempt() -> None:
    sim = a_run({1: Fate(refusal="quota")}, places=[SPOT_A])
    supervisor = sim.supervisor()
    while not sim.events(RunWaits):
        sim.clock.sleep(supervisor.turn() or 0)
    for _ in range(5):
        sim.clock.sleep(supervisor.turn() or 0)

    waiting = sim.state().pause
    supervisor.supervise()

    assert waiting == Pause(since=after(0), why="no place has capacity")
    assert sim.events(RunWaits) == [RunWaits(why="no place has capacity")]
    assert (sim.state().pause, sim.state().outcome) == (None, "succeeded")


def test_a_machine_that_comes_after_its_launch_was_given_up_is_never_billed() -> None:
    sim = a_run({1: Fate(grant_seconds=RULES.launch_seconds + 30)})

    state = sim.supervisor().supervise()

    assert state.attempts[0].outcome == "lost"
    assert job_name(RUN, 1) not in sim.backend.machines


def test_a_machine_that_comes_late_is_billed_from_its_grant() -> None:
    sim = a_run({1: Fate(grant_seconds=500)})

    state = sim.supervisor().supervise()

    assert state.outcome == "succeeded"
    assert spent_usd(state, sim.clock.now()) == sim.backend.billed_usd(sim.clock.now())


def test_who_stopped_the_run_is_kept() -> None:
    sim = a_run()
    sim.ledger.append(RUN, [StopRequested(by="grace")], after_seq=1, at=sim.clock.now())

    state = sim.supervisor().supervise()

    assert (state.outcome, state.detail) == ("cancelled", "stopped by grace")
    assert sim.backend.grants == []


class SetBack:
    """The clock of a machine whose time was set back by an hour between two supervisors."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def now(self) -> datetime:
        return self._clock.now() - timedelta(hours=1)

    def sleep(self, seconds: float) -> None:
        self._clock.sleep(seconds)


def test_a_clock_that_was_set_back_never_turns_the_bill_back() -> None:
    sim = a_run({1: Fate(life_seconds=4000)})
    first = sim.supervisor()
    for _ in range(40):
        sim.clock.sleep(first.turn() or 0.0)
    before = spent_usd(sim.state(), sim.state().at)

    state = replace(sim.supervisor(), clock=SetBack(sim.clock)).supervise()

    instants = [entry.at for entry in sim.ledger.read(RUN)]
    assert state.outcome == "succeeded"
    assert instants == sorted(instants)
    assert spent_usd(state, state.at) >= before > 0


def test_a_checkpoint_is_brought_beside_the_machine_before_the_machine_is_asked_for() -> None:
    here = an_option(a_placement(an_offer(zone="a", region="east"), usd_per_hour="6"))
    there = an_option(a_placement(an_offer(zone="b", region="west"), usd_per_hour="7"))
    sim = a_run({1: Fate(life_seconds=300)}, places=[here, there])
    sim.folders.is_regional = True
    machines_at_move: list[list[str]] = []

    def check(call: str) -> None:
        if call == "folders.replicate":
            machines_at_move.append(sim.backend.running())

    supervise_watched(sim, check)

    state = sim.state()
    uri = state.submitted.run_uri
    assert machines_at_move == [[]]
    assert sim.folders.brought == [(f"{uri}/east/{RUN}", f"{uri}/west/{RUN}")]
    assert [attempt.run_uri for attempt in state.attempts] == [f"{uri}/east/{RUN}", f"{uri}/west/{RUN}"]
    assert state.attempts[1].replicated_bytes == 10**9


def test_where_the_newest_checkpoint_is_damaged_an_older_one_is_brought_once() -> None:
    here = an_option(a_placement(an_offer(zone="a", region="east"), usd_per_hour="6"))
    there = an_option(a_placement(an_offer(zone="b", region="west"), usd_per_hour="7"))
    sim = a_run({1: Fate(life_seconds=300), 2: Fate(grant_seconds=120)}, places=[here, there])
    sim.folders.is_regional = sim.folders.is_newest_damaged = True

    supervise_watched(sim, lambda _call: None)

    assert sim.backend.launch_calls[job_name(RUN, 2)] > 2  # it was asked for again and again until it was there
    assert len(sim.folders.brought) == 1


def test_a_checkpoint_is_brought_from_the_copy_whose_way_was_priced() -> None:
    places = [
        an_option(a_placement(an_offer(zone="a", region=region), usd_per_hour=usd))
        for region, usd in (("east", "6"), ("north", "7"), ("west", "8"))
    ]
    sim = a_run({1: Fate(life_seconds=300), 2: Fate(refusal="no_capacity")}, places=places)
    uri = sim.submit.run_uri
    sim.places = [replace(place, move_from=f"{uri}/east") for place in places]
    sim.folders.is_regional = True

    supervise_watched(sim, lambda _call: None)

    east, north, west = (f"{uri}/{region}/{RUN}" for region in ("east", "north", "west"))
    assert sim.folders.brought == [(east, north), (east, west)]


def test_what_a_trainer_wrote_while_its_machine_was_asked_for_is_heard() -> None:
    sim = a_run({1: Fate(life_seconds=300, notice_seconds=60)})

    def slow(call: str) -> None:
        if call == "backend.phase" and sim.backend.running() and sim.clock.now() < after(300):
            sim.clock.sleep(240)  # as long as a connection to a dying machine may take

    supervise_watched(sim, slow)

    first = sim.state().attempts[0]
    assert first.noticed_at is not None
    assert first.detail == "saved on the notice"


def test_a_stop_is_heard_though_there_is_news_at_every_look() -> None:
    busy = Work(steps=600, step_seconds=10, setup_seconds=30, save_seconds=1, every_steps=1)
    sim = a_run(work=busy, submit=a_submit(a_spec(steps=600)))

    def slow(call: str) -> None:
        if call == "backend.phase" and sim.backend.running():
            sim.clock.sleep(25)  # so that a save is new every time
        if call == "backend.phase" and sim.state().step > 20 and not sim.state().stop_requested_at:
            sim.ask_to_stop()

    supervise_watched(sim, slow)

    state = sim.state()
    assert state.outcome == "cancelled"
    assert state.step < 40
