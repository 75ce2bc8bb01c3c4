"""Saving as the session does it: commit, record, prune; a failure is shown and counted, never fatal by itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from trainer_hooks.checkpoint.store import Store
from trainer_hooks.journal import Journal
from trainer_hooks.meter import say
from trainer_hooks.protocol import Committed, checkpoint_name

log = logging.getLogger(__name__)

MAX_FAILURES_IN_ROW = 3


class Saver:
    """Rank 0's. `seconds` is what the last save took, `None` before the first."""

    def __init__(self, store: Store, journal: Journal, *, attempt: int) -> None:
        self._store = store
        self._journal = journal
        self._attempt = attempt
        self.seconds: float | None = None
        self.failures_in_row = 0
        self.last_failure = ""

    def save(self, step: int, capture: Callable[[], Mapping[str, Any]], *, cursor: Mapping[str, Any]) -> None:
        """Commit a checkpoint of `step` and prune, unless this process has it already.

        Raises: Superseded, NotLoadable: saving again will not help. A failing storage is counted instead.
        """
        if self._store.has(step):
            return
        started = time.monotonic()
        try:
            manifest = self._store.commit(step, capture(), cursor=cursor)
        except OSError as error:
            self._failed(step, error)
            return
        self.failures_in_row = 0
        self.seconds = time.monotonic() - started
        name = checkpoint_name(step, self._attempt)
        self._journal.append(Committed(step=step, name=name, bytes=manifest.bytes, seconds=self.seconds))
        try:
            self._store.prune()
        except OSError as error:
            log.warning("old checkpoints could not be removed", extra={"error": str(error)})

    def _failed(self, step: int, error: OSError) -> None:
        self.failures_in_row += 1
        self.last_failure = f"{type(error).__name__}: {error}"
        left = MAX_FAILURES_IN_ROW - self.failures_in_row
        then = f"{left} more in a row and the training stops" if left > 0 else "that is too many"
        say(
            f"spotlaunch: the checkpoint of step {step:,} could not be written ({self.last_failure}); older ones are "
            f"untouched; {then}. Free space in the run folder or make it writable"
        )
