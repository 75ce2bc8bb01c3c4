"""Saving beside the training: one save in flight, from the snapshot at a safe point to its commit.

    safe point ──▶ snapshot ──▶ hash, write ──▶ parts of all ranks ──▶ commit ──▶ prune
    (the training)  (a thread)   (a pool)        (rank 0)

A failure is shown and counted, never fatal by itself: the session asks `failures_in_row` at its safe points.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from typing import Any

from trainer_hooks.checkpoint import shards, tree
from trainer_hooks.checkpoint.fences import Ownership
from trainer_hooks.checkpoint.image import Image, Own, image_of
from trainer_hooks.checkpoint.manifest import Chunk, Manifest, hash_of
from trainer_hooks.checkpoint.memory import Memory
from trainer_hooks.checkpoint.snapshot import Copied, Snapshot
from trainer_hooks.checkpoint.store import Store
from trainer_hooks.checkpoint.tiers import Shipped, Shipper
from trainer_hooks.errors import Superseded
from trainer_hooks.journal import Journal
from trainer_hooks.meter import say
from trainer_hooks.protocol import Committed, checkpoint_name
from trainer_hooks.ranks import Board, Ranks
from trainer_hooks.settings import Settings

log = logging.getLogger(__name__)

MAX_FAILURES_IN_ROW = 3
LAZY_SHARE = 0.25
"""Of the state, that a lazy snapshot may hold in memory."""
PARTS_SECONDS = 900.0
"""Until rank 0 gives up a save to which another rank never delivered its part."""


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
    stood_seconds: float = 0.0  # at the safe point
    fenced_seconds: float = 0.0  # before optimizer steps
    total_bytes: int = 0
    done_bytes: int = 0  # hashed, and written where that was needed
    written_bytes: int = 0
    is_given_up: bool = False
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def blocked_seconds(self) -> float:
        return self.stood_seconds + self.fenced_seconds

    @property
    def left_bytes(self) -> int:
        return self.total_bytes - self.done_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Of the last save that was committed, in seconds and bytes."""

    stood_seconds: float
    lost_seconds: float
    durable_seconds: float
    written_bytes: int
    bytes_per_second: float | None  # None: nothing had to be written


