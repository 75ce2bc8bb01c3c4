"""Saving beside the training: one save in flight, from the snapshot at a safe point to its commit.

    safe point ──▶ snapshot ──▶ hash, write ──▶ parts of all ranks ──▶ commit ──▶ prune
    (the training)  (a thread)   (a pool)        (rank 0)

A failure is shown and counted, never fatal by itself: the session asks for `failure` at its safe points.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from typing import Any

from trainer_hooks.checkpoint import shards, tree
from trainer_hooks.checkpoint.fences import Ownership
from trainer_hooks.checkpoint.image import Image, Own, image_of
from trainer_hooks.checkpoint.manifest import Chunk, Manifest, hash_of
from trainer_hooks.checkpoint.memory import Memory
from trainer_hooks.checkpoint.save import Costs, Save, Wanted
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
        self._turn_seconds = 0.0
        self._counting = threading.Lock()
        self.is_urgent = False
        self.committed_step: int | None = None  # on the first tier
        self.durable_step: int | None = None  # in the run folder
        self.costs: Costs | None = None
        self.failures_in_row = 0
        self.unshipped_in_row = 0
        self.last_failure = ""
        self.superseded = ""

    @property
    def current(self) -> Save | None:
        """The save in flight."""
        return self._current if self._current is not None and not self._current.over.is_set() else None

    @property
    def is_settled(self) -> bool:
        """The newest save went well, and nothing has to be brought to the run folder any more."""
        return not self.failures_in_row and (self._shipper is None or not self._shipper.is_behind)

    @property
    def failure(self) -> str:
        """Too many saves in a row have failed, or did not come further than the local disk: the last one's reason."""
        return self.last_failure if max(self.failures_in_row, self.unshipped_in_row) >= MAX_FAILURES_IN_ROW else ""

    def begin(self, wanted: Wanted, components: Mapping[str, Any], ownership: Ownership) -> None:
        """At a safe point, on every rank alike. Waits for the save before, if that is still in flight.

        Raises: NotLoadable: saving again will not help.
        """
        started, self._turn_seconds = time.monotonic() - self._turn_seconds, 0.0
        self.wait()
        begun = time.monotonic()
        own = Own(ownership.each_ranks_own, self._ranks.rank, self._ranks.group_size)
        image = image_of(components, owned=ownership.owned, frozen=ownership.frozen, own=own)
        save = Save(wanted=wanted, snapshot=self._snapshot(image), started=started, begun=begun)
        save.total_bytes = sum(image.layout.chunk_bytes[chunk] for chunk in save.snapshot.chunks)
        exposed: list[Copied] | Exception
        try:
            exposed = save.snapshot.copy_exposed(everything=self._settings.snapshot == "blocking")
        except (OSError, MemoryError) as error:
            exposed = error  # the other ranks have begun, and have to be told
        self._current = save
        self._saves += 1
        save.capture_seconds, save.stood_seconds = time.monotonic() - begun, time.monotonic() - started
        threading.Thread(target=self._run, args=(save, exposed), name="spotlaunch-save", daemon=True).start()

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

    def wait_for_turn(self) -> None:
        """Until the next save may begin; that it had to wait is part of what it costs."""
        started = time.monotonic()
        self.wait()
        self._turn_seconds += time.monotonic() - started

    def give_up(self) -> None:
        """Write no more of the save in flight; what it has written serves the next one."""
        if self._current is not None:
            self._current.is_given_up = True
        if self._shipper is not None:
            self._shipper.give_up()

    def ship_found(self, manifest: Manifest) -> None:
        """Of an earlier attempt that came no further than the local disk."""
        record = Committed(
            step=manifest.step,
            name=checkpoint_name(manifest.step, manifest.attempt),
            bytes=manifest.bytes,
            seconds=0.0,
        )
        if self._shipper is not None:
            self._shipper.ship(manifest, self._shipped(record, time.monotonic()))

    def ship_again(self) -> None:
        """The newest one on the local disk, where it could not be brought to the run folder."""
        if self._shipper is not None:
            self._shipper.ship_again()

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
        if self._memory is not None:
            self._memory.keep_only(())  # what a GPU knows as pinned must not be unmapped before it is told

    def _snapshot(self, image: Image) -> Snapshot:
        if self._memory is None:
            self._memory = Memory(is_pinned=any(row.device.type == "cuda" for row in image.rows))
        rank, world_size = self._ranks.rank, self._ranks.group_size
        sizes = image.layout.chunk_bytes
        mine = tuple(n for n in range(len(sizes)) if image.is_mine(n, rank=rank, world_size=world_size))
        self._memory.limit(int(sum(sizes[n] for n in mine) * LAZY_SHARE) if self._settings.snapshot == "lazy" else None)
        self._memory.keep_only([sizes[n] for n in mine])
        return Snapshot(image=image, memory=self._memory, chunks=mine, is_audited=self._settings.audit)

    def _run(self, save: Save, exposed: list[Copied] | Exception) -> None:
        """The save's own thread. A save fails on all ranks or on none, so that they count alike."""
        key, failure = f"save/{self._saves}", None
        try:
            try:
                part = self._written(save, exposed).to_json()
            except Exception as error:
                part, failure = shards.no_part(self._ranks.rank, error), error
            self._board.deliver(key, part)
            if self._ranks.is_first:
                self._conclude(save, key, failure)
            else:
                self._hear_the_end(save, key)
            self.failures_in_row = 0
        except Superseded as superseded:
            self.superseded = str(superseded)
        except Exception as error:  # the top of a thread
            self._store.abandon()
            if not save.is_given_up:
                self._failed(save.wanted.step, error)
        finally:
            save.snapshot.release()
            save.over.set()

    def _written(self, save: Save, exposed: list[Copied] | Exception) -> shards.Part:
        if isinstance(exposed, Exception):
            raise exposed
        image, hashes = save.snapshot.image, dict[int, Future[str]]()
        try:
            for copied in chain(exposed, save.snapshot.copy_rest()):
                hashes[copied.chunk] = self._writers.submit(self._put, save, copied)
        finally:
            for future in hashes.values():
                future.exception()  # waits: a slot must not be filled again while it is read
        if save.error is not None:
            raise save.error
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
            save.demand_wanted()
            chunk_hash = hash_of(copied.slot.view)
            written = self._store.put_chunk(chunk_hash, copied.slot.view)
        except Exception as error:
            save.error = save.error or error
            raise
        else:
            with self._counting:
                save.written_bytes += written
                save.done_bytes += copied.slot.bytes
            return chunk_hash
        finally:
            save.snapshot.memory.give_back(copied.slot)

    def _conclude(self, save: Save, key: str, failure: Exception | None) -> None:
        """Rank 0's end of a save; `failure` is its own. The others are told how it went."""
        try:
            manifest = self._manifest(save, self._parts(key, failure))
            self._store.commit(manifest)
            self.committed_step = save.wanted.step
            self._record(save, manifest, durable_seconds=time.monotonic() - save.started)
            self._demand_no_newer()
        except Exception as error:
            kind = "superseded" if isinstance(error, Superseded) else "failure"
            self._board.announce(f"{key}/end", json.dumps({kind: str(error)}).encode())
            raise
        # Behind the prune, which must not meet chunks of the others' next save.
        self._board.announce(f"{key}/end", json.dumps([chunk.hash for chunk in manifest.chunks]).encode())

    def _demand_no_newer(self) -> None:
        """Raises: Superseded: this was found out behind the commit."""
        if self.superseded:
            raise Superseded(self.superseded)

    def _parts(self, key: str, failure: Exception | None) -> list[shards.Part]:
        """All ranks', once none of them writes any more. Raises: OSError: one has failed. `failure`."""
        collected = self._board.collect(key, timeout_seconds=PARTS_SECONDS)
        if failure is not None:
            raise failure
        return [shards.Part.from_json(raw) for raw in collected]

    def _hear_the_end(self, save: Save, key: str) -> None:
        """Any other rank's. Raises: Superseded. OSError: the save was not committed."""
        end = json.loads(self._board.wait(f"{key}/end", timeout_seconds=PARTS_SECONDS))
        if isinstance(end, list):
            self._store.committed_elsewhere(end)
            self.committed_step = save.wanted.step
            return
        self._store.committed_elsewhere(())
        if "superseded" in end:
            raise Superseded(end["superseded"])
        raise OSError(end["failure"])

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
        speed = self.costs.bytes_per_second if self.costs else None
        if save.written_bytes:
            speed = save.written_bytes / (time.monotonic() - save.begun)
        self.costs = Costs(
            capture_seconds=save.capture_seconds,
            stood_seconds=save.stood_seconds,
            fenced_seconds=save.fenced_seconds,
            durable_seconds=durable_seconds,
            written_bytes=save.written_bytes,
            bytes_per_second=speed,
        )
        record = Committed(
            step=manifest.step,
            name=checkpoint_name(manifest.step, manifest.attempt),
            bytes=manifest.bytes,
            seconds=save.blocked_seconds,
            lost_seconds=self.costs.lost_seconds(self._slowed_seconds()),
            durable_seconds=durable_seconds,
            written_bytes=save.written_bytes,
            local_only=self._shipper is not None,
        )
        on_their_way = self._shipper.names if self._shipper is not None else set[str]()
        self._journal.append(self._pruned(self._store, record, beside=on_their_way))
        if self._shipper is None:
            self.durable_step = manifest.step
        else:
            self._shipper.ship(manifest, self._shipped(record, save.started))

    def _shipped(self, record: Committed, started: float) -> Shipped:
        def shipped(store: Store, *, written_bytes: int, error: Exception | None) -> None:
            if isinstance(error, Superseded):
                self.superseded = str(error)
            elif error is not None:
                self.unshipped_in_row += 1
                self._complain(f"checkpoint {record.name} stays on this machine's disk for now", error)
            else:
                seconds = time.monotonic() - started
                self.durable_step, self.unshipped_in_row = record.step, 0
                arrived = replace(record, durable_seconds=seconds, written_bytes=written_bytes, local_only=False)
                self._journal.append(self._pruned(store, arrived, beside=()))

        return shipped

    def _pruned(self, store: Store, record: Committed, *, beside: Collection[str]) -> Committed:
        """With what is left in the store; nothing is removed while a notice runs out."""
        if self.is_urgent:
            return record
        try:
            kept = store.prune(beside=beside)
        except Superseded as superseded:
            self.superseded = str(superseded)
            return record
        except OSError as error:
            log.warning("old checkpoints could not be removed", extra={"error": str(error)})
            return record
        return replace(record, stored_bytes=kept.stored_bytes, kept=len(kept.names))

    def _failed(self, step: int, error: BaseException) -> None:
        self.failures_in_row += 1
        self._complain(f"the checkpoint of step {step:,} could not be written", error)

    def _complain(self, what: str, error: BaseException) -> None:
        self.last_failure = f"{type(error).__name__}: {error}"
        if not self._ranks.is_first:
            return  # it was told why, and tells the user
        left = MAX_FAILURES_IN_ROW - max(self.failures_in_row, self.unshipped_in_row)
        then = f"{left} more in a row and the training stops" if left > 0 else "that is too many"
        say(
            f"spotlaunch: {what} ({self.last_failure}); older ones are untouched; {then}. Free space in the run "
            "folder or make it writable"
        )
