"""Who supervises a run: a process on this machine, or one on a machine that is hired; and what others see of it."""

from __future__ import annotations

import getpass
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING

from launcher import engines
from launcher.adapters.system_clock import SystemClock
from launcher.core.prices.supervision import Host, Sign, supervisor_name
from launcher.core.runs.events import SupervisorHired, SupervisorReleased
from launcher.core.runs.takeover import UNSEEN
from launcher.errors import BackendError, InputError, LaunchError, Problem, RunFailed

if TYPE_CHECKING:
    from filelock import FileLock

    from launcher.adapters.fsspec_journal import FsspecJournal
    from launcher.adapters.shared_output import SharedOutput
    from launcher.core.offers import Offer
    from launcher.core.runs.state import RunState
    from launcher.wiring import Wiring

HIRE_SECONDS = 1200.0  # from the request of a supervisor's machine to its first sign of life
HIRE_LOOK_SECONDS = 2.0


# --- on this machine ---


def lock(wiring: Wiring, run_id: str) -> FileLock:
    """Held by the run's supervisor for as long as it lives."""
    from filelock import FileLock

    folder = wiring.settings.state_folder / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{run_id}.lock")


def is_supervised_here(wiring: Wiring, run_id: str) -> bool:
    """Whether somebody on this machine holds the run's lock."""
    from filelock import Timeout

    try:
        with lock(wiring, run_id).acquire(timeout=0):
            return False
    except Timeout:
        return True


def log_path(wiring: Wiring, run_id: str) -> Path:
    """Where the run's detached supervisor writes."""
    folder = wiring.settings.state_folder / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{run_id}.log"


def start(wiring: Wiring, run_id: str) -> None:
    """A process of its own that outlives this one and its terminal; harmless where the run has one already.

    The shell puts it into the background and ends, so that it is nobody's child who would have to wait for it.
    """
    with log_path(wiring, run_id).open("ab") as log:
        subprocess.run(
            ["sh", "-c", '"$@" &', "sh", sys.executable, "-m", "launcher.supervise", run_id],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            check=True,
        )


# --- anywhere ---


def _place(wiring: Wiring) -> str:
    """This machine, and on it whatever shares its locks."""
    return f"{gethostname()}:{wiring.settings.state_folder}"


def sign(wiring: Wiring, state: RunState) -> Sign | None:
    """The newest sign of life of a supervisor, wherever it lived; `None` too where the folder does not answer."""
    from launcher.adapters.sign_of_life import read_sign

    if not wiring.settings.has_shared_ledger:
        return None  # nobody else can know of the run
    try:
        return read_sign(_run_folder(state))
    except BackendError:
        return None


def _run_folder(state: RunState) -> FsspecJournal:
    from launcher.adapters.fsspec_journal import FsspecJournal

    return FsspecJournal(state.submitted.run_uri, clock=SystemClock())


def is_supervised(wiring: Wiring, state: RunState, heard: Sign | None) -> bool:
    """By somebody on this machine, or by whoever gave the sign `heard` just now."""
    return is_supervised_here(wiring, state.run_id) or _is_living_elsewhere(wiring, heard)


def is_supervised_elsewhere(wiring: Wiring, state: RunState) -> bool:
    return _is_living_elsewhere(wiring, sign(wiring, state))


def _is_living_elsewhere(wiring: Wiring, heard: Sign | None) -> bool:
    return heard is not None and heard.place != _place(wiring) and heard.is_fresh(SystemClock().now())


def sign_from_elsewhere(wiring: Wiring, state: RunState) -> Sign | None:
    """As `sign`; `None` too for one that this machine gave."""
    heard = sign(wiring, state)
    return None if heard is None or heard.place == _place(wiring) else heard


