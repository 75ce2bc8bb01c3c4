"""The program that stands for a rented machine: `python -m launcher.adapters.local_machine <job folder>`.

It outlives the launcher. It claims the job, boots, runs `setup` and `run`, warns of its end the way its
provider does, and vanishes with everything on it: when the market takes it, when it was idle too long, when no
supervisor asked for it too long, when it was released. A command that ends leaves it standing, as billed as before.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from launcher.adapters.local_job import JOB_VARIABLE, Birth, JobFolder, kill, signal_all
from launcher.adapters.local_metadata import MetadataService
from launcher.adapters.system_clock import SystemClock

log = logging.getLogger(__name__)

_TICK_SECONDS = 0.1
_ALIVE_SECONDS = 1.0
_SHELL_CANNOT_START = 127  # what a shell says of a command that is not there


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a machine is to do, as the backend wrote it to `request.json`. Instants are wall-clock."""

    setup: str | None
    run: str
    workdir: str
    env: dict[str, str]
    is_spot: bool
    is_pretend: bool  # it has metadata services
    up_at: datetime
    taken_at: datetime | None  # preempted then
    notice_via: str
    notice_at: datetime | None
    rebalance_at: datetime | None
    idle_seconds: float
    silence_seconds: float

    def to_json(self) -> dict[str, Any]:
        names = self.__slots__
        return {name: _plain(getattr(self, name)) for name in names}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Orders:
        instants = {
            name: datetime.fromisoformat(content[name]) for name in content if name.endswith("_at") and content[name]
        }
        return cls(**content | instants)


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    at: datetime
    why: str


