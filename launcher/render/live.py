"""A run as it happens: one sentence per event, and a progress bar where there is a terminal."""

from __future__ import annotations

import sys
from datetime import datetime
from decimal import Decimal
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from launcher.core.runs.attempt import AttemptEvent
from launcher.core.runs.events import (
    AttemptEnded,
    AttemptReady,
    AttemptRefused,
    AttemptReleased,
    AttemptRequested,
    AttemptStarted,
    CheckpointCommitted,
    CheckpointReplicated,
    EndRequested,
    Entry,
    HandedOver,
    NoticeReceived,
    PriceChanged,
    ProgressReported,
    RunFinished,
    RunReopened,
    RunSubmitted,
    RunWaits,
    StopRequested,
    SupervisorHired,
    SupervisorReleased,
    TrainingResumed,
)
from launcher.core.runs.journal import TrainerStepped
from launcher.core.runs.report import steps_usd
from launcher.core.runs.state import RunState, burn_usd_per_hour, spent_usd
from launcher.core.spans import span
from launcher.render.words import Money, simulated

LINE_SECONDS = 10.0  # between progress lines where there is no terminal


def sentence(entry: Entry, state: RunState, money: Money) -> str | None:
    """What happened, in one line; `None` for what only the ledger needs. `state` is the run's after the entry."""
    event, label = entry.event, simulated(state.submitted.simulated)
    match event:
        case RunSubmitted():
            return f"submitted, up to {money.exact(event.approved_usd)}{label}"
        case RunReopened():
            return f"goes on, up to {money.exact(event.approved_usd)}{label}"
        case StopRequested():
            return f"{event.by} asked it to stop"
        case SupervisorHired():
            kind = event.instance_type or "a small machine"
            return f"supervisor: {kind} at {event.where}, {money.exact(event.usd_per_hour)}/h, {event.basis}"
        case SupervisorReleased():
            return f"supervisor: released — {event.detail}"
        case AttemptRequested():
            offer = event.placement.offer
            kind = offer.capacity.value.replace("_", "-")
            beside = "" if event.relieves is None else f" beside attempt {event.relieves}"
            return f"attempt {event.attempt}: {offer.where} {offer.count}×{offer.gpu} {kind}{beside} — {event.why}"
        case RunWaits():
            return f"waits — {event.why}"
        case RunFinished():
            return f"{event.outcome.replace('_', ' ')} — {event.detail}"
        case _:
            told = _of_attempt(event, state, money)
            return told and f"attempt {event.attempt}: {told}"


def _of_attempt(event: AttemptEvent, state: RunState, money: Money) -> str | None:
    """What befell the attempt that it names."""
    attempt, label = state.attempts[event.attempt - 1], simulated(state.submitted.simulated)
    match event:
        case CheckpointReplicated():
            usd = attempt.move_usd_per_gb * event.bytes / 10**9
            price = f"{event.bytes / 1e9:,.1f} GB for {money.exact(usd)}{label}"
            return f"{event.name} is beside the GPU now, {price}"
        case AttemptRefused():
            return f"refused, {event.reason.replace('_', ' ')} ({event.detail})"
        case AttemptStarted():
            return "the machine is there"
        case AttemptReady():
            return f"set up, waits to take over from attempt {attempt.relieves}"
        case HandedOver():
            return f"takes over from attempt {attempt.relieves}"
        case TrainingResumed():
            what = f"resumed at step {event.step:,}" if event.resumed_from else "training begins"
            return f"{what}{_lost(event, state, money)}"
        case NoticeReceived():
            left = "" if event.seconds_left is None else f", {span(event.seconds_left)} left"
            return f"preemption notice by {event.source}{left}"
        case AttemptEnded():
            return f"{event.outcome} at step {attempt.step:,} — {event.detail}"
        case EndRequested():
            return f"asked to save and end — {event.why}"
        case PriceChanged():
            return f"the price is {money.exact(event.placement.usd_per_hour)}/h now{label}"
        case AttemptReleased() | CheckpointCommitted() | ProgressReported():
            return None


def _lost(event: TrainingResumed, state: RunState, money: Money) -> str:
    """Damage is said aloud, with its price: these steps are paid for twice."""
    if not event.lost_steps:
        return ""
    usd = steps_usd(state, state.attempts[event.attempt - 1], event.lost_steps)
    price = "" if usd is None else f" ({money.exact(usd)}{simulated(state.submitted.simulated)})"
    return f", {event.lost_steps:,} steps{price} of damaged checkpoints are lost"


class LiveView:
    """Prints a run's news; with a terminal also a bar with step, $ per step and $ so far."""

    def __init__(self, console: Console, money: Money) -> None:
        self._console = console
        self._money = money
        self._bar: Progress | None = None
        self._next_line_at = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            columns = (BarColumn(bar_width=24), TaskProgressColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.add_task("", total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def news(self, entry: Entry, state: RunState) -> None:
        """One ledger entry, with its time since the submit."""
        line = sentence(entry, state, self._money)
        if line:
            since = span((entry.at - state.submitted_at).total_seconds())
            self._console.print(f" {since:>11}  {line}", highlight=False)

    def output(self, text: bytes) -> None:
        """What the training printed: above the bar, or to stdout where there is none."""
        if self._bar and text:
            self._console.print(text.decode(errors="replace").rstrip("\n"), highlight=False, markup=False)
        elif text:
            sys.stdout.buffer.write(text)
            sys.stdout.flush()

    def progress(self, state: RunState, newest: TrainerStepped | None, now: datetime, elapsed_seconds: float) -> None:
        """Where the training is; `elapsed_seconds` of real time spaces the lines where there is no terminal."""
        text, step = self._text(state, newest, now)
        if self._bar:
            self._bar.update(self._bar.task_ids[0], total=state.spec.workload.steps, completed=step, description=text)
        elif text and elapsed_seconds >= self._next_line_at:
            self._next_line_at = elapsed_seconds + LINE_SECONDS
            self._console.print(f"              {text}", highlight=False)

    def _text(self, state: RunState, newest: TrainerStepped | None, now: datetime) -> tuple[str, int]:
        step = max(newest.step if newest else 0, state.step)
        spent = spent_usd(state, now)
        words = [f"step {step:,}/{state.spec.workload.steps:,}"]
        if newest and newest.step_seconds:
            usd = burn_usd_per_hour(state) * Decimal(str(newest.step_seconds)) / 3600
            words.append(f"{self._money.fine(usd)}/step")
        words.append(f"{self._money.exact(spent)} so far{simulated(state.submitted.simulated)}")
        words += [f"{name} {value:.4g}" for name, value in (newest.metrics.items() if newest else ())][:2]
        return " · ".join(words), step
