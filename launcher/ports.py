"""What the supervisor and the command line need from outside. Adapters implement these protocols; tests fake them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Protocol

from launcher.core.gravity import Found
from launcher.core.offers import Offer
from launcher.core.runs.events import Entry, Event
from launcher.core.runs.journal import JournalLine
from launcher.core.runs.machine import LaunchRequest, Phase

__all__ = ["Backend", "Clock", "DataProbe", "Journal", "LaunchRequest", "Ledger", "Phase", "PriceSource", "Progress"]


class Backend(Protocol):
    """Where attempts run. Every method may be repeated: after a crash nobody knows what was done."""

    def launch(self, request: LaunchRequest) -> None:
        """Grant a machine and start the attempt on it; a job that exists is left as it is.

        Raises: LaunchRefused: no machine was granted, nothing is billed. BackendError: nothing is known.
        """
        ...

    def phase(self, job: str) -> Phase:
        """Raises: BackendError: nothing is known."""
        ...

    def stop(self, job: str) -> None:
        """Kill the job's processes and release its machine. When it returns, nothing is billed any more.

        Raises: BackendError: nothing is known.
        """
        ...

    def names(self, run_id: str) -> tuple[str, ...]:
        """The run's jobs that have a machine or a process left, in order of attempt."""
        ...


class PriceSource(Protocol):
    """Where offers come from."""

    def offers(self, now: datetime) -> tuple[Offer, ...]:
        """Every offer known at `now`, priced as listed; refusing some of them is not the source's business."""
        ...


Progress = Callable[[str, float, int], None]  # a URI, gigabytes and objects found so far


class DataProbe(Protocol):
    """Who asks buckets about themselves. Raises: InputError: one cannot be asked; it says what to declare instead."""

    def probe(self, uri: str, *, seconds: float, progress: Progress) -> Found:
        """Region and size of what lies below `uri`, after `seconds` at most: then the size is a lower bound."""
        ...

    def region(self, uri: str, *, seconds: float) -> Found:
        """The same without looking at any object: nothing is known of the size."""
        ...


class Journal(Protocol):
    """The launcher's side of a run folder."""

    def read(self, attempt: int, *, after_segment: int) -> tuple[JournalLine, ...]:
        """Lines of one attempt in segments numbered above `after_segment`, oldest first.

        Unreadable lines are left out. Raises: BackendError: the folder did not answer.
        """
        ...

    def request_stop(self, attempt: int) -> None:
        """Ask the trainer of this attempt to save and end."""
        ...

    def request_checkpoint(self) -> None:
        """Ask the trainer to save now and go on."""
        ...

    def is_ready(self, attempt: int) -> bool:
        """Whether the trainer of this attempt is set up and waits for the one that it relieves.

        Raises: BackendError: the folder did not answer.
        """
        ...

    def hand_over(self, attempt: int, *, spent_usd: Decimal) -> None:
        """Tell the waiting trainer of this attempt that its turn has come; it may be said again.

        `spent_usd` is what the whole run has cost up to now, the machine that waited included. Raises: BackendError:
        the folder did not answer.
        """
        ...


class Ledger(Protocol):
    """Append-only memory of all runs."""

    def append(self, run_id: str, events: Sequence[Event], *, after_seq: int, at: datetime) -> tuple[Entry, ...]:
        """Record `events` behind entry `after_seq` (0: the run is new), all or none.

        Raises: LedgerConflict: the run has entries beyond `after_seq`.
        """
        ...

    def read(self, run_id: str, *, after_seq: int = 0) -> tuple[Entry, ...]:
        """The run's entries with a higher number than `after_seq`, in order."""
        ...

    def run_ids(self) -> tuple[str, ...]:
        """Every run, oldest first."""
        ...


class Clock(Protocol):
    """The only source of now and of waiting."""

    def now(self) -> datetime:
        """An aware UTC instant that never goes back within a process."""
        ...

    def sleep(self, seconds: float) -> None: ...
