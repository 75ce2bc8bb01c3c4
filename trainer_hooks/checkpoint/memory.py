"""Room for chunks on their way from the training to the storage: page-aligned, kept from save to save.

A save that has to allocate is slow: the kernel clears every page before the first byte is copied. So what a save gave
back serves the next one, whose chunks have the same sizes.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import threading
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from trainer_hooks.checkpoint.layout import PAGE_BYTES

log = logging.getLogger(__name__)

_MADV_POPULATE_WRITE = 23  # <asm-generic/mman-common.h>; Python has no name for it
_POPULATED_BYTES = 64 << 20
"""At a time, as Python does not let go of the interpreter meanwhile."""
_HOST_REGISTER_PORTABLE = 1  # pinned for every GPU of the process: CUDA runtime API, cudaHostRegister


def room(size_bytes: int, *, is_populated: bool) -> mmap.mmap:
    """Page-aligned memory. Populated, its pages are there at once: faults from several threads cost more than reads.

    Private, as shared memory is made of small pages only, and a forked worker would write into it.
    """
    size = max(size_bytes, PAGE_BYTES)
    found = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # not Linux, or one before 5.14: the pages come with the first write
        found.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, size if is_populated else 0, _POPULATED_BYTES):
            found.madvise(_MADV_POPULATE_WRITE, at, min(_POPULATED_BYTES, size - at))
    return found


class Slot:
    """Room for one chunk. `address` is its first byte; `is_pinned`: a GPU copies into it without a detour."""

    def __init__(self, size_bytes: int, *, is_pinned: bool) -> None:
        self._map = room(size_bytes, is_populated=False)
        with suppress(AttributeError, OSError):  # a forked worker would have every page copied that is written here
            self._map.madvise(mmap.MADV_DONTFORK)
        self.bytes = size_bytes
        self.view = memoryview(self._map)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.is_pinned = is_pinned and _pin(self.address, size_bytes)

    def tensor(self) -> Any:
        """Its bytes as a tensor of uint8."""
        import torch

        return torch.frombuffer(self.view, dtype=torch.uint8)

    def close(self) -> None:
        """The memory goes back to the system once nobody looks at it any more."""
        if self.is_pinned:
            import torch

            torch.cuda.cudart().cudaHostUnregister(self.address)  # type: ignore[no-untyped-call]  # torch
            self.is_pinned = False


class Memory:
    """All slots of a session. With a limit, `take` waits until others were given back; thread-safe."""

    def __init__(self, *, is_pinned: bool = False) -> None:
        self._is_pinned = is_pinned
        self._limit_bytes: int | None = None
        self._free: list[Slot] = []
        self._taken_bytes = 0
        self._changed = threading.Condition()

    def limit(self, limit_bytes: int | None) -> None:
        """How much may be taken at once; a single slot may always."""
        with self._changed:
            self._limit_bytes = limit_bytes
            self._changed.notify_all()

    def take(self, size_bytes: int, *, waits: bool = True) -> Slot:
        """Exactly that much room; its old content is still there. `waits=False`: whatever the limit.

        Raises: MemoryError, OSError: the machine has no more.
        """
        with self._changed:
            if waits:
                self._changed.wait_for(lambda: self._fits(size_bytes))
            self._taken_bytes += size_bytes
            for number in reversed(range(len(self._free))):  # the last one given back is still in the CPU's cache
                if self._free[number].bytes == size_bytes:
                    return self._free.pop(number)
            self._make_room(size_bytes)
        try:
            return Slot(size_bytes, is_pinned=self._is_pinned)
        except BaseException:
            with self._changed:
                self._taken_bytes -= size_bytes
            raise

    def give_back(self, slot: Slot) -> None:
        with self._changed:
            self._taken_bytes -= slot.bytes
            self._free.append(slot)
            self._changed.notify_all()

    def keep_only(self, sizes_bytes: Iterable[int]) -> None:
        """Free what a save with chunks of these sizes would not take."""
        with self._changed:
            wanted, kept = Counter(sizes_bytes), list[Slot]()
            for slot in self._free:
                if wanted[slot.bytes] > 0:
                    wanted[slot.bytes] -= 1
                    kept.append(slot)
                else:
                    slot.close()
            self._free = kept

    def _fits(self, size_bytes: int) -> bool:
        return not self._taken_bytes or self._limit_bytes is None or self._taken_bytes + size_bytes <= self._limit_bytes

    def _make_room(self, size_bytes: int) -> None:
        """Under a limit, free slots of other sizes count, too."""
        if self._limit_bytes is None:
            return
        while self._free and self._taken_bytes + sum(slot.bytes for slot in self._free) > self._limit_bytes:
            self._free.pop(0).close()


def _pin(address: int, size_bytes: int) -> bool:
    """Not through torch's own pinned allocator, which rounds up to powers of two."""
    import torch

    status = torch.cuda.cudart().cudaHostRegister(address, size_bytes, _HOST_REGISTER_PORTABLE)  # type: ignore[no-untyped-call]  # torch
    if int(status) != 0:
        log.warning("memory could not be pinned; copies from the GPU will be slower", extra={"status": int(status)})
        with suppress(RuntimeError):  # it stays this thread's last error: a kernel of ours takes the blame for it
            torch.ones(1, device="cuda")
        return False
    return True
