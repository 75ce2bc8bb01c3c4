"""The only thing that is stored: what happened to a run, in order. Everything else is folded from it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from launcher.core.offers import Placement

AttemptOutcome = Literal["completed", "preempted", "failed", "lost", "stopped"]
RunOutcome = Literal["succeeded", "failed", "cancelled", "out_of_budget"]
EndCause = Literal["stop_requested", "cap", "fallback", "back_to_spot", "place_closes", "handed_over", "waits"]


class Stored(BaseModel):
    """Unknown fields are ignored: an old launcher reads a newer ledger."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Quantiles(Stored):
    p10: float
    p50: float
    p90: float


class UsdQuantiles(Stored):
    p10: Decimal
    p50: Decimal
    p90: Decimal


class PromisedStep(Stored):
    """The step time that a promise rests on."""

    gpu: str
    source: str  # as `workload.StepSource`; a newer launcher may know more of them
    seconds: float
    factor80: float  # with 80 % probability a step takes `seconds / factor80` to `seconds · factor80`
    shift: float = 1.0  # of `seconds`, by recalibration
    width: float = 1.0  # of ln `factor80`, by recalibration


class Expected(Stored):
    """What a promise is made of: its parts add up to the p50 of the cost, the other figures are means over futures."""

    preemptions: float
    restart_hours: float
    usd_per_hour: Decimal  # of the place where the run begins
    parts_usd: dict[str, Decimal]
    fallback_hours: float = 0.0
    fallback_usd_per_hour: Decimal | None = None  # None: no fallback


class Promise(Stored):
    """What the user was told before agreeing; the finished run is measured against it."""

    hours: Quantiles
    cost_usd: UsdQuantiles
    basis: str
    step: PromisedStep | None = None  # None: an older launcher kept only `basis`
    expected: Expected | None = None


class Pace(Stored):
    """How fast the work goes, as known at the submit: seconds a step, by GPU type of the run's placements."""

    step_seconds: dict[str, float]
    setup_seconds: float
    save_seconds: float  # of training that one save costs
    checkpoint_gb: float
    source: str
    durable_seconds: float | None = None  # until a save is committed; None: an older launcher knew only of the former

    @property
    def closing_save_seconds(self) -> float:
        """What a save takes when nothing trains beside it: the last one of an attempt is waited for."""
        return self.save_seconds if self.durable_seconds is None else max(self.save_seconds, self.durable_seconds)


class RunSubmitted(Stored):
    kind: Literal["run_submitted"] = "run_submitted"
    spec: dict[str, Any]  # RunSpec as JSON, with every default filled in
    workdir: str  # absolute
    run_uri: str
    approved_usd: Decimal  # the run is stopped before it spends more
    promise: Promise
    pace: Pace
    deadline_at: datetime
    deadline_assumed: bool  # nobody asked for it; it only bounds the waiting for spot
    begins_at: str | None = None  # key of the offer that was agreed to; None: an older launcher began anywhere
    submitted_by: str
    version: str
    pricing: str | None = None  # absolute path of the pricing.yaml whose terms hold for this run
    storage_usd_per_gb_hour: Decimal = Decimal(0)
    storage_basis: str = ""  # where that price comes from
    storage_assumed: bool = False  # nobody knows the store's own price; this one bounds it
    time_scale: float = 1.0
    simulated: bool = False


class RunReopened(Stored):
    """A run that had ended goes on, with more money or after a repair."""

    kind: Literal["run_reopened"] = "run_reopened"
    approved_usd: Decimal
    by: str


class StopRequested(Stored):
    kind: Literal["stop_requested"] = "stop_requested"
    by: str
    reason: str = ""


class SupervisorHired(Stored):
    """A machine for the run's supervisor is asked for; billed from here to `closing_seconds` behind the run's end."""

    kind: Literal["supervisor_hired"] = "supervisor_hired"
    number: int  # 1, 2, 3 …
    where: str  # as SkyPilot writes it: aws/us-east-1, slurm/lab/cpu
    instance_type: str | None
    usd_per_hour: Decimal
    basis: str
    closing_seconds: float  # from the run's end until the machine has ended itself
    by: str


class SupervisorReleased(Stored):
    """A hired machine ended before the run did, or never came; at the run's end it ends by itself."""

    kind: Literal["supervisor_released"] = "supervisor_released"
    number: int
    was_there: bool  # else nothing of it is billed
    detail: str


class AttemptRequested(Stored):
    kind: Literal["attempt_requested"] = "attempt_requested"
    attempt: int
    placement: Placement
    why: str  # one sentence
    egress_usd_per_read: Decimal = Decimal(0)  # reading the data once from this place
    run_uri: str | None = None  # the run folder beside this place; None: that of the submit
    save_usd_per_gb: Decimal = Decimal(0)  # bringing a checkpoint there, with its requests
    restore_usd_per_gb: Decimal = Decimal(0)
    move_from: str | None = None  # the home from which the newest checkpoint is brought there; None: it lies there
    move_usd_per_gb: Decimal = Decimal(0)
    relieves: int | None = None  # the attempt that trains beside it until it is ready; None: nobody trains
    overlaps: bool = True  # that one trains on during the set-up; else it ends as soon as the machine is there


