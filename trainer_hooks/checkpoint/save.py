"""One save, as its threads know it, and what the last one has cost."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer_hooks.checkpoint.snapshot import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a save is of, beside the objects' state."""

    step: int
    cursor: Mapping[str, Any]
    place: Any  # of this rank
    metrics: Mapping[str, float]


@dataclass(slots=True, kw_only=True)
class Save:
    """One save, from its safe point on. Instants are of `time.monotonic`."""

    wanted: Wanted
    snapshot: Snapshot
    started: float
    begun: float  # once the save before was over
    capture_seconds: float = 0.0
    stood_seconds: float = 0.0  # at the safe point, the wait for the save before among them
    fenced_seconds: float = 0.0  # before optimizer steps
    total_bytes: int = 0
    done_bytes: int = 0  # hashed, and written where that was needed
    written_bytes: int = 0
    is_given_up: bool = False
    error: Exception | None = None  # the first one of any thread
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def blocked_seconds(self) -> float:
        return self.stood_seconds + self.fenced_seconds

    @property
    def left_bytes(self) -> int:
        return self.total_bytes - self.done_bytes

    def demand_wanted(self) -> None:
        """Raises: OSError: to write more of it would be in vain."""
        if self.is_given_up:
            raise OSError(f"the save of step {self.wanted.step:,} was given up for a newer one")
        if self.error is not None:
            raise OSError(f"another chunk of step {self.wanted.step:,} could not be written")


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Of the last save that was committed, in seconds and bytes."""

    capture_seconds: float
    stood_seconds: float
    fenced_seconds: float  # before optimizer steps
    durable_seconds: float
    written_bytes: int
    bytes_per_second: float | None  # None: nothing had to be written so far

    def lost_seconds(self, slowed_seconds: float) -> float:
        """Of training altogether, where the steps beside the save were slower by that much; waits are part of those."""
        return self.stood_seconds + max(self.fenced_seconds, slowed_seconds)