@contextmanager
def showing(wiring: Wiring, state: RunState, *, by: str) -> Iterator[None]:
    """Let those who share the ledger see that the run has a supervisor, and what its attempts print."""
    from launcher.adapters.shared_output import sharing_output
    from launcher.adapters.sign_of_life import giving_signs

    if not wiring.settings.has_shared_ledger:
        yield
        return
    now = SystemClock().now
    first = Sign(place=_place(wiring), by=by, since=now(), at=now())
    with (  # the last output is there before the last sign
        giving_signs(_run_folder(state), first, now=now),
        sharing_output(state.submitted.run_uri, lambda: engines.output_paths(wiring, wiring.state(state.run_id))),
    ):
        yield


def shared_output(wiring: Wiring, state: RunState) -> SharedOutput | None:
    """What the attempts print, where they are supervised on another machine."""
    from launcher.adapters.shared_output import SharedOutput

    return SharedOutput(state.submitted.run_uri) if sign_from_elsewhere(wiring, state) else None


# --- on a machine that is hired ---


def hire(wiring: Wiring, run_id: str, offer: Offer, *, telling: Callable[[str], None]) -> None:
    """Ask for the machine, and wait until its supervisor says that it lives: then this one may be closed.

    Raises: InputError: none is offered beside `offer`. RunFailed: the run is recorded, and has no supervisor.
    BackendError: nor is it known whether its former one is gone.
    """
    host = wiring.outpost.host(offer)
    if not isinstance(host, Host):
        raise InputError([Problem("L153", host.reason)])
    state = _release_former(wiring, run_id)
    number = len(state.hired) + 1
    hired = SupervisorHired(
        number=number,
        where=host.infra,
        instance_type=host.instance_type,
        usd_per_hour=host.usd_per_hour,
        basis=host.basis,
        closing_seconds=host.closing_seconds,
        by=getpass.getuser(),
    )
    state = wiring.record(run_id, hired)
    what = f"{host.instance_type or 'a small machine'} at {host.infra}, ${host.usd_per_hour:,.2f}/h"
    telling(f"a machine for the supervisor is hired: {what}; leave this one on until it is there")
    try:
        wiring.outpost.hire(state, host, number, now=SystemClock().now())
        _await_sign(wiring, run_id)
    except LaunchError as error:
        _release(wiring, run_id, number, why=error)
        raise RunFailed(f"{run_id} has no supervisor: {error}; `launch resume {run_id}` tries again") from error
    telling("the supervisor is there; this machine is no longer needed")


def _release(wiring: Wiring, run_id: str, number: int, *, why: LaunchError) -> None:
    """Raises: RunFailed: it may still be there, so it is billed until the next hire releases it."""
    try:
        was_there = wiring.outpost.dismiss(run_id)
    except LaunchError as error:
        doubt = f"its machine may still be there ({error})"
        raise RunFailed(f"{run_id} has no supervisor: {why}; {doubt}; `launch resume {run_id}` tries again") from error
    wiring.record(run_id, SupervisorReleased(number=number, was_there=was_there, detail=str(why)))


def _await_sign(wiring: Wiring, run_id: str) -> None:
    """Raises: LaunchRefused: its machine was not granted, or could not be set up. RunFailed: it keeps silent."""
    clock = SystemClock()
    until = clock.now() + timedelta(seconds=HIRE_SECONDS)
    while not is_supervised_elsewhere(wiring, state := wiring.state(run_id)) and not state.is_finished:
        if clock.now() > until:
            raise RunFailed(f"no sign of it in {HIRE_SECONDS / 60:.0f} min; `sky logs {supervisor_name(run_id)}`")
        with suppress(BackendError):  # SkyPilot is asked again
            wiring.outpost.demand_hired(run_id)
        clock.sleep(HIRE_LOOK_SECONDS)


def _release_former(wiring: Wiring, run_id: str) -> RunState:
    """Raises: BackendError: nobody knows whether it is gone."""
    state = wiring.state(run_id)
    for former in (h for h in state.hired if h.until is None):
        detail = "it gave no sign of life and was ended" if wiring.outpost.dismiss(run_id) else UNSEEN
        state = wiring.record(run_id, SupervisorReleased(number=former.number, was_there=True, detail=detail))
    return state
