"""Attempts as processes of this computer: on the user's own machine, or on places of a pretend spot market.

A job is a folder (see `local_job`) and a detached machine process (see `local_machine`) that lives by the market
whether or not a launcher runs. This side grants, looks, and kills; it remembers nothing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import psutil
from filelock import FileLock

import launcher
from launcher.adapters.local_job import JOB_VARIABLE, Claim, JobFolder, kill, look, members
from launcher.adapters.local_machine import Orders
from launcher.adapters.local_market import Market, Outage, Place, is_available, next_outage
from launcher.adapters.system_clock import SystemClock
from launcher.core.offers import Capacity, Offer
from launcher.core.runs.state import attempt_of
from launcher.errors import BackendError, LaunchRefused
from launcher.ports import LaunchRequest, Phase

OWN_MACHINE = "local"
"""The provider of the user's own computer."""

_ABSENT = Phase(kind="absent")
_CLAIM_SECONDS = 60.0  # wall; a Python start takes 0.2 s on an idle computer
_SOURCES = Path(launcher.__file__).parent.parent


class LocalBackend:
    """One folder per job under `folder`.

    `idle_seconds` is launcher time: a machine whose command has ended shuts itself down after it.
    `silence_seconds` is wall time: so does a machine that no supervisor asked for that long.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: SystemClock,
        market: Market | None,
        idle_seconds: float = 600.0,
        silence_seconds: float = 3600.0,
    ) -> None:
        self._path = folder.absolute()
        self._clock = clock
        self._market = market
        self._idle_seconds = idle_seconds
        self._silence_seconds = silence_seconds

    def output_path(self, job: str) -> Path:
        """What setup and the command print; kept after the release."""
        return self._folder(job).output_path

    def launch(self, request: LaunchRequest) -> None:
        folder = self._folder(request.job)
        with _translated(request.job), self._locked(folder):
            if folder.is_released:
                raise LaunchRefused("unavailable", f"{request.job} was released; a new attempt needs a new number")
            folder.touch("supervisor")
            if folder.claimed() is not None:
                return
            if folder.read("request") is None:  # else it was granted, and the launcher died before it had a machine
                folder.write("request", self._granted(request).to_json())
            self._start_machine(folder)

    def phase(self, job: str) -> Phase:
        folder = self._folder(job)
        with _translated(job):
            claim = folder.claimed()
            if claim is None:
                return _ABSENT
            folder.touch("supervisor")
            if claim.birth.is_alive and folder.read("gone") is None:
                return self._living(folder, claim)
            kill(folder)  # nothing outlives its machine, however that ended
            return _ABSENT if folder.is_released else self._gone(folder, claim)

    def stop(self, job: str) -> None:
        folder = self._folder(job)
        with _translated(job):
            folder.create()
            folder.release()  # first: a machine that is being started sees it and ends
            with self._locked(folder):
                kill(folder)

    def names(self, run_id: str) -> tuple[str, ...]:
        with _translated(run_id):
            everything = look()
            stray = {seen.job for seen in everything if seen.job}
            known = {path.name for path in self._path.iterdir()} if self._path.is_dir() else set()
            ours = re.compile(re.escape(run_id) + r"-\d+")
            jobs = sorted((job for job in stray | known if ours.fullmatch(job)), key=attempt_of)
            return tuple(job for job in jobs if members(self._folder(job), everything))

    def _folder(self, job: str) -> JobFolder:
        return JobFolder(self._path / job)

    @contextmanager
    def _locked(self, folder: JobFolder) -> Iterator[None]:
        folder.create()
        with FileLock(folder.lock_path):
            yield

    def _granted(self, request: LaunchRequest) -> Orders:
        """Raises: LaunchRefused."""
        offer, nodes = request.placement.offer, request.placement.nodes
        if not Path(request.workdir).is_dir():
            raise LaunchRefused("rejected", f"workdir {request.workdir} is not a folder")
        if self._market is None and offer.provider == OWN_MACHINE:
            if nodes > 1:
                raise LaunchRefused("rejected", f"{nodes} nodes are wanted; this computer is one")
            return self._orders(request, None, None)
        if self._market is None:
            raise LaunchRefused(
                "rejected",
                f"{offer.where} is a cloud; this version runs on this computer: "
                "ask for provider local, or give the run a market to simulate one",
            )
        place = self._market.place(offer)
        if place is None or not _is_sold(place, offer):
            raise LaunchRefused(
                "rejected", f"the market has no {offer.capacity} {offer.instance_type} in {offer.where}"
            )
        return self._orders(request, place, self._outage(place, offer))

    def _outage(self, place: Place, offer: Offer) -> Outage | None:
        if offer.capacity is not Capacity.SPOT:
            return None
        at_seconds = (self._clock.now() - self._clock.epoch).total_seconds()
        if not is_available(place, at_seconds):
            raise LaunchRefused("no_capacity", f"{offer.where} has no spot {offer.instance_type} now")
        return next_outage(place, at_seconds)

    def _orders(self, request: LaunchRequest, place: Place | None, outage: Outage | None) -> Orders:
        is_spot = request.placement.offer.capacity is Capacity.SPOT
        up_at = self._clock.now() + timedelta(seconds=_start_seconds(place, is_spot=is_spot))
        via = outage.notice.via if outage else "none"
        taken_at = self._clock.epoch + timedelta(seconds=outage.at_seconds) if outage else None
        return Orders(
            setup=request.setup,
            run=request.run,
            workdir=request.workdir,
            env=dict(request.env),
            is_spot=is_spot,
            is_pretend=place is not None,
            up_at=self._clock.to_wall(up_at),
            taken_at=self._wall(taken_at, 0.0),
            notice_via=via,
            notice_at=self._wall(taken_at, outage.notice.seconds if outage and via != "none" else None),
            rebalance_at=self._wall(taken_at, outage.rebalance_seconds if outage else None),
            idle_seconds=self._idle_seconds / self._clock.scale,
            silence_seconds=self._silence_seconds,
        )

    def _wall(self, at: datetime | None, before_seconds: float | None) -> datetime | None:
        if at is None or before_seconds is None:
            return None
        return self._clock.to_wall(at - timedelta(seconds=before_seconds))

    def _start_machine(self, folder: JobFolder) -> None:
        """Returns when the job has a machine. Raises: BackendError, LaunchRefused: a release came first."""
        with folder.machine_log_path.open("ab") as machine_log:
            starter = subprocess.Popen(
                [sys.executable, "-m", "launcher.adapters.local_machine", str(folder.path)],
                cwd=_SOURCES,  # `-m` looks here first: the machine runs this launcher's code, not another's
                env=os.environ | {JOB_VARIABLE: folder.job},
                stdin=subprocess.DEVNULL,
                stdout=machine_log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        with starter:
            try:
                code = starter.wait(_CLAIM_SECONDS)
            except subprocess.TimeoutExpired:
                starter.kill()
                raise BackendError(f"no machine for {folder.job} within {_CLAIM_SECONDS:g} s; ask again") from None
        if folder.is_released:
            raise LaunchRefused("unavailable", f"{folder.job} was released while it was being launched")
        if code != 0:
            raise BackendError(f"the machine of {folder.job} did not start; see {folder.machine_log_path}")

    def _living(self, folder: JobFolder, claim: Claim) -> Phase:
        started_at = self._clock.from_wall(claim.at)
        ended, command = folder.read("exit"), folder.read("command")
        if ended is not None:
            return Phase(kind="exited", exit_code=ended["code"], started_at=started_at)
        is_running = command is not None and command["name"] == "run"
        return Phase(kind="running" if is_running else "starting", started_at=started_at)

    def _gone(self, folder: JobFolder, claim: Claim) -> Phase:
        """Of a machine that could not say when it went, the last sign of life counts."""
        gone, ended = folder.read("gone"), folder.read("exit")
        at = datetime.fromisoformat(gone["at"]) if gone else folder.touched_at("alive") or claim.at
        return Phase(
            kind="gone",
            exit_code=ended["code"] if ended else None,
            started_at=self._clock.from_wall(claim.at),
            gone_at=self._clock.from_wall(max(at, claim.at)),
        )


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except (
        OSError,
        psutil.Error,
        ValueError,
        KeyError,
    ) as error:  # a full disk, a damaged file, a process that does not die
        raise BackendError(f"{what}: {error}") from error


def _is_sold(place: Place, offer: Offer) -> bool:
    match offer.capacity:
        case Capacity.SPOT:
            return bool(place.spot_usd_per_hour)
        case Capacity.ON_DEMAND:
            return place.on_demand_usd_per_hour is not None
        case Capacity.RESERVED:
            return False


def _start_seconds(place: Place | None, *, is_spot: bool) -> float:
    if place is None:
        return 0.0
    slower = place.on_demand_start_seconds
    return place.start_seconds if is_spot or slower is None else slower