class CheckpointReplicated(Stored):
    """The newest checkpoint was brought to the attempt's run folder from another one."""

    kind: Literal["checkpoint_replicated"] = "checkpoint_replicated"
    attempt: int
    name: str
    bytes: int  # that were not there before


class AttemptRefused(Stored):
    kind: Literal["attempt_refused"] = "attempt_refused"
    attempt: int
    reason: Literal["no_capacity", "quota", "unavailable", "rejected"]
    detail: str


class AttemptStarted(Stored):
    """The machine is billed since `started_at`."""

    kind: Literal["attempt_started"] = "attempt_started"
    attempt: int
    started_at: datetime


class AttemptReady(Stored):
    """It is set up, and waits for the attempt that it relieves to end."""

    kind: Literal["attempt_ready"] = "attempt_ready"
    attempt: int


class HandedOver(Stored):
    """The attempt that it relieves has ended: from here on, this is the one that trains."""

    kind: Literal["handed_over"] = "handed_over"
    attempt: int


class TrainingResumed(Stored):
    """The trainer is at work, from `step` on; `at` of the entry ends the attempt's set-up."""

    kind: Literal["training_resumed"] = "training_resumed"
    attempt: int
    step: int
    resumed_from: str | None = None
    lost_steps: int = 0


class NoticeReceived(Stored):
    kind: Literal["notice_received"] = "notice_received"
    attempt: int
    source: str
    seconds_left: float | None = None


class CheckpointCommitted(Stored):
    kind: Literal["checkpoint_committed"] = "checkpoint_committed"
    attempt: int
    step: int
    name: str
    bytes: int
    seconds: float  # that the training stood still
    segment: int
    lost_seconds: float | None = None  # of training altogether
    durable_seconds: float | None = None  # from the safe point to the commit
    written_bytes: int | None = None  # that were not stored before
    stored_bytes: int | None = None  # of all checkpoints that are kept
    kept: int | None = None
    local_only: bool = False  # a machine's own disk has it, the run folder does not


class ProgressReported(Stored):
    kind: Literal["progress_reported"] = "progress_reported"
    attempt: int
    step: int
    segment: int
    step_seconds: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict)


class PriceChanged(Stored):
    """From this entry on, the attempt is billed at the new price."""

    kind: Literal["price_changed"] = "price_changed"
    attempt: int
    placement: Placement


class EndRequested(Stored):
    """The trainer was asked to save and end; after the grace time it is released all the same."""

    kind: Literal["end_requested"] = "end_requested"
    attempt: int
    cause: EndCause
    why: str


class AttemptEnded(Stored):
    """The verdict. The machine may still be billed: see `AttemptReleased`."""

    kind: Literal["attempt_ended"] = "attempt_ended"
    attempt: int
    outcome: AttemptOutcome
    detail: str
    step: int | None = None
    step_seconds: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    gone_at: datetime | None = None  # the machine had vanished by then: its bill ended there
    cause: EndCause | None = None  # why it was stopped, where nobody had asked it to end before
    has_exited: bool = False  # its training is known to be over; else it may go on until the release


class AttemptReleased(Stored):
    kind: Literal["attempt_released"] = "attempt_released"
    attempt: int


class RunWaits(Stored):
    """There is no machine, on purpose; once for each reason in a row, and until an attempt is requested."""

    kind: Literal["run_waits"] = "run_waits"
    why: str  # one sentence


class RunFinished(Stored):
    kind: Literal["run_finished"] = "run_finished"
    outcome: RunOutcome
    detail: str


Event = (
    RunSubmitted
    | RunReopened
    | StopRequested
    | SupervisorHired
    | SupervisorReleased
    | AttemptRequested
    | CheckpointReplicated
    | AttemptRefused
    | AttemptStarted
    | AttemptReady
    | HandedOver
    | TrainingResumed
    | NoticeReceived
    | CheckpointCommitted
    | ProgressReported
    | PriceChanged
    | EndRequested
    | AttemptEnded
    | AttemptReleased
    | RunWaits
    | RunFinished
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One event of one run. `seq` counts 1, 2, 3 … without gaps; `at` never goes back."""

    run_id: str
    seq: int
    at: datetime
    event: Event


_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def to_json(event: Event) -> str:
    return event.model_dump_json()


def from_json(text: str | bytes) -> Event:
    """Raises: pydantic.ValidationError: not an event of this version's kinds."""
    return _EVENT.validate_json(text)
