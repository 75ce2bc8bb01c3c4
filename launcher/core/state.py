"""A run as folded from its ledger entries, and what it cost.

    cost = Σ billed segments (until − since) · price stored with the segment + egress + storage

Billing runs until an attempt is released or its machine was gone, not until its training ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal

from launcher.core.events import (
    AttemptEnded,
    AttemptOutcome,
    AttemptRefused,
    AttemptReleased,
    AttemptRequested,
    AttemptStarted,
    CheckpointCommitted,
    EndCause,
    EndRequested,
    Entry,
    Event,
    NoticeReceived,
    PriceChanged,
    ProgressReported,
    RunFinished,
    RunOutcome,
    RunReopened,
    RunSubmitted,
    StopRequested,
    TrainingResumed,
)
from launcher.core.offers import Placement
from launcher.core.spec import RunSpec

_US_PER_HOUR = Decimal(3_600_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One machine's life, from the intent to its release."""

    number: int
    placement: Placement
    why: str
    requested_at: datetime
    egress_usd_per_read: Decimal = Decimal(0)
    refused_at: datetime | None = None
    refused: str = ""
    started_at: datetime | None = None
    prices: tuple[tuple[datetime, Decimal], ...] = ()  # (since, USD per hour of all nodes)
    training_at: datetime | None = None
    first_step: int = 0
    resumed_from: str | None = None
    step: int = 0  # as far as is known
    heard_at: datetime | None = None
    noticed_at: datetime | None = None
    committed_step: int | None = None
    local_step: int | None = None  # committed on the machine's own disk
    save_seconds: float = 0.0  # of training that all saves together cost
    num_saves: int = 0
    durable_seconds: float = 0.0  # until they were committed, of those that say so
    num_durable: int = 0
    segment: int = 0  # journal read up to here
    end_requested_at: datetime | None = None
    end_cause: EndCause | None = None
    ended_at: datetime | None = None
    outcome: AttemptOutcome | None = None
    detail: str = ""
    step_seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    gone_at: datetime | None = None
    released_at: datetime | None = None

    @property
    def is_open(self) -> bool:
        """A machine is, or may be, billed."""
        return self.refused_at is None and self.released_at is None

    @property
    def is_live(self) -> bool:
        """Granted or asked for, and not judged yet."""
        return self.is_open and self.ended_at is None

    @property
    def billed_until(self) -> datetime | None:
        """When the bill ended; `None` while it runs."""
        ends = [at for at in (self.gone_at, self.released_at) if at is not None]
        return min(ends) if ends else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The newest committed state of a run."""

    step: int
    name: str
    bytes: int
    at: datetime
    stored_bytes: int | None = None  # of all that are kept; None: an older trainer does not count them
    kept: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Everything that is known of one run."""

    run_id: str
    submitted: RunSubmitted
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
    outcome: RunOutcome | None = None
    finished_at: datetime | None = None
    detail: str = ""

    @property
    def spec(self) -> RunSpec:
        return RunSpec.model_validate(self.submitted.spec)

    @property
    def attempt(self) -> Attempt | None:
        """The newest attempt that was not refused."""
        return next((a for a in reversed(self.attempts) if a.refused_at is None), None)

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
    """Data read from elsewhere: once per machine if cached there, else by the share of the work done."""
    if attempt.started_at is None or not attempt.egress_usd_per_read:
        return Decimal(0)
    spec = state.spec
    reads = Decimal(str(spec.data.reads)) if spec.data else Decimal(1)
    if reads <= 1:
        return attempt.egress_usd_per_read * reads
    share = Decimal(max(0, attempt.step - attempt.first_step)) / Decimal(spec.workload.steps)
    return attempt.egress_usd_per_read * reads * share


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
    """Machines and egress of all attempts and storage until `now`, not rounded."""
    attempts = sum((machine_usd(a, now) + egress_usd(state, a) for a in state.attempts), Decimal(0))
    return attempts + storage_usd(state, now)


def burn_usd_per_hour(state: RunState) -> Decimal:
    """What one more hour costs while everything stays as it is."""
    return sum((a.prices[-1][1] for a in state.attempts if a.prices and a.billed_until is None), Decimal(0))


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
            )
        case StopRequested():
            return replace(state, stop_requested_at=state.stop_requested_at or at, stopped_by=event.by)
        case AttemptRequested():
            new = Attempt(
                number=event.attempt,
                placement=event.placement,
                why=event.why,
                requested_at=at,
                egress_usd_per_read=event.egress_usd_per_read,
            )
            return replace(state, attempts=(*state.attempts, new))
        case RunFinished():
            return replace(state, outcome=event.outcome, finished_at=at, detail=event.detail)
        case CheckpointCommitted():
            return _with_attempt(state if event.local_only else _stored(state, event, at), event, at)
        case TrainingResumed():
            return _with_attempt(_fallen_back(state, event), event, at)
        case _:
            return _with_attempt(state, event, at)


