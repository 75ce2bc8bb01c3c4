"""A run as folded from its ledger entries, and what it cost.

    cost = Σ billed segments (until − since) · price stored with the segment + egress + storage + supervisors

Billing runs until an attempt is released or its machine was gone, not until its training ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal

from launcher.core.prices.supervision import Hired
from launcher.core.runs.attempt import Attempt, AttemptEvent, after
from launcher.core.runs.events import (
    AttemptRequested,
    CheckpointCommitted,
    CheckpointReplicated,
    Entry,
    Event,
    RunFinished,
    RunOutcome,
    RunReopened,
    RunSubmitted,
    RunWaits,
    StopRequested,
    SupervisorHired,
    SupervisorReleased,
    TrainingResumed,
)
from launcher.core.spec import RunSpec

__all__ = [
    "Attempt",
    "Checkpoint",
    "Pause",
    "RunState",
    "attempt_of",
    "billed",
    "burn_usd_per_hour",
    "egress_usd",
    "fold",
    "hours",
    "job_name",
    "machine_usd",
    "newest_run_uri",
    "run_uri_of",
    "spent_usd",
    "storage_usd",
    "stored_gb",
    "supervisor_usd",
    "trainer_usd_per_hour",
]

_US_PER_HOUR = Decimal(3_600_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The newest committed state of a run."""

    step: int
    name: str
    bytes: int
    at: datetime
    stored_bytes: int | None = None  # of all that are kept; None: an older trainer does not count them
    kept: int | None = None
    run_uris: tuple[str, ...] = ()  # of the run folders that have it


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """A run without a machine, on purpose."""

    since: datetime
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Everything that is known of one run."""

    run_id: str
    submitted: RunSubmitted
    spec: RunSpec  # as submitted
    submitted_at: datetime
    approved_usd: Decimal
    seq: int = 0
    at: datetime  # of the newest entry
    attempts: tuple[Attempt, ...] = ()
    checkpoint: Checkpoint | None = None
    stored_since: datetime | None = None  # the first commit
    reopened_after: int = 0  # attempts up to this one no longer decide how the run ends
    stop_requested_at: datetime | None = None
    stopped_by: str = ""
    pause: Pause | None = None
    hired: tuple[Hired, ...] = ()  # machines for its supervisor, one after the other
    outcome: RunOutcome | None = None
    finished_at: datetime | None = None
    detail: str = ""

    @property
    def attempt(self) -> Attempt | None:
        """The newest attempt that was not refused, and did not only wait."""
        return next((a for a in reversed(self.attempts) if a.refused_at is None and not a.is_incoming), None)

    @property
    def trainer(self) -> Attempt | None:
        """The live attempt that trains, or is to train without waiting for anybody."""
        return next((a for a in reversed(self.attempts) if a.is_live and not a.is_incoming), None)

    @property
    def incoming(self) -> Attempt | None:
        """The live attempt that is to relieve the trainer."""
        return next((a for a in reversed(self.attempts) if a.is_live and a.is_incoming), None)

    @property
    def step(self) -> int:
        """Steps done, as far as is known; falls back to the committed step when an attempt is gone."""
        attempt = self.attempt
        if attempt and attempt.is_live and attempt.training_at:
            return attempt.step
        if self.outcome == "succeeded" and attempt:
            return attempt.step
        return self.committed_step

    @property
    def committed_step(self) -> int:
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def next_attempt(self) -> int:
        return len(self.attempts) + 1

    @property
    def is_finished(self) -> bool:
        return self.outcome is not None


def fold(state: RunState | None, entries: Iterable[Entry]) -> RunState | None:
    """`state` after `entries`; associative: folding in pieces gives what folding at once gives.

    Raises: ValueError: entries do not follow one another, or the first is not a submit.
    """
    for entry in entries:
        state = _apply(state, entry)
    return state


def job_name(run_id: str, attempt: int) -> str:
    """The idempotency key of one attempt's machine."""
    return f"{run_id}-{attempt:03d}"


def attempt_of(job: str) -> int:
    """Inverse of `job_name`. Raises: ValueError: not a job's name."""
    return int(job.rpartition("-")[2])


