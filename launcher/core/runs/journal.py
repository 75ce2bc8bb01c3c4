"""What a trainer says of itself, as the launcher sees it: facts with an instant and a place in the journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

EndReason = Literal["completed", "preempted", "stopped", "out_of_budget", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Base: `segment` is the number of the journal object that holds the line, counted from 1."""

    at: datetime
    segment: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerStarted(Line):
    step: int  # where it goes on
    resumed_from: str | None = None
    lost_steps: int = 0  # held by newer checkpoints that turned out to be damaged


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerStepped(Line):
    step: int
    step_seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerCommitted(Line):
    step: int
    name: str
    bytes: int
    seconds: float  # that the training stood still
    lost_seconds: float | None = None  # of training altogether; None: an older trainer does not say
    durable_seconds: float | None = None  # from the safe point to the commit
    written_bytes: int | None = None
    stored_bytes: int | None = None  # of all checkpoints that are kept
    kept: int | None = None
    local_only: bool = False  # on the machine's own disk, not in the run folder


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerNoticed(Line):
    source: str
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerEnded(Line):
    reason: EndReason
    step: int
    step_seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


JournalLine = TrainerStarted | TrainerStepped | TrainerCommitted | TrainerNoticed | TrainerEnded
