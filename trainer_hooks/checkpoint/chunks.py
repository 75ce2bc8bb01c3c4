"""The chunks of a run folder, and what this process may rely on of them; from any thread.

A chunk is *known* if this process wrote it or found its hash right: then it is not written again. Nothing else is
trusted. It is *in flight* from when a save relies on it until a manifest names it: then it is not removed.
"""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trainer_hooks.checkpoint.manifest import Chunk
from trainer_hooks.checkpoint.memory import room
from trainer_hooks.checkpoint.reader import CHUNKS, fetch
from trainer_hooks.errors import Damaged

if TYPE_CHECKING:
    from trainer_hooks.storage import Storage

_NAME = re.compile(r"[0-9a-f]{32}")


class Chunks:
    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._known: set[str] = set()
        self._wrong: set[str] = set()
        self._in_flight: set[str] = set()
        self._busy: set[str] = set()  # being written or removed
        self._changed = threading.Condition()

    def knows(self, chunk_hash: str) -> bool:
        """Whether it need not be written. If so, the save that asks relies on it."""
        with self._changed:
            if chunk_hash not in self._known:
                return False
            self._in_flight.add(chunk_hash)
            return True

    def put(self, chunk_hash: str, data: memoryview) -> int:
        """Bytes written: 0 where the chunk is known, or another thread has written it meanwhile."""
        with self._changed:
            self._in_flight.add(chunk_hash)  # before anything else: from here on it is not removed
            self._changed.wait_for(lambda: chunk_hash not in self._busy)
            if chunk_hash in self._known:
                return 0
            self._busy.add(chunk_hash)
        with self._released([chunk_hash]):
            self._storage.put(f"{CHUNKS}/{chunk_hash}", data)
            self.heard(chunk_hash, True)
        return len(data)

    def heard(self, chunk_hash: str, is_right: bool) -> None:
        """Its bytes were hashed. What is wrong is written again by the next save that needs it."""
        with self._changed:
            (self._known if is_right else self._wrong).add(chunk_hash)
            (self._wrong if is_right else self._known).discard(chunk_hash)

    def read(self, chunk: Chunk) -> memoryview:
        """Raises: Damaged: it is not what was written."""
        data = memoryview(room(chunk.bytes, is_populated=False))[: chunk.bytes]
        fetch(self._storage, chunk, data)
        return data

    def demand_none_wrong(self, wanted: Iterable[Chunk]) -> None:
        """Raises: Damaged: one of them was already found wrong, so the others need not be read."""
        with self._changed:
            wrong = next((chunk.hash for chunk in wanted if chunk.hash in self._wrong), None)
        if wrong is not None:
            raise Damaged(f"{CHUNKS}/{wrong} is not what was written, as in a newer checkpoint")

    def settle(self, wanted: Iterable[Chunk]) -> None:
        """Make their names durable. Nothing may refer to what is not there, so they are looked up as well.

        Raises: OSError: one is missing, or of another size; it is not known any more, so the next save writes it.
        """
        self._storage.sync(CHUNKS)
        sizes = self._storage.sizes(CHUNKS)
        missing = {chunk.hash for chunk in wanted if sizes.get(chunk.hash) != chunk.bytes}
        if missing:
            with self._changed:
                self._known -= missing
            raise OSError(errno.ENOENT, f"{len(missing):,} chunks are not there any more", f"{CHUNKS}/{min(missing)}")

    def landed(self, hashes: Iterable[str]) -> None:
        """A manifest names these now."""
        with self._changed:
            self._in_flight.difference_update(hashes)

    def forget_but(self, hashes: Iterable[str]) -> None:
        """Rely on no others: another process may have removed them."""
        with self._changed:
            self._known.intersection_update(hashes)

    def abandon(self) -> None:
        """No save relies on anything at this moment."""
        with self._changed:
            self._in_flight.clear()

    def remove_but(self, referenced: set[str]) -> int:
        """Remove all that is neither referenced nor in flight, and what unfinished puts left; bytes that remain."""
        sizes = {name: size for name, size in self._storage.sizes(CHUNKS).items() if _NAME.fullmatch(name)}
        going = [name for name in sorted(sizes.keys() - referenced) if self._may_go(name)]
        with self._released(going):
            self._storage.remove(CHUNKS, going)
        self._storage.sweep(CHUNKS)
        return sum(sizes.values()) - sum(sizes[name] for name in going)

    def stored_bytes(self) -> int:
        return sum(size for name, size in self._storage.sizes(CHUNKS).items() if _NAME.fullmatch(name))

    def _may_go(self, chunk_hash: str) -> bool:
        """If so, it is busy: who wants to write it waits until it is gone."""
        with self._changed:
            if chunk_hash in self._in_flight or chunk_hash in self._busy:
                return False
            self._known.discard(chunk_hash)
            self._busy.add(chunk_hash)
            return True

    @contextmanager
    def _released(self, hashes: Iterable[str]) -> Iterator[None]:
        try:
            yield
        finally:
            with self._changed:
                self._busy.difference_update(hashes)
                self._changed.notify_all()
