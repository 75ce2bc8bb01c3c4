"""One attempt's machine, as asked for and as a backend sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from launcher.core.offers import Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRequest:
    """One attempt to start. `job` (`<run_id>-<attempt>`) is the idempotency key: one machine per job, ever."""

    job: str
    placement: Placement
    setup: str | None
    run: str
    workdir: str
    env: Mapping[str, str]
    tags: Mapping[str, str] = field(default_factory=dict)  # of the run, for the provider's own bill
    paid_seconds: float | None = None  # that the approved amount still pays for; None: no limit

    @property
    def run_id(self) -> str:
        return self.job.rpartition("-")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What a backend knows of a job's machine.

    `absent`: never launched, or released. `starting`: granted, the trainer is not running yet.
    `running`. `unreachable`: billed, and it does not answer; only the trainer's own signs of life tell more.
    `exited`: the trainer ended with `exit_code`; the machine is still billed.
    `gone`: the machine vanished without our asking. Instants are the backend's own.
    """

    kind: Literal["absent", "starting", "running", "unreachable", "exited", "gone"]
    exit_code: int | None = None  # None: the backend keeps none, or a signal ended it
    started_at: datetime | None = None  # billing began
    gone_at: datetime | None = None  # billing ended by itself
