"""Two places for one run's checkpoints: a fast disk of this machine first, the run folder behind it.

What lies on the disk survives a crashed trainer, and is there at once; what lies in the run folder survives the
machine. A checkpoint is shipped chunk by chunk, each hashed again on the way; only the newest one waits its turn.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from trainer_hooks.checkpoint.manifest import Chunk, Manifest
from trainer_hooks.checkpoint.store import Fetch, Loaded, Store
from trainer_hooks.errors import CheckpointsDamaged
from trainer_hooks.protocol import parse_checkpoint_name


@dataclass(frozen=True, slots=True)
class Found:
    """`tier` is the number of the store where it lies."""

    tier: int
    loaded: Loaded


class Shipped(Protocol):
    """What is done when a checkpoint has arrived in `store`, or did not: `error` says why not."""

    def __call__(self, store: Store, *, written_bytes: int, error: Exception | None) -> None: ...


@dataclass(slots=True)
class Cargo:
    """A checkpoint on its way."""

    manifest: Manifest
    shipped: Shipped
    left_bytes: int
    is_given_up: bool = False


class Shipper:
    """Rank 0's. `bytes_per_second` is how fast the last checkpoint was shipped, `None` before there was anything to."""

    def __init__(self, local: Store, remote: Store) -> None:
        self._local = local
        self._remote = remote
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

    def ship(self, manifest: Manifest, shipped: Shipped) -> None:
        """As soon as what is on its way has arrived; in the place of what still waits."""
        with self._changed:
            self._waiting = Cargo(manifest, shipped, left_bytes=manifest.bytes)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="spotlaunch-ship", daemon=True)
                self._thread.start()
            self._changed.notify_all()

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
        while True:
            with self._changed:
                self._current = None
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting is not None or self._is_closed)
                cargo = self._current = self._waiting
                self._waiting = None
            if cargo is None:
                return
            try:
                written_bytes, error = self._carry(cargo), None
            except Exception as caught:  # the top of a thread
                written_bytes, error = 0, caught
                self._remote.abandon()
            # An older one that fails behind a newer one was perhaps removed from the disk meanwhile.
            if error is None or not (cargo.is_given_up or self._waiting is not None):
                cargo.shipped(self._remote, written_bytes=written_bytes, error=error)

    def _carry(self, cargo: Cargo) -> int:
        started = time.monotonic()
        chunks = {chunk.hash: chunk for chunk in cargo.manifest.chunks}.values()
        with ThreadPoolExecutor(self._remote.parallel, thread_name_prefix="spotlaunch-ship") as pool:
            written_bytes = sum(pool.map(partial(self._carry_chunk, cargo), chunks))
        self._remote.commit(cargo.manifest)
        if written_bytes:
            self.bytes_per_second = written_bytes / (time.monotonic() - started)
        return written_bytes

    def _carry_chunk(self, cargo: Cargo, chunk: Chunk) -> int:
        if cargo.is_given_up:
            raise InterruptedError("given up for a newer checkpoint")
        is_there = self._remote.knows(chunk.hash)
        written = 0 if is_there else self._remote.put_chunk(chunk.hash, self._local.read_chunk(chunk))
        with self._changed:
            cargo.left_bytes -= chunk.bytes
        return written


def load_newest(tiers: Sequence[Store], *, fetch: Fetch) -> Found | None:
    """The newest checkpoint that verifies, wherever it lies; of two that are the same, the one in the first tier.

    Raises: CheckpointsDamaged: there are some, and none verifies. OSError: as `Store.load_newest`.
    """
    found: Found | None = None
    damaged: CheckpointsDamaged | None = None
    for number in sorted(range(len(tiers)), key=lambda number: _newest(tiers[number]), reverse=True):
        if found is not None and _newest(tiers[number]) <= _age(found.loaded):
            continue
        try:
            loaded = tiers[number].load_newest(fetch=fetch)
        except CheckpointsDamaged as error:
            damaged = error
            continue
        if loaded is not None and (found is None or _age(loaded) > _age(found.loaded)):
            found = Found(number, loaded)
    if found is None and damaged is not None:
        raise damaged
    return found


def _newest(store: Store) -> tuple[int, int]:
    """`(attempt, step)` of what lies there, as it is named; less than any where there is nothing."""
    named = parse_checkpoint_name(next(iter(store.names()), ""))
    return (-1, -1) if named is None else (named[1], named[0])


def _age(loaded: Loaded) -> tuple[int, int]:
    return loaded.manifest.attempt, loaded.manifest.step
