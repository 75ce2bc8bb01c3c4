"""Reading a checkpoint back: in parallel, once, and no byte is used before the hash of its chunk was found right.

Chunks are read to where the tensors will live: page-aligned memory of their own, in the order of the manifest. What
goes on from one chunk into the next lies in one stretch there, so a tensor is a view and nothing is copied. Only a box
that the pieces of a sharded tensor do not hold as it is wanted is put together in memory of its own.
"""

from __future__ import annotations

import errno
import math
import mmap
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import TYPE_CHECKING, TypeVar

from trainer_hooks.checkpoint.layout import CHUNK_BYTES
from trainer_hooks.checkpoint.manifest import ITEM_BYTES, Chunk, Manifest, Piece, Stored, hash_of
from trainer_hooks.checkpoint.memory import room
from trainer_hooks.errors import Damaged

if TYPE_CHECKING:
    import torch

    from trainer_hooks.storage import Storage

T = TypeVar("T")

CHUNKS = "chunks"
BATCH_BYTES = 256 << 20
"""Of chunks at a time, from which boxes are put together: beside them, the memory that reading takes for itself."""

PAUSES_SECONDS = (0.2, 1.0, 3.0)
"""Between tries of a read that failed. Storages far away have tried for longer themselves."""

WRONG_OBJECT = frozenset(
    {errno.ENOENT, errno.EINVAL, errno.ELOOP, errno.EFBIG, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ENODEV}
)
"""A read that fails so will always fail so: what lies there is not what was written. Other failures may pass."""


