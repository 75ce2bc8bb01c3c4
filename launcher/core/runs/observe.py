"""What the outside shows, turned into the events that the ledger does not hold yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from launcher.core.offers import Capacity
from launcher.core.runs.events import (
    AttemptEnded,
    AttemptOutcome,
    AttemptReady,
    AttemptStarted,
    CheckpointCommitted,
    EndCause,
    Event,
    NoticeReceived,
    ProgressReported,
    TrainingResumed,
)
from launcher.core.runs.journal import (
    JournalLine,
    TrainerCommitted,
    TrainerEnded,
    TrainerNoticed,
    TrainerStarted,
    TrainerStepped,
)
from launcher.core.runs.machine import Phase
from launcher.core.runs.state import Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long nothing may happen before an attempt counts as lost."""

    silence_seconds: float  # of a trainer that once spoke
    start_seconds: float  # of a machine that was granted, until its set-up has ended
    cut_off_seconds: float  # of a trainer that had a notice, or whose machine does not answer


REPORT_SECONDS = 300.0  # progress goes to the ledger at most so often
_KILLED = (-9, 137)


def observe(
    attempt: Attempt,
    phase: Phase,
    lines: Sequence[JournalLine],
    *,
    now: datetime,
    patience: Patience,
    is_ready: bool = False,
) -> tuple[Event, ...]:
    """News of a live attempt, in the order in which it happened; empty if there is none.

    `lines` may repeat what is known already: the last segment is always read again. `is_ready`: an incoming attempt
    says that it waits.
    """
    if phase.kind == "absent" and attempt.started_at is None:
        return ()
    events: list[Event] = []
    if attempt.started_at is None:
        started_at = max(phase.started_at or now, attempt.requested_at)
        events.append(AttemptStarted(attempt=attempt.number, started_at=min(started_at, now)))
    if is_ready and attempt.ready_at is None:
        events.append(AttemptReady(attempt=attempt.number))
    events.extend(_told(attempt, lines, now))
    end = _end(attempt, phase, lines, now, patience)
    return tuple([*events, end] if end else events)


def has_fled(lines: Sequence[JournalLine]) -> bool:
    """Whether the trainer has saved and left a machine that is being taken away: nothing else is worth waiting for."""
    return any(isinstance(line, TrainerEnded) and line.reason == "preempted" for line in lines)


def _told(attempt: Attempt, lines: Sequence[JournalLine], now: datetime) -> list[Event]:
    events: list[Event] = []
    begun = attempt.training_at is not None
    noticed = attempt.noticed_at is not None
    committed = -1 if attempt.committed_step is None else attempt.committed_step
    local = committed if attempt.local_step is None else max(committed, attempt.local_step)
    for line in lines:
        match line:
            case TrainerStarted() if not begun:
                begun = True
                events.append(
                    TrainingResumed(
                        attempt=attempt.number,
                        step=line.step,
                        resumed_from=line.resumed_from,
                        lost_steps=line.lost_steps,
                    )
                )
            case TrainerNoticed() if not noticed:
                noticed = True
                events.append(
                    NoticeReceived(attempt=attempt.number, source=line.source, seconds_left=line.seconds_left)
                )
            case TrainerCommitted(local_only=True) if line.step > max(local, committed):
                local = line.step
                events.append(_commit(attempt, line))
            case TrainerCommitted(local_only=False) if line.step > committed:
                committed = line.step
                events.append(_commit(attempt, line))
            case _:
                pass
    return [*events, *_progress(attempt, lines, now)]


def _commit(attempt: Attempt, line: TrainerCommitted) -> CheckpointCommitted:
    return CheckpointCommitted(
        attempt=attempt.number,
        step=line.step,
        name=line.name,
        bytes=line.bytes,
        seconds=line.seconds,
        segment=line.segment,
        lost_seconds=line.lost_seconds,
        durable_seconds=line.durable_seconds,
        written_bytes=line.written_bytes,
        stored_bytes=line.stored_bytes,
        kept=line.kept,
        local_only=line.local_only,
    )


