"""One machine's life, from the intent to its release, as folded from the events that name it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal

from launcher.core.offers import Placement
from launcher.core.runs.events import (
    AttemptEnded,
    AttemptOutcome,
    AttemptReady,
    AttemptRefused,
    AttemptReleased,
    AttemptStarted,
    CheckpointCommitted,
    CheckpointReplicated,
    EndCause,
    EndRequested,
    HandedOver,
    NoticeReceived,
    PriceChanged,
    ProgressReported,
    TrainingResumed,
)

MachineEvent = (
    CheckpointReplicated
    | AttemptRefused
    | AttemptStarted
    | AttemptReady
    | HandedOver
    | PriceChanged
    | EndRequested
    | AttemptEnded
    | AttemptReleased
)
TrainerEvent = TrainingResumed | NoticeReceived | CheckpointCommitted | ProgressReported
AttemptEvent = MachineEvent | TrainerEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One machine's life, from the intent to its release."""

    number: int
    placement: Placement
    why: str
    requested_at: datetime
    egress_usd_per_read: Decimal = Decimal(0)
    run_uri: str | None = None  # None: that of the submit
    save_usd_per_gb: Decimal = Decimal(0)
    restore_usd_per_gb: Decimal = Decimal(0)
    move_from: str | None = None
    move_usd_per_gb: Decimal = Decimal(0)
    relieves: int | None = None  # the attempt beside which it was started
    overlaps: bool = True
    saved_bytes: int = 0  # brought to the run folder
    restored_bytes: int = 0
    replicated_bytes: int = 0  # of the newest checkpoint, from another folder to this one
    replicated_at: datetime | None = None
    refused_at: datetime | None = None
    refused: str = ""
    started_at: datetime | None = None
    prices: tuple[tuple[datetime, Decimal], ...] = ()  # (since, USD per hour of all nodes)
    ready_at: datetime | None = None  # set up, and waiting for the other one's end
    handed_over_at: datetime | None = None
    training_at: datetime | None = None
    first_step: int = 0
    resumed_from: str | None = None
    step: int = 0  # as far as is known
    heard_at: datetime | None = None
    noticed_at: datetime | None = None
    committed_step: int | None = None
    local_step: int | None = None  # committed on the machine's own disk
    widest_steps: int = 0  # between two commits, or the beginning and the first one
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
    has_exited: bool = False
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
    def is_incoming(self) -> bool:
        """Started beside an attempt that trains, and not (or never) given its turn."""
        return self.relieves is not None and self.handed_over_at is None

    @property
    def setup_seconds(self) -> float | None:
        """From its machine to its training, less what it waited for another one's end."""
        if self.started_at is None or self.training_at is None:
            return None
        waited = timedelta(0)
        if self.ready_at and self.handed_over_at:
            waited = max(waited, self.handed_over_at - self.ready_at)
        return (self.training_at - self.started_at - waited).total_seconds()

    @property
    def carried_usd(self) -> Decimal:
        """Checkpoints on their way to and from the run folder; not rounded."""
        to_and_from = self.saved_bytes * self.save_usd_per_gb + self.restored_bytes * self.restore_usd_per_gb
        return (to_and_from + self.replicated_bytes * self.move_usd_per_gb) / 10**9

    @property
    def billed_until(self) -> datetime | None:
        """When the bill ended; `None` while it runs."""
        ends = [at for at in (self.gone_at, self.released_at) if at is not None]
        return min(ends) if ends else None


def after(attempt: Attempt, event: AttemptEvent, at: datetime) -> Attempt:
    """`attempt` as it stands behind an event that names it."""
    return _trained(attempt, event, at) if isinstance(event, TrainerEvent) else _handled(attempt, event, at)


def _handled(attempt: Attempt, event: MachineEvent, at: datetime) -> Attempt:
    match event:
        case CheckpointReplicated():
            return replace(attempt, replicated_bytes=attempt.replicated_bytes + event.bytes, replicated_at=at)
        case AttemptRefused():
            return replace(attempt, refused_at=at, refused=f"{event.reason}: {event.detail}")
        case AttemptStarted():
            first = (event.started_at, attempt.placement.usd_per_hour)
            return replace(attempt, started_at=event.started_at, prices=(first,))
        case AttemptReady():
            return replace(attempt, ready_at=attempt.ready_at or at)
        case HandedOver():
            return replace(attempt, handed_over_at=attempt.handed_over_at or at)
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
                has_exited=event.has_exited,
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
    written = event.bytes if event.written_bytes is None else event.written_bytes
    before = attempt.first_step if attempt.committed_step is None else attempt.committed_step
    return replace(
        attempt,
        local_step=event.step if event.local_only else attempt.local_step,
        committed_step=attempt.committed_step if event.local_only else event.step,
        widest_steps=max(attempt.widest_steps, 0 if event.local_only else event.step - before),
        save_seconds=attempt.save_seconds + is_new * lost,
        num_saves=attempt.num_saves + is_new,
        durable_seconds=attempt.durable_seconds + (durable or 0.0),
        num_durable=attempt.num_durable + (durable is not None),
        saved_bytes=attempt.saved_bytes + (0 if event.local_only else written),
    )