@dataclass(frozen=True, slots=True)
class Box:
    """Of a tensor, in items along each dimension."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]


class Reader:
    """Of one checkpoint. `on_chunk` is told of every chunk whether it is what was written, by any thread.

    Every method raises Damaged where a chunk is not what was written, or where the state does not fit into the
    memory of the machine; and OSError where a read fails that may succeed another time.
    """

    def __init__(
        self,
        storage: Storage,
        manifest: Manifest,
        *,
        on_chunk: Callable[[str, bool], None] = lambda chunk_hash, is_right: None,
    ) -> None:
        self._storage = storage
        self.manifest = manifest
        self._on_chunk = on_chunk
        self._sizes = [chunk.bytes for chunk in manifest.chunks]
        self._ends = [0, *accumulate(self._sizes)]
        self._right: set[Chunk] = set()

    def read(self, wanted: Iterable[int]) -> dict[int, torch.Tensor]:
        """Whole tensors, by their numbers in the manifest."""
        return self.read_boxes({number: self.whole(number) for number in wanted})

    def read_box(self, number: int, offset: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
        """A part of a tensor. Of several, see `read_boxes`: they share chunks."""
        return self.read_boxes({number: Box(tuple(offset), tuple(shape))})[number]

    def read_boxes(self, wanted: Mapping[int, Box]) -> dict[int, torch.Tensor]:
        """A part of each tensor; no chunk that holds nothing of them is read.

        Raises: ValueError: a box is not within its tensor.
        """
        held = {number: self._held(number, box) for number, box in wanted.items()}
        views = {number: piece for number, piece in held.items() if piece is not None}
        others = {number: box for number, box in wanted.items() if held[number] is None}
        sources = sorted(
            (source for number, box in others.items() for source in self._sources(number, box)),
            key=lambda source: source.first_chunk,
        )
        batches = list(self._batches(sources))
        self._demand_memory(views, others, batches)
        return self._views(views) | self._assembled(others, batches)

    def verify(self) -> None:
        """Hash every chunk that was not read yet, in memory for one of them per thread."""
        scratch = threading.local()

        def check(chunk: Chunk) -> None:
            if not hasattr(scratch, "room"):
                scratch.room = memoryview(room(CHUNK_BYTES, is_populated=True))
            self._fetch(chunk, scratch.room[: chunk.bytes])

        in_parallel(check, set(self.manifest.chunks) - self._right, threads=self._storage.parallel)

    def whole(self, number: int) -> Box:
        shape = self.manifest.tensors[number].shape
        return Box((0,) * len(shape), shape)

    def _held(self, number: int, box: Box) -> Piece | None:
        """The piece that is this box, if there is one."""
        tensor = self.manifest.tensors[number]
        ends = [at + size for at, size in zip(box.offset, box.shape, strict=True)]
        if len(ends) != len(tensor.shape) or any(end > whole for end, whole in zip(ends, tensor.shape, strict=True)):
            raise ValueError(f"{box} is not within tensor {number}, whose shape is {tensor.shape}")
        return next((one for one in tensor.pieces if (one.offset, one.shape) == (box.offset, box.shape)), None)

    def _views(self, pieces: Mapping[int, Piece]) -> dict[int, torch.Tensor]:
        stretches = {number: self._stretch(number, piece) for number, piece in pieces.items()}
        memory = self._loaded([(first, last) for first, last in stretches.values() if first <= last])
        return {number: self._tensor(number, piece, memory) for number, piece in pieces.items()}

    def _assembled(self, boxes: Mapping[int, Box], batches: Sequence[Sequence[_Source]]) -> dict[int, torch.Tensor]:
        import torch

        tensors = {
            number: torch.empty(box.shape, dtype=getattr(torch, self.manifest.tensors[number].dtype))
            for number, box in boxes.items()
        }
        for batch in batches:
            memory = self._loaded([source.stretch for source in batch])
            for source in batch:
                found = self._tensor(source.number, source.rows, memory)
                number = source.number
                _copy_common(found, source.rows.offset, tensors[number], boxes[number].offset)
        return tensors

    def _sources(self, number: int, box: Box) -> Iterator[_Source]:
        """What of each piece is needed: whole rows of it, as those lie in one stretch."""
        stored = self.manifest.tensors[number]
        for piece in stored.pieces:
            common = [
                (max(at, piece_at), min(at + size, piece_at + piece_size))
                for at, size, piece_at, piece_size in zip(box.offset, box.shape, piece.offset, piece.shape, strict=True)
            ]
            if all(begin < end for begin, end in common):
                rows = piece if stored.strides is not None else self._rows(stored, piece, common[0])
                yield _Source(number, rows, *self._stretch(number, rows))

    def _rows(self, stored: Stored, piece: Piece, wanted: tuple[int, int]) -> Piece:
        begin, end = wanted
        row_bytes = math.prod(piece.shape[1:]) * ITEM_BYTES[stored.dtype]
        skipped = (begin - piece.offset[0]) * row_bytes
        chunk, start = piece.spot.chunk, piece.spot.start + skipped
        while start >= self._sizes[chunk]:
            chunk, start = chunk + 1, start - self._sizes[chunk]
        spot = type(piece.spot)(chunk, start)
        return Piece((begin, *piece.offset[1:]), (end - begin, *piece.shape[1:]), spot)

    def _batches(self, sources: Sequence[_Source]) -> Iterator[list[_Source]]:
        batch: list[_Source] = []
        for source in sources:
            if batch and self._bytes([(batch[0].first_chunk, source.last_chunk)]) > BATCH_BYTES:
                yield batch
                batch = []
            batch.append(source)
        if batch:
            yield batch

    def _stretch(self, number: int, piece: Piece) -> tuple[int, int]:
        """The first and the last chunk of a piece; the last is before the first if the piece is empty."""
        size = math.prod(piece.shape) * ITEM_BYTES[self.manifest.tensors[number].dtype]
        if not size:
            return 0, -1
        end = self._ends[piece.spot.chunk] + piece.spot.start + size
        return piece.spot.chunk, bisect_left(self._ends, end) - 1

    def _demand_memory(
        self, views: Mapping[int, Piece], boxes: Mapping[int, Box], batches: Sequence[Sequence[_Source]]
    ) -> None:
        wanted = self._bytes(_runs(self._stretch(number, piece) for number, piece in views.items()))
        wanted += sum(
            math.prod(box.shape) * ITEM_BYTES[self.manifest.tensors[number].dtype] for number, box in boxes.items()
        )
        wanted += max((self._bytes(_runs(source.stretch for source in batch)) for batch in batches), default=0)
        available = available_bytes()
        if wanted > available:
            raise Damaged(f"its state takes {wanted:,} bytes of memory, this machine has {available:,} available")

    def _bytes(self, runs: Iterable[tuple[int, int]]) -> int:
        return sum(self._ends[last + 1] - self._ends[first] for first, last in runs)

    def _loaded(self, stretches: Sequence[tuple[int, int]]) -> _Memory:
        """Memory that holds these chunks, each read and hashed."""
        memory = _Memory()
        wanted: dict[Chunk, list[memoryview]] = {}
        for first, last in _runs(stretches):
            sizes = self._sizes[first : last + 1]
            place = memory.add(first, sizes)
            at = 0
            for chunk, size in zip(self.manifest.chunks[first : last + 1], sizes, strict=True):
                wanted.setdefault(chunk, []).append(memoryview(place)[at : at + size])
                at += size
        in_parallel(self._fetch_all, wanted.items(), threads=self._storage.parallel)
        return memory

    def _fetch_all(self, wanted: tuple[Chunk, Sequence[memoryview]]) -> None:
        """One chunk, to every place where it is wanted: equal tensors are not the same tensor."""
        chunk, (target, *others) = wanted
        self._fetch(chunk, target)
        for other in others:
            other[:] = target

    def _fetch(self, chunk: Chunk, target: memoryview) -> None:
        try:
            fetch(self._storage, chunk, target)
        except Damaged:
            self._on_chunk(chunk.hash, False)
            raise
        self._on_chunk(chunk.hash, True)
        self._right.add(chunk)

    def _tensor(self, number: int, piece: Piece, memory: _Memory) -> torch.Tensor:
        """A view into the memory, with a storage of its own: who looks at that must not find a neighbour."""
        import torch

        stored = self.manifest.tensors[number]
        dtype, size = getattr(torch, stored.dtype), math.prod(piece.shape) * ITEM_BYTES[stored.dtype]
        if not size:
            return torch.empty(piece.shape, dtype=dtype)
        place, at = memory.find(piece.spot.chunk)
        flat = torch.frombuffer(place, dtype=torch.uint8, count=size, offset=at + piece.spot.start).view(dtype)
        return flat.view(piece.shape) if stored.strides is None else flat.as_strided(stored.shape, stored.strides)


def fetch(storage: Storage, chunk: Chunk, target: memoryview) -> None:
    """Read a chunk to where it is wanted, and see that it is what was written. Raises: Damaged."""
    path = f"{CHUNKS}/{chunk.hash}"
    try:
        for _ in range(2):  # what differs may have changed on its way
            retried(lambda: storage.read_into(path, target))
            if hash_of(target) == chunk.hash:
                return
    except OSError as error:
        if error.errno not in WRONG_OBJECT:
            raise
        raise Damaged(f"{path} is not what was written: {error.strerror or error}") from error
    raise Damaged(f"{path} is not what was written: its hash differs")


def retried(read: Callable[[], T]) -> T:
    """What `read` returns, tried again where the failure may pass."""
    for pause in PAUSES_SECONDS:
        try:
            return read()
        except OSError as error:
            if error.errno in WRONG_OBJECT:
                raise
            time.sleep(pause)
    return read()


def in_parallel(work: Callable[[T], None], items: Iterable[T], *, threads: int) -> None:
    """Do it with each, and raise the first error once no thread works any more. Items are taken as they are needed."""
    feed, lock, is_over = iter(items), threading.Lock(), threading.Event()

    def drain() -> None:
        while not is_over.is_set():
            with lock:
                taken = list(islice(feed, 1))
            if not taken:
                return
            try:
                work(taken[0])
            except BaseException:
                is_over.set()
                raise

    with ThreadPoolExecutor(threads, thread_name_prefix="checkpoint") as pool:
        try:
            for future in [pool.submit(drain) for _ in range(threads)]:
                future.result()
        finally:
            is_over.set()


def available_bytes() -> int:
    """Memory that can be had without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)