def _progress(attempt: Attempt, lines: Sequence[JournalLine], now: datetime) -> list[Event]:
    """The newest step, unless the ledger has heard of this attempt just now."""
    newest = next((line for line in reversed(lines) if isinstance(line, TrainerStepped)), None)
    if newest is None or (attempt.heard_at and now - attempt.heard_at < timedelta(seconds=REPORT_SECONDS)):
        return []
    if newest.step <= attempt.step and newest.segment <= attempt.segment:
        return []
    return [
        ProgressReported(
            attempt=attempt.number,
            step=newest.step,
            segment=newest.segment,
            step_seconds=newest.step_seconds,
            metrics=dict(newest.metrics),
        )
    ]


def _end(
    attempt: Attempt, phase: Phase, lines: Sequence[JournalLine], now: datetime, patience: Patience
) -> AttemptEnded | None:
    last_word = next((line for line in reversed(lines) if isinstance(line, TrainerEnded)), None)
    notice = next((line for line in lines if isinstance(line, TrainerNoticed)), None)
    if notice:  # it may have come since the last look, as the end did
        attempt = replace(attempt, noticed_at=notice.at)
    verdict: tuple[AttemptOutcome, str] | None
    match phase.kind:
        case "exited":
            verdict = _exited(attempt, last_word, phase.exit_code)
        case "gone" if phase.exit_code is not None:  # the command had ended before: nothing was cut off
            verdict = _exited(attempt, last_word, phase.exit_code)
        case "gone":
            verdict = _gone(attempt, last_word)
        case "absent":
            verdict = "lost", "the machine is not there any more"
        case "running":
            verdict = _hung(attempt, last_word, _silent(attempt, lines, now, patience))
        case "unreachable":
            verdict = _cut_off(attempt, last_word, lines, now, patience)
        case "starting":
            verdict = _stuck(attempt, now, patience)
    if verdict is None:
        return None
    steps = [line.step for line in lines if isinstance(line, TrainerStepped | TrainerCommitted | TrainerEnded)]
    stepped = next((x for x in reversed(lines) if isinstance(x, TrainerStepped | TrainerEnded)), None)
    return AttemptEnded(
        attempt=attempt.number,
        outcome=verdict[0],
        detail=verdict[1],
        step=max(steps, default=None),
        step_seconds=stepped.step_seconds if stepped else None,
        metrics=dict(stepped.metrics) if stepped else {},
        gone_at=min(phase.gone_at, now) if phase.gone_at else None,
        cause=_cause(last_word),
        has_exited=last_word is not None or phase.kind in ("exited", "gone", "absent"),
    )


def _cause(last_word: TrainerEnded | None) -> EndCause | None:
    match last_word.reason if last_word else None:
        case "out_of_budget":
            return "cap"
        case "stopped":
            return "stop_requested"
        case _:
            return None


def _exited(attempt: Attempt, last_word: TrainerEnded | None, code: int | None) -> tuple[AttemptOutcome, str]:
    """The trainer's last word decides; its exit code only where it left none, or where it failed after the training."""
    if last_word is None:
        return _exit_code(attempt, code)
    match last_word.reason:
        case "completed" if code in (0, None):
            return "completed", f"step {last_word.step:,}"
        case "completed" if _is_signal(code):  # what follows the loop was cut off: do it again
            return "lost", f"the training was complete, then the command was killed (exit code {code})"
        case "completed":
            return "failed", f"the training was complete, then the command exited with {code}"
        case "preempted":
            return "preempted", "saved on the notice"
        case "stopped":
            return "stopped", "saved and ended when asked"
        case "out_of_budget":
            return "stopped", "the trainer stopped itself at the cap"
        case "failed":
            return "failed", f"the training failed, exit code {code}; see `launch logs`"


