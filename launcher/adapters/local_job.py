"""One job of the local backend on disk, and the processes that belong to it.

    request.json    what the machine shall do; exists since the machine was granted
    claim.json      the machine's pid, create time and instant; linked into place, so that there is only ever one
    command.json    pid and create time of the session that runs `setup` or `run`
    exit.json       the command's exit code
    gone.json       the machine ended by itself: when, and why
    released        there will be no machine for this job, or no more
    alive           touched by the machine while it lives
    supervisor      touched by the backend whenever somebody asks for the job
    output.log      of setup and run;  machine.log: of the machine itself;  lock: held while launching or stopping

Instants in these files are wall-clock UTC.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

JOB_VARIABLE = "LAUNCH_JOB"
"""Marks every process of an attempt, so that those that lost their parent are found."""

# A create time is kept as wall-clock seconds and moves with a corrected clock; a pid does not come back that fast.
_SAME_SECONDS = 2.0
_KILL_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """Identity of a process that survives the reuse of its pid."""

    pid: int
    created: float

    @classmethod
    def of(cls, pid: int) -> Birth:
        """Raises: psutil.NoSuchProcess."""
        return cls(pid=pid, created=psutil.Process(pid).create_time())

    @property
    def is_alive(self) -> bool:
        """A zombie is dead: nobody may ever reap it, where pid 1 is no init."""
        try:
            process = psutil.Process(self.pid)
            return self._matches(process.create_time()) and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def _matches(self, created: float) -> bool:
        return abs(created - self.created) < _SAME_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The one machine of a job, dead or alive."""

    birth: Birth
    at: datetime


class JobFolder:
    """The files of one job."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.job = path.name

    @property
    def output_path(self) -> Path:
        return self.path / "output.log"

    @property
    def machine_log_path(self) -> Path:
        return self.path / "machine.log"

    @property
    def lock_path(self) -> Path:
        return self.path / "lock"

    def create(self) -> None:
        """Readable by the user alone: a request's environment may hold secrets."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def read(self, name: str) -> dict[str, Any] | None:
        """Content of `<name>.json`, `None` where it does not exist."""
        try:
            content: dict[str, Any] = json.loads((self.path / f"{name}.json").read_text())
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Replace `<name>.json` in one step: a reader sees all of it or nothing."""
        self._fresh(content).replace(self.path / f"{name}.json")

    def claim(self, birth: Birth, at: datetime) -> bool:
        """Make `birth` the job's machine; false where the job has, or had, another one."""
        fresh = self._fresh({"pid": birth.pid, "created": birth.created, "at": at.isoformat()})
        try:
            (self.path / "claim.json").hardlink_to(fresh)
        except FileExistsError:
            return False
        finally:
            fresh.unlink()
        return True

    def claimed(self) -> Claim | None:
        content = self.read("claim")
        if content is None:
            return None
        birth = Birth(pid=content["pid"], created=content["created"])
        return Claim(birth=birth, at=datetime.fromisoformat(content["at"]))

    @property
    def is_released(self) -> bool:
        return (self.path / "released").exists()

    def release(self) -> None:
        (self.path / "released").touch()

    def touch(self, name: str) -> None:
        (self.path / name).touch()

    def touched_at(self, name: str) -> datetime | None:
        try:
            return datetime.fromtimestamp((self.path / name).stat().st_mtime, UTC)
        except FileNotFoundError:
            return None

    def command(self) -> Birth | None:
        """Leader of the session that runs the job's command."""
        content = self.read("command")
        return Birth(pid=content["pid"], created=content["created"]) if content else None

    def _fresh(self, content: dict[str, Any]) -> Path:
        path = self.path / f".{uuid.uuid4().hex}"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(content, file)
        return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A live process, as one look at the machine showed it."""

    process: psutil.Process
    created: float
    parent: int
    session: int
    job: str | None  # its JOB_VARIABLE


def look() -> tuple[Seen, ...]:
    """Every live process that may be examined, this one excepted."""
    return tuple(seen for process in psutil.process_iter() if (seen := _seen(process)) and process.pid != os.getpid())


def members(folder: JobFolder, everything: Iterable[Seen]) -> tuple[Seen, ...]:
    """The processes of a job: its machine, what carries its name, its command's session, and all their descendants."""
    everything = tuple(everything)
    claim, command = folder.claimed(), folder.command()
    leaders = {seen.process.pid: seen.created for seen in everything}
    found: dict[int, Seen] = {}
    for seen in everything:
        is_machine = claim is not None and _is(seen, claim.birth)
        in_session = command is not None and _in_session(seen, command, leaders.get(command.pid))
        if is_machine or in_session or seen.job == folder.job:
            found[seen.process.pid] = seen
    return _with_descendants(found, everything)


def kill(folder: JobFolder) -> None:
    """SIGKILL everything that belongs to the job, this process excepted; returns when nothing of it is alive.

    Raises: TimeoutError: a process does not die, e.g. within a hanging mount.
    """
    patience = time.monotonic() + _KILL_SECONDS
    while left := members(folder, look()):
        if time.monotonic() > patience:
            pids = ", ".join(str(seen.process.pid) for seen in left)
            raise TimeoutError(f"processes {pids} of {folder.job} survive SIGKILL")
        for seen in left:
            with contextlib.suppress(psutil.Error):
                seen.process.kill()
        psutil.wait_procs([seen.process for seen in left], timeout=0.05)


def signal_all(folder: JobFolder, signal: int, *, spare: Collection[int]) -> None:
    """Send `signal` to every process of the job but `spare`, as a system does that shuts down."""
    for seen in members(folder, look()):
        if seen.process.pid not in spare:
            with contextlib.suppress(psutil.Error):
                seen.process.send_signal(signal)


def _seen(process: psutil.Process) -> Seen | None:
    try:
        with process.oneshot():
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            created, parent = process.create_time(), process.ppid()
        return Seen(
            process=process, created=created, parent=parent, session=os.getsid(process.pid), job=_job_of(process)
        )
    except (psutil.Error, ProcessLookupError, PermissionError):
        return None


def _job_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(JOB_VARIABLE)
    except (psutil.AccessDenied, OSError):  # somebody else's
        return None


def _is(seen: Seen, birth: Birth) -> bool:
    return seen.process.pid == birth.pid and abs(seen.created - birth.created) < _SAME_SECONDS


def _in_session(seen: Seen, leader: Birth, leader_created: float | None) -> bool:
    """A session keeps its number while a member lives, so only a new leader or a reboot gives it to others."""
    reused = leader_created is not None and abs(leader_created - leader.created) >= _SAME_SECONDS
    return seen.session == leader.pid and not reused and psutil.boot_time() <= leader.created <= seen.created + 1


def _with_descendants(found: dict[int, Seen], everything: tuple[Seen, ...]) -> tuple[Seen, ...]:
    children: dict[int, list[Seen]] = {}
    for seen in everything:
        children.setdefault(seen.parent, []).append(seen)
    todo = list(found)
    while todo:
        for child in children.get(todo.pop(), []):
            if child.process.pid not in found:
                found[child.process.pid] = child
                todo.append(child.process.pid)
    return tuple(found.values())