@dataclass(frozen=True, slots=True)
class _Source:
    """Rows of a piece, themselves a piece, and the chunks that they lie in."""

    number: int
    rows: Piece
    first_chunk: int
    last_chunk: int

    @property
    def stretch(self) -> tuple[int, int]:
        return self.first_chunk, self.last_chunk


class _Memory:
    """Where chunks lie. It lives for as long as a tensor looks at it."""

    def __init__(self) -> None:
        self._places: dict[int, tuple[mmap.mmap, int]] = {}

    def add(self, first: int, sizes: Sequence[int]) -> mmap.mmap:
        place, at = room(sum(sizes), is_populated=True), 0
        for chunk, size in enumerate(sizes, start=first):
            self._places[chunk] = place, at
            at += size
        return place

    def find(self, chunk: int) -> tuple[mmap.mmap, int]:
        return self._places[chunk]


def _runs(stretches: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Stretches of chunks, joined where they share one: what does not hang together is freed separately."""
    runs: list[tuple[int, int]] = []
    for first, last in sorted(stretch for stretch in stretches if stretch[0] <= stretch[1]):
        if runs and first <= runs[-1][1]:
            runs[-1] = runs[-1][0], max(last, runs[-1][1])
        else:
            runs.append((first, last))
    return runs


def _copy_common(
    source: torch.Tensor, source_offset: Sequence[int], target: torch.Tensor, target_offset: Sequence[int]
) -> None:
    """Copy what two boxes of a tensor have in common."""
    for dimension, (source_at, target_at) in enumerate(zip(source_offset, target_offset, strict=True)):
        begin = max(source_at, target_at)
        size = min(source_at + source.shape[dimension], target_at + target.shape[dimension]) - begin
        source = source.narrow(dimension, begin - source_at, size)
        target = target.narrow(dimension, begin - target_at, size)
    target.copy_(source)
