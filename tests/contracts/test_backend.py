"""What every backend promises. A backend joins by a lab in `LABS`; none is kinder than reality."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Protocol

import pytest

from launcher.core.offers import Capacity
from launcher.core.runs.state import job_name
from launcher.errors import LaunchRefused
from launcher.ports import Backend, LaunchRequest, Phase
from tests.local_lab import LocalLab, a_place, a_run_id, an_own_offer, stop_all

pytestmark = pytest.mark.system


class BackendLab(Protocol):
    """A backend, and the hands to play trainer and provider."""

    @property
    def backend(self) -> Backend: ...

    def another_backend(self) -> Backend:
        """The same machines as a restarted launcher sees them."""

    def request(self, job: str, *, place: str = "open", on_demand: bool = False) -> LaunchRequest:
        """For a trainer that runs until `finish`. `place`: open, full (no spot capacity) or unknown."""

    def finish(self, job: str, exit_code: int) -> None:
        """The running trainer ends."""

    def vanish(self, job: str) -> None:
        """The provider takes the machine."""

    def settled(self, job: str, kind: str) -> Phase:
        """The first phase of this kind, after as much time as it takes."""

    def now(self) -> datetime: ...


class LocalContract:
    """The local backend, with real processes."""

    def __init__(self, lab: LocalLab) -> None:
        self._lab = lab
        self.backend: Backend = lab.backend
        self.another_backend = lab.another_backend
        self.settled = lab.settled
        self.now = lab.now
        self.vanish = lab.crash_machine

    def request(self, job: str, *, place: str = "open", on_demand: bool = False) -> LaunchRequest:
        capacity = Capacity.ON_DEMAND if on_demand else Capacity.SPOT
        offer = an_own_offer() if place == "unknown" else self._lab.offer(place, capacity)
        return self._lab.request(job, offer, "until [ -e end ]; do sleep 0.05; done; exit $(cat end)")

    def finish(self, job: str, exit_code: int) -> None:
        fresh = self._lab.workdir(job) / "fresh"
        fresh.write_text(str(exit_code))
        fresh.replace(fresh.with_name("end"))


@contextmanager
def local_contract(folder: Path) -> Iterator[BackendLab]:
    lab = LocalLab(folder, [a_place("open"), a_place("full", available=[])])
    yield LocalContract(lab)
    stop_all(lab)


LABS: dict[str, Callable[[Path], AbstractContextManager[BackendLab]]] = {"local": local_contract}


@pytest.fixture(params=LABS)
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BackendLab]:
    with LABS[request.param](tmp_path) as lab:
        yield lab


@pytest.fixture
def run_id() -> str:
    return a_run_id()


@pytest.fixture
def job(run_id: str) -> str:
    return job_name(run_id, 1)


def test_a_job_that_was_never_launched_is_absent(lab: BackendLab, job: str, run_id: str) -> None:
    assert lab.backend.phase(job) == Phase(kind="absent")
    assert lab.backend.names(run_id) == ()


def test_a_launched_job_runs_and_is_billed_since_its_start(lab: BackendLab, job: str, run_id: str) -> None:
    before = lab.now()

    lab.backend.launch(lab.request(job))

    phase = lab.settled(job, "running")
    assert phase.started_at is not None
    assert before <= phase.started_at <= lab.now()
    assert lab.backend.names(run_id) == (job,)


def test_launching_again_leaves_the_machine_as_it_is(lab: BackendLab, job: str) -> None:
    lab.backend.launch(lab.request(job))
    first = lab.settled(job, "running")

    lab.another_backend().launch(lab.request(job))

    assert lab.backend.phase(job) == first


def test_a_restarted_launcher_sees_the_same_machine(lab: BackendLab, job: str, run_id: str) -> None:
    lab.backend.launch(lab.request(job))
    first = lab.settled(job, "running")

    assert lab.another_backend().phase(job) == first
    assert lab.another_backend().names(run_id) == (job,)


@pytest.mark.parametrize("exit_code", [0, 1, 75])
def test_a_trainer_that_ended_leaves_its_code_and_a_billed_machine(
    lab: BackendLab, job: str, run_id: str, exit_code: int
) -> None:
    lab.backend.launch(lab.request(job))
    started_at = lab.settled(job, "running").started_at

    lab.finish(job, exit_code)

    assert lab.settled(job, "exited") == Phase(kind="exited", exit_code=exit_code, started_at=started_at)
    assert lab.backend.names(run_id) == (job,)


def test_launching_an_ended_job_does_not_start_it_again(lab: BackendLab, job: str) -> None:
    lab.backend.launch(lab.request(job))
    lab.settled(job, "running")
    lab.finish(job, 0)
    ended = lab.settled(job, "exited")

    lab.backend.launch(lab.request(job))

    assert lab.backend.phase(job) == ended


def test_a_machine_that_vanished_is_gone_and_its_bill_has_an_end(lab: BackendLab, job: str, run_id: str) -> None:
    lab.backend.launch(lab.request(job))
    started_at = lab.settled(job, "running").started_at
    assert started_at is not None

    lab.vanish(job)

    phase = lab.settled(job, "gone")
    assert phase.started_at == started_at
    assert phase.gone_at is not None
    assert started_at <= phase.gone_at <= lab.now()
    assert lab.backend.names(run_id) == ()


def test_launching_a_vanished_job_does_not_bring_it_back(lab: BackendLab, job: str, run_id: str) -> None:
    lab.backend.launch(lab.request(job))
    lab.settled(job, "running")
    lab.vanish(job)
    gone = lab.settled(job, "gone")

    with suppress(LaunchRefused):
        lab.backend.launch(lab.request(job))

    assert lab.backend.phase(job) == gone
    assert lab.backend.names(run_id) == ()


def test_a_stopped_job_is_absent_as_soon_as_stop_returns(lab: BackendLab, job: str, run_id: str) -> None:
    lab.backend.launch(lab.request(job))
    lab.settled(job, "running")

    lab.backend.stop(job)

    assert lab.backend.phase(job) == Phase(kind="absent")
    assert lab.backend.names(run_id) == ()


def test_a_machine_is_released_right_after_its_launch(lab: BackendLab, job: str, run_id: str) -> None:
    lab.backend.launch(lab.request(job))

    lab.backend.stop(job)

    assert lab.backend.phase(job) == Phase(kind="absent")
    assert lab.backend.names(run_id) == ()


def test_stop_may_be_repeated_and_may_find_nothing(lab: BackendLab, job: str) -> None:
    lab.backend.stop(job)
    lab.backend.stop(job)

    assert lab.backend.phase(job) == Phase(kind="absent")


@pytest.mark.parametrize("end", ["finish", "vanish"])
def test_what_ended_by_itself_is_released_too(lab: BackendLab, job: str, run_id: str, end: str) -> None:
    lab.backend.launch(lab.request(job))
    lab.settled(job, "running")
    if end == "finish":
        lab.finish(job, 0)
        lab.settled(job, "exited")
    else:
        lab.vanish(job)
        lab.settled(job, "gone")

    lab.backend.stop(job)

    assert lab.backend.phase(job) == Phase(kind="absent")
    assert lab.backend.names(run_id) == ()


@pytest.mark.parametrize("was_launched", [True, False])
def test_a_stop_is_final(lab: BackendLab, job: str, run_id: str, was_launched: bool) -> None:
    if was_launched:
        lab.backend.launch(lab.request(job))
    lab.backend.stop(job)

    with suppress(LaunchRefused):
        lab.another_backend().launch(lab.request(job))

    assert lab.backend.phase(job) == Phase(kind="absent")
    assert lab.backend.names(run_id) == ()


def test_a_place_without_capacity_refuses_and_bills_nothing(lab: BackendLab, job: str, run_id: str) -> None:
    with pytest.raises(LaunchRefused) as refusal:
        lab.backend.launch(lab.request(job, place="full"))

    assert refusal.value.reason == "no_capacity"
    assert lab.backend.phase(job) == Phase(kind="absent")
    assert lab.backend.names(run_id) == ()


def test_on_demand_is_granted_where_spot_is_not(lab: BackendLab, job: str) -> None:
    lab.backend.launch(lab.request(job, place="full", on_demand=True))

    assert lab.settled(job, "running").started_at is not None


def test_a_place_nobody_knows_is_a_wrong_request(lab: BackendLab, job: str) -> None:
    with pytest.raises(LaunchRefused) as refusal:
        lab.backend.launch(lab.request(job, place="unknown"))

    assert refusal.value.reason == "rejected"
    assert lab.backend.phase(job) == Phase(kind="absent")


def test_names_are_those_of_one_run_in_order_of_attempt(lab: BackendLab, run_id: str) -> None:
    ours = [job_name(run_id, attempt) for attempt in (1000, 2, 999)]
    others = [job_name(f"{run_id}x", 1), job_name(f"x{run_id}", 1), job_name(f"{run_id}-001", 1)]
    for job in ours + others:
        lab.backend.launch(lab.request(job))

    assert lab.backend.names(run_id) == tuple(job_name(run_id, attempt) for attempt in (2, 999, 1000))


def test_stopping_one_job_leaves_the_others(lab: BackendLab, run_id: str) -> None:
    first, second = job_name(run_id, 1), job_name(run_id, 2)
    for job in (first, second):
        lab.backend.launch(lab.request(job))
    running = lab.settled(second, "running")

    lab.backend.stop(first)

    assert lab.backend.phase(second) == running
    assert lab.backend.names(run_id) == (second,)