def hours(span: timedelta) -> Decimal:
    """Exact to the microsecond."""
    return Decimal(span // timedelta(microseconds=1)) / _US_PER_HOUR


def machine_usd(attempt: Attempt, now: datetime) -> Decimal:
    """What the attempt's machines cost until `now`, each hour at the price stored for it. Not rounded."""
    return sum((hours(until - since) * price for since, until, price in billed(attempt, now)), Decimal(0))


def billed(attempt: Attempt, now: datetime) -> Iterator[tuple[datetime, datetime, Decimal]]:
    """Segments `(since, until, USD per hour)` of the attempt's bill."""
    end = attempt.billed_until or now
    bounds = [*(since for since, _ in attempt.prices), end][1:]
    for (since, price), until in zip(attempt.prices, bounds, strict=True):
        if min(until, end) > since:
            yield since, min(until, end), price


def egress_usd(state: RunState, attempt: Attempt) -> Decimal:
    """Data read from elsewhere, once per machine if cached there, else by the share of the work done; checkpoints."""
    if attempt.started_at is None or not attempt.egress_usd_per_read:
        return attempt.carried_usd
    spec = state.spec
    reads = Decimal(str(spec.data.reads)) if spec.data else Decimal(1)
    if reads <= 1:
        return attempt.carried_usd + attempt.egress_usd_per_read * reads
    share = Decimal(max(0, attempt.step - attempt.first_step)) / Decimal(spec.workload.steps)
    return attempt.carried_usd + attempt.egress_usd_per_read * reads * share


def run_uri_of(state: RunState, number: int) -> str:
    """The run folder of an attempt."""
    return state.attempts[number - 1].run_uri or state.submitted.run_uri


def run_uris(state: RunState) -> set[str]:
    """Every run folder that the run has had."""
    return {state.submitted.run_uri, *(run_uri_of(state, attempt.number) for attempt in state.attempts)}


def newest_run_uri(state: RunState) -> str:
    """The run folder with the newest checkpoint, or where the first one will be."""
    return state.checkpoint.run_uris[-1] if state.checkpoint else state.submitted.run_uri


def storage_usd(state: RunState, now: datetime) -> Decimal:
    """Checkpoints kept, from the first commit to the run's end, at the size that they have now."""
    price = state.submitted.storage_usd_per_gb_hour
    if not price or state.checkpoint is None or state.stored_since is None:
        return Decimal(0)
    return hours((state.finished_at or now) - state.stored_since) * stored_gb(state) * price


def stored_gb(state: RunState) -> Decimal:
    """As the trainer counted it; else as many checkpoints as are kept, of the newest one's size."""
    newest = state.checkpoint
    if newest is None or newest.stored_bytes is None:
        return Decimal(newest.bytes * state.spec.checkpoint.keep if newest else 0) / 10**9
    return Decimal(newest.stored_bytes) / 10**9


def spent_usd(state: RunState, now: datetime) -> Decimal:
    """Machines and egress of all attempts, storage and supervisors until `now`, not rounded."""
    attempts = sum((machine_usd(a, now) + egress_usd(state, a) for a in state.attempts), Decimal(0))
    return attempts + storage_usd(state, now) + supervisor_usd(state, now)


def supervisor_usd(state: RunState, now: datetime) -> Decimal:
    """Machines hired for the supervisor; what is left of one after the run's end is owed from the beginning."""
    spans = (
        (h, h.until - h.since if h.until else max(now - h.since, timedelta(0)) + timedelta(seconds=h.closing_seconds))
        for h in state.hired
    )
    return sum((hours(span) * h.usd_per_hour for h, span in spans), Decimal(0))


def burn_usd_per_hour(state: RunState) -> Decimal:
    """What one more hour costs while everything stays as it is."""
    machines = sum((a.prices[-1][1] for a in state.attempts if a.prices and a.billed_until is None), Decimal(0))
    return machines + sum((h.usd_per_hour for h in state.hired if h.until is None), Decimal(0))


def trainer_usd_per_hour(state: RunState) -> Decimal:
    """The same without a machine that waits beside the trainer."""
    waiting = state.incoming
    return burn_usd_per_hour(state) - (waiting.prices[-1][1] if waiting and waiting.prices else Decimal(0))


def _apply(state: RunState | None, entry: Entry) -> RunState:
    if isinstance(entry.event, RunSubmitted):
        if state is not None or entry.seq != 1:
            raise ValueError(f"run {entry.run_id}: a submit is entry {entry.seq}, it must be the first")
        return _submitted(entry, entry.event)
    if state is None or entry.seq != state.seq + 1:
        raise ValueError(f"run {entry.run_id}: entry {entry.seq} follows {state.seq if state else 'nothing'}")
    return replace(_changed(state, entry.event, entry.at), seq=entry.seq, at=entry.at)


def _submitted(entry: Entry, event: RunSubmitted) -> RunState:
    return RunState(
        run_id=entry.run_id,
        submitted=event,
        spec=RunSpec.model_validate(event.spec),
        submitted_at=entry.at,
        approved_usd=event.approved_usd,
        seq=entry.seq,
        at=entry.at,
    )


def _changed(state: RunState, event: Event, at: datetime) -> RunState:  # one case per kind of event
    match event:
        case RunSubmitted():
            raise ValueError("a run is submitted once")
        case RunReopened():
            return replace(
                state,
                approved_usd=event.approved_usd,
                reopened_after=len(state.attempts),
                outcome=None,
                finished_at=None,
                detail="",
                stop_requested_at=None,
                stopped_by="",
                pause=None,
            )
        case SupervisorHired():
            return replace(state, hired=(*state.hired, _hired(event, at)))
        case SupervisorReleased():
            return replace(state, hired=tuple(_released(h, event, at) for h in state.hired))
        case StopRequested():
            return replace(state, stop_requested_at=state.stop_requested_at or at, stopped_by=event.by)
        case AttemptRequested():
            return replace(state, attempts=(*state.attempts, _requested(event, at)), pause=None)
        case RunWaits():
            return replace(state, pause=Pause(since=state.pause.since if state.pause else at, why=event.why))
        case RunFinished():
            hired = tuple(h if h.until else replace(h, until=_closed_at(h, at)) for h in state.hired)
            return replace(state, outcome=event.outcome, finished_at=at, detail=event.detail, hired=hired, pause=None)
        case CheckpointCommitted():
            known = _with_attempt(state, event, at)
            return known if event.local_only else _stored(known, event, at)
        case CheckpointReplicated():
            return _with_attempt(_replicated(state, event), event, at)
        case TrainingResumed():
            return _restored(_with_attempt(_fallen_back(state, event), event, at), event)
        case _:
            return _with_attempt(state, event, at)


def _requested(event: AttemptRequested, at: datetime) -> Attempt:
    return Attempt(
        number=event.attempt,
        placement=event.placement,
        why=event.why,
        requested_at=at,
        egress_usd_per_read=event.egress_usd_per_read,
        run_uri=event.run_uri,
        save_usd_per_gb=event.save_usd_per_gb,
        restore_usd_per_gb=event.restore_usd_per_gb,
        move_from=event.move_from,
        move_usd_per_gb=event.move_usd_per_gb,
        relieves=event.relieves,
        overlaps=event.overlaps,
    )


def _hired(event: SupervisorHired, at: datetime) -> Hired:
    return Hired(
        number=event.number,
        where=event.where,
        instance_type=event.instance_type,
        usd_per_hour=event.usd_per_hour,
        basis=event.basis,
        closing_seconds=event.closing_seconds,
        since=at,
    )


def _released(hired: Hired, event: SupervisorReleased, at: datetime) -> Hired:
    if hired.number != event.number:
        return hired
    return replace(hired, until=at if event.was_there else hired.since, detail=event.detail)


def _closed_at(hired: Hired, finished_at: datetime) -> datetime:
    return finished_at + timedelta(seconds=hired.closing_seconds)


def _stored(state: RunState, event: CheckpointCommitted, at: datetime) -> RunState:
    where = run_uri_of(state, event.attempt)
    newest = Checkpoint(step=event.step, name=event.name, bytes=event.bytes, at=at, run_uris=(where,))
    before = state.checkpoint
    if event.stored_bytes is None and before and before.stored_bytes is not None and before.kept is not None:
        # a save in the last seconds leaves the older ones alone
        added = event.bytes if event.written_bytes is None else event.written_bytes
        newest = replace(newest, stored_bytes=before.stored_bytes + added, kept=before.kept + 1)
    else:
        newest = replace(newest, stored_bytes=event.stored_bytes, kept=event.kept)
    return replace(state, checkpoint=newest, stored_since=state.stored_since or at)


def _restored(state: RunState, event: TrainingResumed) -> RunState:
    newest, index = state.checkpoint, event.attempt - 1
    if newest is None or event.resumed_from is None:
        return state
    attempt = replace(state.attempts[index], restored_bytes=newest.bytes)
    return replace(state, attempts=(*state.attempts[:index], attempt, *state.attempts[index + 1 :]))


def _replicated(state: RunState, event: CheckpointReplicated) -> RunState:
    newest = state.checkpoint
    if newest is None or newest.name != event.name:  # the newest is damaged: the trainer will say what it went on from
        return state
    return replace(state, checkpoint=replace(newest, run_uris=(*newest.run_uris, run_uri_of(state, event.attempt))))


def _fallen_back(state: RunState, event: TrainingResumed) -> RunState:
    """Damage may have cost the newest checkpoint: the trainer's word of where it stands counts."""
    if state.checkpoint is None or event.step >= state.checkpoint.step:
        return state
    where = (run_uri_of(state, event.attempt),)
    older = replace(state.checkpoint, step=event.step, name=event.resumed_from or "", run_uris=where)
    return replace(state, checkpoint=older if event.resumed_from else None)


def _with_attempt(state: RunState, event: AttemptEvent, at: datetime) -> RunState:
    index = event.attempt - 1
    if not 0 <= index < len(state.attempts):
        raise ValueError(f"run {state.run_id}: {event.kind} of attempt {event.attempt}, which was never requested")
    attempt = state.attempts[index]
    changed = after(attempt, event, at)
    return replace(state, attempts=(*state.attempts[:index], changed, *state.attempts[index + 1 :]))
