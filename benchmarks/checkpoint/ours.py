"""`trainer_hooks.Session`, used as a training script uses it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.checkpoint.methods import Method, Pending
from benchmarks.checkpoint.training import Training
from trainer_hooks import Session
from trainer_hooks.protocol import CHECKPOINTS, MANIFEST, Committed, checkpoint_name, decode, journal_folder
from trainer_hooks.storage import open_storage

FOREVER = 10**9  # steps
GIVE_UP_SECONDS = 120.0
ATTEMPT = 1  # run folders are fresh


class Ours(Method):
    """Blocked is what the session reports or what was measured from outside, whichever is more.

    Durable is what its journal says, or else when `manifest.json` was seen.
    """

    fsyncs = True

    def __init__(self, snapshot: str, *, poll_seconds: float = 0.005) -> None:
        self.name = f"spotlaunch, {snapshot}"
        self._snapshot = snapshot
        self._poll_seconds = poll_seconds

    def open(self, training: Training, folder: Path) -> None:
        self.open_at(training, str(folder))

    def open_at(self, training: Training, run_uri: str) -> None:
        """`run_uri` may be a bucket's."""
        os.environ["LAUNCH_CHECKPOINT_SNAPSHOT"] = self._snapshot
        self.session = Session(
            model=training.model, optimizer=training.optimizer, run_uri=run_uri, checkpoint_every_steps=FOREVER
        )
        self.storage = open_storage(run_uri)
        self._batches: Iterator[int] = self.session(range(FOREVER), steps=FOREVER)
        self.advance()

    def advance(self) -> None:
        next(self._batches)

    def save(self) -> Pending:
        pending = Pending()
        self.session.save()
        self.advance()  # the safe point
        name = checkpoint_name(self.session.step, ATTEMPT)
        threading.Thread(target=pending.settle, args=(lambda: self._watch(pending, name),)).start()
        return pending

    def tidy(self) -> None:
        """The session keeps the newest and removes the others."""

    def close(self) -> None:
        self._batches.close()  # type: ignore[attr-defined]  # it is a generator, which the session does not promise
        self.session.close()

    def _watch(self, pending: Pending, name: str) -> None:
        seen_seconds, record = 0.0, None
        while record is None:
            time.sleep(self._poll_seconds)  # first of all: the clock of the blocked time is still running
            passed = time.perf_counter() - pending.asked_at
            if passed > GIVE_UP_SECONDS:
                raise TimeoutError(f"checkpoint {name} did not appear within {GIVE_UP_SECONDS:.0f} s")
            if not seen_seconds and MANIFEST in self.storage.names(f"{CHECKPOINTS}/{name}"):
                seen_seconds = passed
            record = self._record(name) if seen_seconds else None
        pending.reported_blocked_seconds = record.seconds
        pending.durable_seconds = getattr(record, "durable_seconds", None) or seen_seconds

    def _record(self, name: str) -> Committed | None:
        folder = journal_folder(ATTEMPT)
        for segment in reversed(self.storage.names(folder)):
            text = self.storage.read(f"{folder}/{segment}", limit_bytes=1 << 20).decode()
            for _, record in filter(None, map(decode, text.splitlines())):
                if isinstance(record, Committed) and record.name == name:
                    return record
        return None
