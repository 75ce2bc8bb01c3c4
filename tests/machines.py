"""A rented machine and the training on it, in simulated time.

The trainer's life is a generator: each yield is an instant it must live to see. A machine that is taken or stopped,
or a process that is killed, is simply never resumed, so that what was not written or committed by then is lost. One
that relieves another waits for its go as the hooks do, and then goes on from what its own run folder has.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from launcher.core.offers import Placement
from launcher.core.runs.journal import (
    EndReason,
    JournalLine,
    TrainerCommitted,
    TrainerEnded,
    TrainerNoticed,
    TrainerStarted,
    TrainerStepped,
)
from launcher.core.runs.state import attempt_of
from launcher.errors import RefusalReason

HEARTBEAT_SECONDS = 15.0
FLUSH_SECONDS = 60.0
STOPPED_CODE = 75
GO_SECONDS = 5.0  # between two looks for a go, in an object store


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What becomes of one launch; every time counts from the grant."""

    refusal: RefusalReason | None = None
    refused_calls: float = math.inf  # with `refusal`: so many calls are refused, the next is granted
    grant_seconds: float = 0.0  # from the launch to the machine; `inf`: the launch hangs for ever
    start_seconds: float = 30.0  # until the command runs
    life_seconds: float = math.inf  # until the market takes the machine
    notice_seconds: float | None = None  # warning before that, if there is one
    killed_seconds: float = math.inf  # the training dies of SIGKILL, its machine stays
    prepares: bool = True  # its set-up comes to an end
    silent_seconds: float = math.inf  # the training hangs: no step, no line, no end
    failing: bool = False  # the training raises at its first step
    obeys: bool = True  # saves and ends when asked
    exits: bool = True  # the process ends after its last word
    speaks: bool = True  # has hooks: otherwise no line, no commit, no notice, no stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The training itself: the same on every machine but for the pace."""

    steps: int
    step_seconds: float
    setup_seconds: float
    save_seconds: float
    every_steps: int
    checkpoint_bytes: int = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint in a run folder."""

    at: datetime  # when it is durable
    step: int
    name: str


@dataclass(slots=True, kw_only=True)
class Machine:
    """One granted machine: billed from `granted_at` until `ended_at`, whatever its trainer does."""

    job: str
    placement: Placement
    fate: Fate
    work: Work
    folder: list[Saved]  # its run folder
    go_at: Mapping[str, datetime]  # by job: when it was told to take over
    waits: bool  # for that
    granted_at: datetime
    ready_at: datetime | None = None
    trains_since: datetime | None = None
    left_at: datetime | None = None  # it said its last word
    stopped_at: datetime | None = None
    asked_at: datetime | None = None
    exit_code: int | None = None
    first_step: int | None = None
    lines: list[JournalLine] = field(default_factory=list)  # in segments that are written
    unwritten: list[JournalLine] = field(default_factory=list)
    segment: int = 0
    next_at: datetime = field(init=False)
    life: Iterator[datetime] = field(init=False)

    def __post_init__(self) -> None:
        self.next_at = self.running_at
        self.life = self._train()

    @property
    def running_at(self) -> datetime:
        return self.granted_at + timedelta(seconds=self.fate.start_seconds)

    @property
    def taken_at(self) -> datetime | None:
        return self._after(self.fate.life_seconds)

    def ended_at(self, now: datetime) -> datetime | None:
        """When the bill ended, if it has by `now`."""
        ends = [at for at in (self.stopped_at, self.taken_at) if at is not None and at <= now]
        return min(ends) if ends else None

    def trained_until(self, now: datetime) -> datetime:
        """Until then, at the latest, it may have done a step."""
        ends = (self.ended_at(now), self.left_at, self._after(self.fate.killed_seconds), now)
        return min(at for at in ends if at is not None)

    def advance(self, now: datetime) -> None:
        """Let the trainer live until `now`, or until its machine or its process dies before that."""
        deaths = [at for at in (self.ended_at(now), self._after(self.fate.killed_seconds)) if at is not None]
        until = min([now, *deaths])
        while self.exit_code is None and self.next_at <= until:
            self.next_at = next(self.life, self.next_at)
        if self.exit_code is None and self.fate.killed_seconds < math.inf and until < now:
            self.exit_code = -9

    def _after(self, seconds: float) -> datetime | None:
        return None if math.isinf(seconds) else self.granted_at + timedelta(seconds=seconds)

    def _train(self) -> Iterator[datetime]:
        """One trainer's life; each yield is an instant it must live to see."""
        t = self.running_at + timedelta(seconds=self.work.setup_seconds)
        yield t
        if not self.fate.prepares:
            yield datetime.max.replace(tzinfo=t.tzinfo)
        if self.waits:
            t = yield from self._wait(t)
        self.trains_since = t
        step = max((saved.step for saved in self.folder if saved.at <= t), default=0)
        saved = self.first_step = step
        self._say(TrainerStarted(at=t, segment=0, step=step, resumed_from=f"step-{step}" if step else None))
        self._write()
        while step < self.work.steps:
            if self.fate.failing:
                yield from self._leave(t, "failed", step, code=1)
            t += timedelta(seconds=self.work.step_seconds)
            yield t
            hang = self._after(self.fate.silent_seconds)
            if hang is not None and t >= hang:
                yield datetime.max.replace(tzinfo=t.tzinfo)
            step += 1
            self._heartbeat(t, step)
            reason = self._called(t)
            if reason or step == self.work.steps or step - saved >= self.work.every_steps:
                t += timedelta(seconds=self.work.save_seconds)
                yield t
                saved = step
                self._commit(t, step)
            if reason and step < self.work.steps:
                yield from self._leave(t, reason, step, code=STOPPED_CODE)
        yield from self._leave(t, "completed", step, code=0)

    def _wait(self, t: datetime) -> Generator[datetime, None, datetime]:
        self.ready_at = t
        while (go_at := self.go_at.get(self.job)) is None or go_at > t:
            if self.asked_at is not None and self.asked_at <= t:
                self.exit_code = STOPPED_CODE
                yield datetime.max.replace(tzinfo=t.tzinfo)
            t += timedelta(seconds=GO_SECONDS)
            yield t
        return t

    def _called(self, t: datetime) -> EndReason | None:
        if not self.fate.speaks:
            return None
        if self.taken_at is not None and self.fate.notice_seconds is not None:
            left = (self.taken_at - t).total_seconds()
            if left <= self.fate.notice_seconds:
                self._say(TrainerNoticed(at=t, segment=0, source="signal", seconds_left=left))
                self._write()
                return "preempted"
        asked = self.asked_at is not None and self.asked_at <= t
        return "stopped" if asked and self.fate.obeys else None

    def _leave(self, t: datetime, reason: EndReason, step: int, *, code: int) -> Iterator[datetime]:
        self._say(TrainerEnded(at=t, segment=0, reason=reason, step=step, step_seconds=self.work.step_seconds))
        self._write()
        self.left_at = t
        if self.fate.exits:
            self.exit_code = code
        yield datetime.max.replace(tzinfo=t.tzinfo)

    def _heartbeat(self, t: datetime, step: int) -> None:
        recent = [*self.lines[-1:], *self.unwritten]
        if not recent or (t - recent[-1].at).total_seconds() >= HEARTBEAT_SECONDS:
            self._say(TrainerStepped(at=t, segment=0, step=step, step_seconds=self.work.step_seconds))
        if self.unwritten and (t - self.unwritten[0].at).total_seconds() >= FLUSH_SECONDS:
            self._write()

    def _commit(self, t: datetime, step: int) -> None:
        if not self.fate.speaks:
            return
        name = f"step-{step}-a{attempt_of(self.job)}"
        self.folder.append(Saved(at=t, step=step, name=name))
        size, seconds = self.work.checkpoint_bytes, self.work.save_seconds
        self._say(TrainerCommitted(at=t, segment=0, step=step, name=name, bytes=size, seconds=seconds))
        self._write()

    def _say(self, line: JournalLine) -> None:
        if self.fate.speaks:
            self.unwritten.append(line)

    def _write(self) -> None:
        self.segment += 1
        self.lines.extend(replace(line, segment=self.segment) for line in self.unwritten)
        self.unwritten.clear()