class Machine:
    """One claimed job, from boot to its end."""

    def __init__(self, folder: JobFolder, orders: Orders, clock: SystemClock, metadata: MetadataService) -> None:
        self._folder = folder
        self._orders = orders
        self._clock = clock
        self._metadata = metadata
        self._command: subprocess.Popen[bytes] | None = None
        self._todo = [("setup", orders.setup), ("run", orders.run)] if orders.setup else [("run", orders.run)]
        self._exited_at: datetime | None = None
        self._due = self._announcements()
        self._supervisor_at = clock.now()
        self._supervisor_touch = folder.touched_at("supervisor")
        self._alive_at: datetime | None = None
        self._terminated = False

    def live(self) -> None:
        """Returns when the machine's time is over and nothing runs on it any more."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_shutdown)
        while (end := self._end(self._clock.now())) is None and not self._folder.is_released:
            self._sign_of_life()
            self._announce()
            self._work()
            self._clock.sleep(_TICK_SECONDS)
        if end is not None:
            self._folder.write("gone", {"at": end.at.isoformat(), "why": end.why})
        kill(self._folder)

    def _on_shutdown(self, number: int, frame: object) -> None:
        self._terminated = True

    def _end(self, now: datetime) -> _End | None:
        """Whether the machine's time is over. Preempted is preempted at the market's instant, however late we look."""
        orders = self._orders
        if orders.taken_at is not None and now >= orders.taken_at:
            return _End(at=orders.taken_at, why="preempted")
        if self._metadata.expedited.is_set():
            return _End(at=now, why="preempted; the trainer had agreed")
        if self._terminated:
            return _End(at=now, why="this computer shut it down")
        if self._exited_at is not None and now - self._exited_at >= timedelta(seconds=orders.idle_seconds):
            return _End(at=now, why=f"idle for {orders.idle_seconds:g} s")
        if now - self._heard_of_supervisor(now) >= timedelta(seconds=orders.silence_seconds):
            return _End(at=now, why=f"no supervisor for {orders.silence_seconds:g} s")
        return None

    def _heard_of_supervisor(self, now: datetime) -> datetime:
        """Counts from when a touch was seen, on this clock: a corrected wall clock is no silence."""
        touch = self._folder.touched_at("supervisor")
        if touch != self._supervisor_touch:
            self._supervisor_touch, self._supervisor_at = touch, now
        return self._supervisor_at

    def _sign_of_life(self) -> None:
        now = self._clock.now()
        if self._alive_at is None or now - self._alive_at >= timedelta(seconds=_ALIVE_SECONDS):
            self._alive_at = now
            self._folder.touch("alive")

    def _announcements(self) -> list[tuple[datetime, Callable[[], None]]]:
        orders, due = self._orders, list[tuple[datetime, Callable[[], None]]]()
        if orders.rebalance_at is not None:
            recommended_at = orders.rebalance_at
            due.append((recommended_at, lambda: self._metadata.recommend_rebalance(recommended_at)))
        if orders.notice_at is not None and orders.taken_at is not None:
            taken_at = orders.taken_at
            due.append((orders.notice_at, lambda: self._give_notice(taken_at)))
        return due

    def _announce(self) -> None:
        now = self._clock.now()
        ripe = [give for at, give in self._due if at <= now]
        self._due = [(at, give) for at, give in self._due if at > now]
        for give in ripe:
            give()

    def _give_notice(self, taken_at: datetime) -> None:
        log.info("notice via %s, taken at %s", self._orders.notice_via, taken_at.isoformat())
        match self._orders.notice_via:
            case "ec2":
                self._metadata.announce_ec2(taken_at)
            case "azure":
                self._metadata.announce_azure(taken_at)
            case "gce":  # the flag, and a soft power-off: every process gets SIGTERM
                self._metadata.announce_gce()
                signal_all(self._folder, signal.SIGTERM, spare=(os.getpid(),))
            case "signal":
                signal_all(self._folder, signal.SIGTERM, spare=(os.getpid(),))

    def _work(self) -> None:
        if self._command is None:
            if self._todo and self._clock.now() >= self._orders.up_at:
                self._start(*self._todo.pop(0))
            return
        code = self._command.poll()
        if code is None:
            return
        self._command = None
        if code != 0 or not self._todo:
            self._record_exit(code if code >= 0 else 128 - code)

    def _start(self, name: str, command: str) -> None:
        env = os.environ | self._orders.env | {JOB_VARIABLE: self._folder.job}
        if self._orders.is_pretend:
            env |= self._metadata.environment()
        try:
            with self._folder.output_path.open("ab") as output:
                self._command = subprocess.Popen(
                    ["bash", "-c", command],
                    cwd=self._orders.workdir,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            with self._folder.output_path.open("a") as output_text:
                output_text.write(f"{name} cannot start: {error}\n")
            self._record_exit(_SHELL_CANNOT_START)
            return
        birth = Birth.of(self._command.pid)  # not reaped yet, so it is there even if it has ended
        self._folder.write("command", {"name": name, "pid": birth.pid, "created": birth.created})

    def _record_exit(self, code: int) -> None:
        self._todo.clear()
        self._exited_at = self._clock.now()
        self._folder.write("exit", {"code": code, "at": self._exited_at.isoformat()})


def main(folder: JobFolder) -> None:
    """Become the job's machine, or end if it has one already."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    clock = SystemClock()
    _detach(folder, clock)
    try:
        content = folder.read("request")
        assert content is not None, "a machine is started behind its request"
        orders = Orders.from_json(content)
        with MetadataService(vm_name=folder.job, is_spot=orders.is_spot) as metadata:
            Machine(folder, orders, clock, metadata).live()
    except Exception:
        log.exception("the machine broke")
        if folder.read("gone") is None:
            folder.write("gone", {"at": clock.now().isoformat(), "why": "the machine broke; see machine.log"})
        kill(folder)
        raise


def _detach(folder: JobFolder, clock: SystemClock) -> None:
    """Returns in the process that is the job's machine now, a child of nobody who waits for it.

    The process that was started ends with 0 as soon as the job has a machine, this one or another.
    """
    settled, settle = os.pipe()
    if os.fork():
        os.close(settle)
        os._exit(0 if os.read(settled, 1) else 1)
    os.close(settled)
    os.setsid()
    is_mine = folder.claim(Birth.of(os.getpid()), clock.now())
    if folder.is_released:  # a release that missed this process is seen here, before anything has started
        os._exit(1)
    os.write(settle, b"1")
    os.close(settle)
    if not is_mine:
        os._exit(0)


if __name__ == "__main__":
    main(JobFolder(Path(sys.argv[1])))
