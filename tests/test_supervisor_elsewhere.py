"""A supervisor whose SkyPilot knows nothing of what its predecessor, on another machine, has launched."""

from __future__ import annotations

from typing import Any

from launcher.core.runs.machine import LaunchRequest, Phase
from launcher.core.runs.state import attempt_of, job_name
from launcher.core.runs.takeover import takeover
from launcher.ports import Backend
from tests.builders import RUN, a_spec, a_submit, after
from tests.machines import Fate, Work
from tests.sim import Sim, a_sim
from tests.test_supervisor import RULES, SPOT_A, SPOT_B
from tests.test_supervisor_handover import to_spot


class Stranger:
    """The backend of another machine: attempts up to `theirs` were launched elsewhere."""

    def __init__(self, backend: Backend, theirs: int) -> None:
        self._backend = backend
        self._theirs = theirs

    def launch(self, request: LaunchRequest) -> None:
        self._backend.launch(request)

    def phase(self, job: str) -> Phase:
        return Phase(kind="absent") if attempt_of(job) <= self._theirs else self._backend.phase(job)

    def stop(self, job: str) -> None:
        if attempt_of(job) > self._theirs:
            self._backend.stop(job)

    def names(self, run_id: str) -> tuple[str, ...]:
        return tuple(job for job in self._backend.names(run_id) if attempt_of(job) > self._theirs)


def a_run(fate: dict[int, Fate]) -> Sim:
    work = Work(steps=60, step_seconds=10, setup_seconds=30, save_seconds=5, every_steps=10)
    submit = a_submit(a_spec(steps=60))
    return a_sim(fate=fate, places=[SPOT_A, SPOT_B], submit=submit, rules=RULES, work=work)


def until_training(sim: Sim) -> None:
    """The first supervisor's life."""
    first = sim.supervisor()
    while not any(a.training_at for a in sim.state().attempts):
        sim.clock.sleep(first.turn() or 0)


def supervise_as_a_stranger(sim: Sim, *, theirs: int) -> None:
    def wrap(name: str, port: Any) -> Any:
        return Stranger(port, theirs) if name == "backend" else port

    sim.supervisor(wrap).supervise()


def test_a_trainer_that_goes_on_speaking_is_left_alone_to_its_end() -> None:
    """What the command did behind the loop nobody has seen: that is done once more, from the last checkpoint."""
    sim = a_run({})
    until_training(sim)

    supervise_as_a_stranger(sim, theirs=1)

    theirs, ours = sim.state().attempts
    assert (theirs.outcome, theirs.step) == ("preempted", 60)
    assert (ours.outcome, ours.first_step) == ("completed", 60)


def test_a_trainer_that_falls_silent_is_succeeded() -> None:
    sim = a_run({1: Fate(life_seconds=200)})
    until_training(sim)

    supervise_as_a_stranger(sim, theirs=1)

    assert [a.outcome for a in sim.state().attempts] == ["preempted", "completed"]


def test_a_machine_that_waits_unseen_is_told_to_end() -> None:
    """Its supervisor is gone, the new one cannot stop it: it ends by itself, and the trainer goes on."""
    sim = to_spot(Fate(start_seconds=300))
    first = sim.supervisor()
    while len(sim.backend.running()) < 2:
        sim.clock.sleep(first.turn() or 0)
    step, events = sim.state().step, takeover(sim.state(), number=None, is_elsewhere=True)
    sim.ledger.append(RUN, events, after_seq=sim.state().seq, at=sim.clock.now())

    supervise_as_a_stranger(sim, theirs=2)

    trainer, waited, again = sim.state().attempts[:3]
    assert (waited.outcome, sim.backend.machines[job_name(RUN, 2)].exit_code) == ("lost", 75)
    assert (again.relieves, again.first_step) == (1, trainer.step)
    assert trainer.step > step


def test_a_launch_that_nobody_sees_is_not_asked_for_twice() -> None:
    sim = a_run({})
    sim.supervisor().turn(sweeping=True)
    assert [a.started_at for a in sim.state().attempts] == [None]

    sim.ledger.append(
        RUN, takeover(sim.state(), number=None, is_elsewhere=True), after_seq=sim.state().seq, at=after(5)
    )
    supervise_as_a_stranger(sim, theirs=1)

    assert [a.outcome for a in sim.state().attempts] == ["lost", "completed"]