def _stored(state: RunState, event: CheckpointCommitted, at: datetime) -> RunState:
    newest, before = Checkpoint(step=event.step, name=event.name, bytes=event.bytes, at=at), state.checkpoint
    if event.stored_bytes is None and before and before.stored_bytes is not None and before.kept is not None:
        # a save in the last seconds leaves the older ones alone
        added = event.bytes if event.written_bytes is None else event.written_bytes
        newest = replace(newest, stored_bytes=before.stored_bytes + added, kept=before.kept + 1)
    else:
        newest = replace(newest, stored_bytes=event.stored_bytes, kept=event.kept)
    return replace(state, checkpoint=newest, stored_since=state.stored_since or at)


def _fallen_back(state: RunState, event: TrainingResumed) -> RunState:
    """Damage may have cost the newest checkpoint: the trainer's word of where it stands counts."""
    if state.checkpoint is None or event.step >= state.checkpoint.step:
        return state
    older = replace(state.checkpoint, step=event.step, name=event.resumed_from or "")
    return replace(state, checkpoint=older if event.resumed_from else None)


MachineEvent = AttemptRefused | AttemptStarted | PriceChanged | EndRequested | AttemptEnded | AttemptReleased
TrainerEvent = TrainingResumed | NoticeReceived | CheckpointCommitted | ProgressReported


def _with_attempt(state: RunState, event: MachineEvent | TrainerEvent, at: datetime) -> RunState:
    index = event.attempt - 1
    if not 0 <= index < len(state.attempts):
        raise ValueError(f"run {state.run_id}: {event.kind} of attempt {event.attempt}, which was never requested")
    attempt = state.attempts[index]
    changed = _trained(attempt, event, at) if isinstance(event, TrainerEvent) else _handled(attempt, event, at)
    return replace(state, attempts=(*state.attempts[:index], changed, *state.attempts[index + 1 :]))


def _handled(attempt: Attempt, event: MachineEvent, at: datetime) -> Attempt:
    match event:
        case AttemptRefused():
            return replace(attempt, refused_at=at, refused=f"{event.reason}: {event.detail}")
        case AttemptStarted():
            first = (event.started_at, attempt.placement.usd_per_hour)
            return replace(attempt, started_at=event.started_at, prices=(first,))
        case PriceChanged():
            next_price = (at, event.placement.usd_per_hour)
            return replace(attempt, placement=event.placement, prices=(*attempt.prices, next_price))
        case EndRequested():
            return replace(attempt, end_requested_at=attempt.end_requested_at or at, end_cause=event.cause)
        case AttemptEnded():
            return replace(
                attempt,
                ended_at=at,
                outcome=event.outcome,
                detail=event.detail,
                gone_at=event.gone_at,
                end_cause=attempt.end_cause or event.cause,
                step=attempt.step if event.step is None else max(attempt.step, event.step),
                step_seconds=event.step_seconds or attempt.step_seconds,
                metrics=event.metrics or attempt.metrics,
            )
        case AttemptReleased():
            return replace(attempt, released_at=at)


def _trained(attempt: Attempt, event: TrainerEvent, at: datetime) -> Attempt:
    match event:
        case TrainingResumed():
            return replace(
                attempt,
                training_at=at,
                heard_at=at,
                first_step=event.step,
                step=event.step,
                resumed_from=event.resumed_from,
            )
        case NoticeReceived():
            return replace(attempt, noticed_at=at)
        case CheckpointCommitted():
            saved, step = _saved(attempt, event), max(attempt.step, event.step)
            return replace(saved, step=step, heard_at=at, segment=event.segment)
        case ProgressReported():
            return replace(
                attempt,
                step=max(attempt.step, event.step),
                heard_at=at,
                segment=event.segment,
                step_seconds=event.step_seconds or attempt.step_seconds,
                metrics=event.metrics or attempt.metrics,
            )


def _saved(attempt: Attempt, event: CheckpointCommitted) -> Attempt:
    """A step that the local disk had before is not a second save: only its commit is news."""
    is_new = event.local_only or attempt.local_step is None or event.step > attempt.local_step
    lost = event.seconds if event.lost_seconds is None else event.lost_seconds
    durable = None if event.local_only else event.durable_seconds
    return replace(
        attempt,
        local_step=event.step if event.local_only else attempt.local_step,
        committed_step=attempt.committed_step if event.local_only else event.step,
        save_seconds=attempt.save_seconds + is_new * lost,
        num_saves=attempt.num_saves + is_new,
        durable_seconds=attempt.durable_seconds + (durable or 0.0),
        num_durable=attempt.num_durable + (durable is not None),
    )
