"""Two places for one run's checkpoints: a fast disk of this machine first, the run folder behind it.

What lies on the disk survives a crashed trainer, and is there at once; what lies in the run folder survives the
machine. A checkpoint is shipped chunk by chunk, each hashed again on the way; only the newest one waits its turn.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
class _Cargo:
    manifest: Manifest
    shipped: Shipped


class Shipper:
    """Rank 0's."""

    def __init__(self, local: Store, remote: Store) -> None:
        self._local = local
        self._remote = remote
        self._waiting: _Cargo | None = None
        self._is_busy = False
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def ship(self, manifest: Manifest, shipped: Shipped) -> None:
        """Later, but before anything older that still waits."""
        with self._changed:
            self._waiting = _Cargo(manifest, shipped)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="spotlaunch-ship", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Until everything has arrived or failed."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting is None and not self._is_busy, timeout_seconds)

    def close(self, *, timeout_seconds: float) -> None:
        self.wait(timeout_seconds)
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._is_closed)
                cargo, self._waiting = self._waiting, None
                if cargo is None:
                    return
                self._is_busy = True
            try:
                written_bytes, error = self._carry(cargo.manifest), None
            except Exception as caught:  # the top of a thread
                written_bytes, error = 0, caught
                self._remote.abandon()
            try:
                cargo.shipped(self._remote, written_bytes=written_bytes, error=error)
            finally:
                with self._changed:
                    self._is_busy = False
                    self._changed.notify_all()

    def _carry(self, manifest: Manifest) -> int:
        chunks = {chunk.hash: chunk for chunk in manifest.chunks}.values()
        with ThreadPoolExecutor(self._remote.parallel, thread_name_prefix="spotlaunch-ship") as pool:
            written_bytes = sum(pool.map(self._carry_chunk, chunks))
        self._remote.commit(manifest)
        return written_bytes

    def _carry_chunk(self, chunk: Chunk) -> int:
        if self._remote.knows(chunk.hash):
            return 0
        return self._remote.put_chunk(chunk.hash, self._local.read_chunk(chunk))


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