def _exit_code(attempt: Attempt, code: int | None) -> tuple[AttemptOutcome, str]:
    if attempt.is_incoming and code in (0, 75):  # it has trained nothing: neither complete nor taken
        return "lost", f"exit code {code} before it could take over"
    if code == 0:
        return "completed", "exit code 0"
    if code == 75:
        is_spot = attempt.placement.offer.capacity is Capacity.SPOT  # nobody takes other machines: count the tries
        return "preempted" if is_spot else "lost", "exit code 75: saved, start me again"
    if _is_signal(code):
        if attempt.noticed_at:
            return "preempted", "killed after the notice"
        how = "killed (SIGKILL; out of memory?)" if code in _KILLED else f"ended by a signal (exit code {code})"
        return "lost", how
    return "failed", f"exit code {code}; see `launch logs`"


def _is_signal(code: int | None) -> bool:
    """Python says −9, a shell 137; some backends say nothing."""
    return code is None or code < 0 or code > 128


def _gone(attempt: Attempt, last_word: TrainerEnded | None) -> tuple[AttemptOutcome, str]:
    """A machine that vanished after a complete training may have cut off what follows the loop: do it again."""
    is_spot = attempt.placement.offer.capacity is Capacity.SPOT
    match last_word.reason if last_word else None:
        case "stopped" | "out_of_budget":
            return "stopped", "saved and ended when asked; the machine is gone"
        case "failed" if is_spot and attempt.placement.nodes > 1:
            return "preempted", "a node was gone, and the others failed without it"
        case "failed":
            return "failed", "the training failed; see `launch logs`"
        case "preempted":
            return "preempted", "saved on the notice"
        case "completed" | None if not is_spot:
            return "lost", "the machine is gone"
        case "completed":
            return "preempted", "the machine was gone before the command had ended"
        case None:
            return "preempted", "no notice was seen" if attempt.noticed_at is None else "the notice was too short"


def _cut_off(
    attempt: Attempt,
    last_word: TrainerEnded | None,
    lines: Sequence[JournalLine],
    now: datetime,
    patience: Patience,
) -> tuple[AttemptOutcome, str] | None:
    """A trainer that goes on speaking lives, whatever its machine says; who never spoke has no other witness.

    Slurm leaves a preempted trainer alone for its grace time, to save, while nothing else of the job is left.
    """
    heard = _heard_at(attempt, lines)
    has_ended = last_word is not None and last_word.reason != "completed"
    if heard is not None and not has_ended and now - heard < timedelta(seconds=patience.cut_off_seconds):
        return None
    return _gone(attempt, last_word)


def _hung(
    attempt: Attempt, last_word: TrainerEnded | None, silence: tuple[AttemptOutcome, str] | None
) -> tuple[AttemptOutcome, str] | None:
    """A command may work on quietly behind a complete training, but not behind any other end."""
    if silence is None or last_word is None:
        return silence
    return None if last_word.reason == "completed" else _gone(attempt, last_word)


def _stuck(attempt: Attempt, now: datetime, patience: Patience) -> tuple[AttemptOutcome, str] | None:
    """A machine that does not come up, or whose set-up does not end, is billed like any other."""
    since = now - (attempt.started_at or now)
    if since < timedelta(seconds=patience.start_seconds):
        return None
    return "lost", f"not training {since.total_seconds() / 60:.0f} min after it was granted"


def _silent(
    attempt: Attempt, lines: Sequence[JournalLine], now: datetime, patience: Patience
) -> tuple[AttemptOutcome, str] | None:
    """Only a trainer that once spoke can fall silent: a script without hooks never speaks."""
    heard = _heard_at(attempt, lines)
    limit = patience.silence_seconds if attempt.noticed_at is None else patience.cut_off_seconds
    if heard is None or now - heard < timedelta(seconds=min(limit, patience.silence_seconds)):
        return None
    silence = f"silent for {(now - heard).total_seconds() / 60:.0f} min"
    return ("lost", silence) if attempt.noticed_at is None else ("preempted", f"{silence} after the notice")


def _heard_at(attempt: Attempt, lines: Sequence[JournalLine]) -> datetime | None:
    """The last sign of life, if there was one."""
    return max((at for at in (attempt.heard_at, *(line.at for line in lines)) if at), default=None)
