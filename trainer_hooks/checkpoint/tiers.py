"""Two places for one run's checkpoints: a fast disk of this machine first, the run folder behind it.

What lies on the disk survives a crashed trainer, and is there at once; what lies in the run folder survives the
machine. A checkpoint is shipped chunk by chunk, each hashed again on the way; only the newest one waits its turn.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import Protocol

from trainer_hooks.checkpoint.manifest import Chunk, Manifest
from trainer_hooks.checkpoint.reader import in_parallel
from trainer_hooks.checkpoint.store import Store
from trainer_hooks.protocol import checkpoint_name

log = logging.getLogger(__name__)


class Shipped(Protocol):
    """What is done when a checkpoint has arrived in `store`, or did not: `error` says why not."""

    def __call__(self, store: Store, *, written_bytes: int, error: Exception | None) -> None: ...


@dataclass(slots=True, eq=False)
class Cargo:
    """A checkpoint on its way."""

    manifest: Manifest
    shipped: Shipped
    left_bytes: int
    written_bytes: int = 0
    is_given_up: bool = False
    has_arrived: bool = False

    @property
    def name(self) -> str:
        return checkpoint_name(self.manifest.step, self.manifest.attempt)


class Shipper:
    """Rank 0's. `bytes_per_second` is how fast the last checkpoint was shipped, `None` before there was anything to."""

    def __init__(self, local: Store, remote: Store) -> None:
        self._local = local
        self._remote = remote
        self._newest: Cargo | None = None
        self._waiting: Cargo | None = None
        self._current: Cargo | None = None
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self.bytes_per_second: float | None = None

    @property
    def cargo(self) -> Cargo | None:
        """What is on its way, or next."""
        return self._current or self._waiting

    @property
    def is_behind(self) -> bool:
        """The newest checkpoint has not arrived."""
        return self._newest is not None and not self._newest.has_arrived

    @property
    def names(self) -> set[str]:
        """Of the checkpoints that the local store must keep for now: else a slow line would never bring any."""
        with self._changed:
            return {cargo.name for cargo in (self._current, self._waiting) if cargo is not None}

    def ship(self, manifest: Manifest, shipped: Shipped) -> None:
        """As soon as what is on its way has arrived; in the place of what still waits."""
        with self._changed:
            self._newest = self._waiting = Cargo(manifest, shipped, left_bytes=manifest.bytes)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="spotlaunch-ship", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def ship_again(self) -> None:
        """The newest one, where it has not arrived and nobody is bringing it."""
        with self._changed:
            newest = self._newest
            if newest is None or newest.has_arrived or newest is self._waiting:
                return
            if newest is not self._current or newest.is_given_up:
                self.ship(newest.manifest, newest.shipped)

    def give_up(self) -> None:
        """Bring nothing more of what is on its way or waits; nobody is told."""
        with self._changed:
            self._waiting = None
            if self._current is not None:
                self._current.is_given_up = True

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Until everything has arrived or failed."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting is None and self._current is None, timeout_seconds)

    def close(self, *, timeout_seconds: float) -> None:
        self.wait(timeout_seconds)
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        try:
            while (cargo := self._next()) is not None:
                self._bring(cargo)
        finally:
            with self._changed:  # nobody waits for a thread that is gone
                self._thread = self._current = self._waiting = None
                self._changed.notify_all()

    def _next(self) -> Cargo | None:
        """What to bring; `None` at the end."""
        with self._changed:
            self._current = None
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting is not None or self._is_closed)
            self._current, self._waiting = self._waiting, None
            return self._current

    def _bring(self, cargo: Cargo) -> None:
        error: Exception | None = None
        try:
            self._carry(cargo)
            cargo.has_arrived = True
        except Exception as caught:  # the top of a thread
            error = caught
            self._remote.abandon()
        if error is not None and cargo.is_given_up:
            return
        try:
            cargo.shipped(self._remote, written_bytes=cargo.written_bytes, error=error)
        except Exception:  # the top of a thread
            log.exception("a checkpoint's arrival was not recorded", extra={"checkpoint": cargo.name})

    def _carry(self, cargo: Cargo) -> None:
        started = time.monotonic()
        self._remote.fence()
        chunks = {chunk.hash: chunk for chunk in cargo.manifest.chunks}.values()
        unknown = [chunk for chunk in chunks if not self._remote.knows(chunk.hash)]
        cargo.left_bytes = sum(chunk.bytes for chunk in unknown)
        in_parallel(lambda chunk: self._carry_chunk(cargo, chunk), unknown, threads=self._remote.parallel)
        self._remote.commit(cargo.manifest)
        if cargo.written_bytes:
            self.bytes_per_second = cargo.written_bytes / (time.monotonic() - started)

    def _carry_chunk(self, cargo: Cargo, chunk: Chunk) -> None:
        if cargo.is_given_up:
            raise InterruptedError("given up for a newer checkpoint")
        written = self._remote.put_chunk(chunk.hash, self._local.read_chunk(chunk))
        with self._changed:
            cargo.written_bytes += written
            cargo.left_bytes -= chunk.bytes
