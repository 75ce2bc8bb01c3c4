"""What a supervisor may be told to do next."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.core.prices.options import Option
from launcher.core.runs.events import AttemptOutcome, EndCause, RunOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Ask for a machine: for the training, or beside the attempt that trains, to take over from it."""

    option: Option
    why: str
    relieves: int | None = None
    overlaps: bool = True  # the other one trains on until this one is set up


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaunch:
    """The intent is recorded and no machine is there: ask again, the job's name makes it harmless."""

    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """The attempt that it relieves has ended: bring the newest checkpoint to this one, and let it go on."""

    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AskToEnd:
    attempt: int
    cause: EndCause
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Record the end of an attempt that will not end by itself."""

    attempt: int
    outcome: AttemptOutcome
    detail: str
    cause: EndCause | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing runs and nothing is billed until then."""

    seconds: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """What runs goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    outcome: RunOutcome
    detail: str


Action = Launch | Relaunch | HandOver | AskToEnd | Judge | Release | Wait | Keep | Finish