class Saver:
    """One per rank; the first one commits. `slowed_seconds` tells how much longer the steps beside this save took."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        ranks: Ranks,
        *,
        settings: Settings,
        shipper: Shipper | None,
        slowed_seconds: Callable[[], float],
    ) -> None:
        self._store = store
        self._journal = journal
        self._ranks = ranks
        self._board = Board(ranks)
        self._settings = settings
        self._shipper = shipper
        self._slowed_seconds = slowed_seconds
        self._memory: Memory | None = None
        self._writers = ThreadPoolExecutor(store.parallel, thread_name_prefix="spotlaunch-write")
        self._current: Save | None = None
        self._saves = 0
        self._counting = threading.Lock()
        self.is_urgent = False
        self.committed_step: int | None = None  # on the first tier
        self.durable_step: int | None = None  # in the run folder
        self.costs: Costs | None = None
        self.failures_in_row = 0
        self.last_failure = ""
        self.superseded = ""

    @property
    def current(self) -> Save | None:
        """The save in flight."""
        return self._current if self._current is not None and not self._current.over.is_set() else None

    def begin(self, wanted: Wanted, components: Mapping[str, Any], ownership: Ownership) -> None:
        """At a safe point, on every rank alike. Waits for the save before, if that is still in flight.

        Raises: NotLoadable: saving again will not help.
        """
        started = time.monotonic()
        self.wait()
        own = Own(ownership.each_ranks_own, self._ranks.rank, self._ranks.world_size if self._ranks.can_agree else 1)
        image = image_of(components, owned=ownership.owned, frozen=ownership.frozen, own=own)
        save = Save(wanted=wanted, snapshot=self._snapshot(image), started=started)
        save.total_bytes = sum(image.layout.chunk_bytes[chunk] for chunk in save.snapshot.chunks)
        try:
            exposed = save.snapshot.copy_exposed(everything=self._settings.snapshot == "blocking")
        except (OSError, MemoryError) as error:
            self._failed(wanted.step, error)
            return
        self._current = save
        self._saves += 1
        threading.Thread(target=self._run, args=(save, exposed), name="spotlaunch-save", daemon=True).start()
        save.stood_seconds += time.monotonic() - started

    def fence(self) -> None:
        """Returns when an optimizer may step."""
        save = self._current
        if save is not None and not save.snapshot.is_fenced:
            started = time.monotonic()
            save.snapshot.fence()
            save.fenced_seconds += time.monotonic() - started

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Until the save in flight is over, well or not; false if it is not, after that time."""
        return self._current is None or self._current.over.wait(timeout_seconds)

    def give_up(self) -> None:
        """Write no more of the save in flight; what it has written serves the next one."""
        if self._current is not None:
            self._current.is_given_up = True
        if self._shipper is not None:
            self._shipper.give_up()

    def wait_shipped(self) -> None:
        """Until what was committed on the local disk is in the run folder, too, or could not be brought there."""
        if self._shipper is not None:
            self._shipper.wait()

    def close(self, *, timeout_seconds: float) -> None:
        """End the threads, once what they do is done or the time is over."""
        until = time.monotonic() + timeout_seconds
        self.wait(timeout_seconds)
        if self._shipper is not None:
            self._shipper.close(timeout_seconds=max(0.0, until - time.monotonic()))
        self._writers.shutdown(wait=False, cancel_futures=True)

    def _snapshot(self, image: Image) -> Snapshot:
        if self._memory is None:
            self._memory = Memory(is_pinned=any(row.device.type == "cuda" for row in image.rows))
        rank, world_size = self._ranks.rank, self._ranks.world_size if self._ranks.can_agree else 1
        sizes = image.layout.chunk_bytes
        mine = tuple(n for n in range(len(sizes)) if image.is_mine(n, rank=rank, world_size=world_size))
        self._memory.limit(int(sum(sizes[n] for n in mine) * LAZY_SHARE) if self._settings.snapshot == "lazy" else None)
        self._memory.keep_only([sizes[n] for n in mine])
        return Snapshot(image=image, memory=self._memory, chunks=mine, is_audited=self._settings.audit)

    def _run(self, save: Save, exposed: list[Copied]) -> None:
        """The save's own thread."""
        key = f"save/{self._saves}"
        try:
            try:
                part = self._written(save, exposed)
            except Exception as error:
                self._board.deliver(key, shards.no_part(self._ranks.rank, error))
                raise
            self._board.deliver(key, part.to_json())
            if self._ranks.is_first:
                self._conclude(save, key)
            else:
                self._hear_the_end(key)
            self.failures_in_row = 0
        except Superseded as superseded:
            self.superseded = str(superseded)
        except Exception as error:  # the top of a thread
            self._store.abandon()
            if not save.is_given_up:
                self._failed(save.wanted.step, error)
        finally:
            save.over.set()

    def _written(self, save: Save, exposed: list[Copied]) -> shards.Part:
        image, hashes = save.snapshot.image, dict[int, Future[str]]()
        try:
            for copied in chain(exposed, save.snapshot.copy_rest()):
                hashes[copied.chunk] = self._writers.submit(self._put, save, copied)
        finally:
            for future in hashes.values():
                future.exception()  # waits: a slot must not be filled again while it is read
        save.snapshot.demand_whole()
        sizes = image.layout.chunk_bytes
        return shards.Part(
            rank=self._ranks.rank,
            place=tree.encode(save.wanted.place, None),
            tensors=image.tensors,
            chunks=tuple(Chunk(hashes[n].result(), sizes[n]) if n in hashes else None for n in range(len(sizes))),
            replicated_chunks=image.replicated_chunks,
        )

    def _put(self, save: Save, copied: Copied) -> str:
        """A writer thread's work: hashing lets go of the interpreter, so it hides behind the other threads' writes."""
        try:
            copied.wait()
            if save.is_given_up:
                raise OSError(f"the save of step {save.wanted.step:,} was given up for a newer one")
            chunk_hash = hash_of(copied.slot.view)
            written = self._store.put_chunk(chunk_hash, copied.slot.view)
            with self._counting:
                save.written_bytes += written
                save.done_bytes += copied.slot.bytes
            return chunk_hash
        finally:
            save.snapshot.memory.give_back(copied.slot)

    def _conclude(self, save: Save, key: str) -> None:
        """Rank 0's end of a save. The others are told how it went."""
        try:
            parts = [shards.Part.from_json(raw) for raw in self._board.collect(key, timeout_seconds=PARTS_SECONDS)]
            manifest = self._manifest(save, parts)
            self._store.commit(manifest)
        except Exception as error:
            self._board.announce(f"{key}/end", json.dumps(f"rank 0: {error}").encode())
            raise
        self._board.announce(f"{key}/end", json.dumps([chunk.hash for chunk in manifest.chunks]).encode())
        self.committed_step = save.wanted.step
        self._record(save, manifest, durable_seconds=time.monotonic() - save.started)

    def _hear_the_end(self, key: str) -> None:
        """Any other rank's. Raises: OSError: the save was not committed."""
        end = json.loads(self._board.wait(f"{key}/end", timeout_seconds=PARTS_SECONDS))
        if isinstance(end, str):
            raise OSError(end)
        self._store.committed_elsewhere(end)

    def _manifest(self, save: Save, parts: list[shards.Part]) -> Manifest:
        import torch

        merged = shards.merge(parts)
        return Manifest(
            step=save.wanted.step,
            attempt=self._store.owner.attempt,
            run_id=self._store.owner.run_id,
            created_at=datetime.fromtimestamp(time.time(), UTC),
            torch=torch.__version__,
            world_size=len(parts),
            cursor=save.wanted.cursor,
            state=save.snapshot.image.state,
            ranks=merged.ranks,
            tensors=merged.tensors,
            chunks=merged.chunks,
            metrics=save.wanted.metrics,
        )

    def _record(self, save: Save, manifest: Manifest, *, durable_seconds: float) -> None:
        lost_seconds = save.stood_seconds + max(save.fenced_seconds, self._slowed_seconds())
        self.costs = Costs(
            stood_seconds=save.stood_seconds,
            lost_seconds=lost_seconds,
            durable_seconds=durable_seconds,
            written_bytes=save.written_bytes,
            bytes_per_second=save.written_bytes / durable_seconds if save.written_bytes else None,
        )
        record = Committed(
            step=manifest.step,
            name=checkpoint_name(manifest.step, manifest.attempt),
            bytes=manifest.bytes,
            seconds=save.blocked_seconds,
            lost_seconds=lost_seconds,
            durable_seconds=durable_seconds,
            written_bytes=save.written_bytes,
            local_only=self._shipper is not None,
        )
        self._journal.append(self._pruned(self._store, record))
        if self._shipper is None:
            self.durable_step = manifest.step
        else:
            self._shipper.ship(manifest, self._shipped(record, save.started))

    def _shipped(self, record: Committed, started: float) -> Shipped:
        def shipped(store: Store, *, written_bytes: int, error: Exception | None) -> None:
            if isinstance(error, Superseded):
                self.superseded = str(error)
            elif error is not None:
                self._failed(record.step, error)
            else:
                seconds = time.monotonic() - started
                self.durable_step = record.step
                arrived = replace(record, durable_seconds=seconds, written_bytes=written_bytes, local_only=False)
                self._journal.append(self._pruned(store, arrived))

        return shipped

    def _pruned(self, store: Store, record: Committed) -> Committed:
        """With what is left in the store; nothing is removed while a notice runs out."""
        if self.is_urgent:
            return record
        try:
            kept = store.prune()
        except OSError as error:
            log.warning("old checkpoints could not be removed", extra={"error": str(error)})
            return record
        return replace(record, stored_bytes=kept.stored_bytes, kept=len(kept.names))

    def _failed(self, step: int, error: BaseException) -> None:
        self.failures_in_row += 1
        self.last_failure = f"{type(error).__name__}: {error}"
        left = MAX_FAILURES_IN_ROW - self.failures_in_row
        then = f"{left} more in a row and the training stops" if left > 0 else "that is too many"
        say(
            f"spotlaunch: the checkpoint of step {step:,} could not be written ({self.last_failure}); older ones are "
            f"untouched; {then}. Free space in the run folder or make it writable"
        )
