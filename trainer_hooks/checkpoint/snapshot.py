"""One snapshot of a state: copied chunk by chunk, in part while the training goes on.

At the safe point `copy_exposed` takes what may change at any moment. `copy_rest` takes the rest on another thread, and
`fence`, which the session calls before every optimizer step, returns when nothing of it can be torn any more: on a CPU
when all is copied, on a GPU as soon as the copies are queued before the step.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from trainer_hooks.checkpoint import tree
from trainer_hooks.checkpoint.image import Image
from trainer_hooks.checkpoint.manifest import hash_of
from trainer_hooks.checkpoint.memory import Memory, Slot
from trainer_hooks.errors import Torn

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Copied:
    """A chunk in memory of ours. `wait` returns when its bytes are there: a GPU may still be sending them."""

    chunk: int
    slot: Slot
    wait: Callable[[], None]


class _Queues:
    """CUDA's streams: copies run on one of their own, behind the safe point and before the next optimizer step."""

    def __init__(self) -> None:
        self._begun: dict[torch.device, Any] = {}
        self._ended: dict[torch.device, Any] = {}
        self._streams: dict[torch.device, Any] = {}

    def begin(self, rows: tuple[torch.Tensor, ...]) -> None:
        for device in {row.device for row in rows if row.device.type == "cuda"}:
            import torch

            self._begun[device] = torch.cuda.current_stream(device).record_event()
            self._streams[device] = _stream(device)

    def beside_the_training(self) -> Any:
        """A context in which this thread's copies go to streams of their own."""
        from contextlib import ExitStack

        stack = ExitStack()
        for device, stream in self._streams.items():
            import torch

            stream.wait_event(self._begun[device])
            stack.enter_context(torch.cuda.stream(stream))
        return stack

    def end(self) -> None:
        self._ended = {device: stream.record_event() for device, stream in self._streams.items()}

    def hold_back(self) -> None:
        """What the training queues from now on comes after the copies."""
        for device, event in self._ended.items():
            import torch

            torch.cuda.current_stream(device).wait_event(event)
        self._ended = {}

    def marker(self, devices: set[torch.device]) -> Callable[[], None]:
        """A wait for what this thread has queued so far."""
        if not devices:
            return lambda: None
        import torch

        events = [(device, torch.cuda.current_stream(device).record_event()) for device in devices]

        def wait() -> None:
            for device, event in events:
                with torch.cuda.device(device):  # else a new thread gets itself a context on the first GPU
                    event.synchronize()

        return wait


_STREAMS: dict[Any, Any] = {}


def _stream(device: torch.device) -> Any:
    """One per device and process: a stream of its own for every save would never be freed."""
    import torch

    if device not in _STREAMS:
        _STREAMS[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch
    return _STREAMS[device]


@dataclass(slots=True)
class Snapshot:
    """Of the chunks that this rank writes."""

    image: Image
    memory: Memory
    chunks: tuple[int, ...]
    is_audited: bool = False
    _queues: _Queues = field(default_factory=_Queues)
    _is_copied: threading.Event = field(default_factory=threading.Event)
    _digests: dict[int, str] = field(default_factory=dict)
    _torn: str = ""
    is_fenced: bool = False

    def copy_exposed(self, *, everything: bool = False) -> list[Copied]:
        """To be called at the safe point, by the thread that trains."""
        if self.is_audited and not everything:  # what is copied at once, nobody can change meanwhile
            self._digests = {number: self._digest(number) for number in self._waiting_tensors()}
        now = [chunk for chunk in self.chunks if everything or not self.image.may_wait(chunk)]
        copied: list[Copied] = []
        try:
            for chunk in now:
                copied.append(self._copy(chunk, waits=False))
        except BaseException:
            for one in copied:
                one.wait()
                self.memory.give_back(one.slot)
            self._is_copied.set()  # there is nothing more to wait for
            raise
        self._queues.begin(self.image.rows)
        if len(now) == len(self.chunks):
            self._is_copied.set()
        return copied

    def copy_rest(self) -> Iterator[Copied]:
        """What `copy_exposed` left, one by one as there is memory. Whatever happens, no fence waits for ever."""
        try:
            if not self._is_copied.is_set():
                with self._queues.beside_the_training():
                    for chunk in filter(self.image.may_wait, self.chunks):
                        yield self._copy(chunk, waits=True)
            self._audit()
        finally:
            self._queues.end()
            self._is_copied.set()

    def fence(self) -> None:
        """Returns when the state may be changed."""
        self._is_copied.wait()
        self._queues.hold_back()
        self.is_fenced = True

    def release(self) -> None:
        """All is copied. What the script lets go of is free then, and not only at the next save."""
        self.image = replace(self.image, rows=())

    def demand_whole(self) -> None:
        """Raises: Torn: the audit found that something changed between the safe point and the fence."""
        if self._torn:
            raise Torn(
                f"{self._torn} changed between the safe point and optimizer.step(), while it was being saved. Change "
                "it after the step, or set LAUNCH_CHECKPOINT_SNAPSHOT=blocking"
            )

    def _copy(self, chunk: int, *, waits: bool) -> Copied:
        slot = self.memory.take(self.image.layout.chunk_bytes[chunk], waits=waits)
        try:
            return Copied(chunk, slot, self._fill(chunk, slot))
        except BaseException:
            self.memory.give_back(slot)
            raise

    def _fill(self, chunk: int, slot: Slot) -> Callable[[], None]:
        end, devices = 0, set[Any]()
        for copy in self.image.copies[chunk]:
            ctypes.memset(slot.address + end, 0, copy.to_byte - end)  # the hash is of the gaps, too
            end = copy.to_byte + copy.bytes
            row = self.image.rows[copy.tensor]
            if row.device.type == "cpu":
                ctypes.memmove(slot.address + copy.to_byte, row.data_ptr() + copy.from_byte, copy.bytes)
                continue
            if row.device.type == "cuda":  # others are copied when `copy_` returns
                devices.add(row.device)
            slot.tensor()[copy.to_byte : end].copy_(
                row[copy.from_byte : copy.from_byte + copy.bytes], non_blocking=slot.is_pinned
            )
        ctypes.memset(slot.address + end, 0, slot.bytes - end)
        return self._queues.marker(devices)

    def _audit(self) -> None:
        """The last look before an optimizer may step: is what was copied what there was at the safe point?"""
        changed = {number for number, digest in self._digests.items() if self._digest(number) != digest}
        self._torn = ", ".join(path for path, number in tree.walk(self.image.state) if number in changed)

    def _waiting_tensors(self) -> set[int]:
        return {copy.tensor for chunk in self.chunks if self.image.may_wait(chunk) for copy in self.image.copies[chunk]}

    def _digest(self, number: int) -> str:
        return hash_of(self.image.rows[number].cpu().numpy())
