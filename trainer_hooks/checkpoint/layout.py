"""How the bytes of a state are cut into chunks: pure arithmetic, the same in every process.

Tensors are laid one after the other into chunks. One of at least `OWN_BYTES` begins a chunk of its own and may go on
through several; smaller ones share a chunk, and none of them is cut. Groups never share: what changes at every step
must not drag along what never changes. A chunk is padded with zeros to whole pages, as direct I/O wants it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CHUNK_BYTES = 16 << 20
"""A write that keeps a disk busy and a PUT that keeps a connection busy; of 1 TB, 60,000 objects."""

OWN_BYTES = 4 << 20
PAGE_BYTES = 4096
ALIGNMENT_BYTES = 64  # of a tensor within its chunk: of any dtype, and of a cache line


@dataclass(frozen=True, slots=True)
class Spot:
    """Where bytes begin; what does not fit into that chunk goes on at the beginning of the next one."""

    chunk: int
    start: int


@dataclass(frozen=True, slots=True)
class Layout:
    spots: tuple[Spot, ...]  # of each tensor
    chunk_bytes: tuple[int, ...]  # of each chunk, whole pages
    chunk_groups: tuple[int, ...]


def lay_out(sizes_bytes: Sequence[int], groups: Sequence[int]) -> Layout:
    """Chunks for tensors of these sizes; those of one group lie together, in the order given."""
    layout = _Growing([Spot(0, 0)] * len(sizes_bytes))
    for number in sorted(range(len(sizes_bytes)), key=lambda number: groups[number]):
        layout.add(number, sizes_bytes[number], groups[number])
    return layout.finished()


def parts(spot: Spot, size_bytes: int, chunk_bytes: Sequence[int]) -> list[tuple[int, int, int]]:
    """`(chunk, start, bytes)` of each stretch that `size_bytes` from `spot` on cover.

    Raises: IndexError: the chunks end before the bytes do.
    """
    found: list[tuple[int, int, int]] = []
    chunk, start, left = spot.chunk, spot.start, size_bytes
    while left > 0:
        here = min(left, chunk_bytes[chunk] - start)
        found.append((chunk, start, here))
        chunk, start, left = chunk + 1, 0, left - here
    return found


class _Growing:
    def __init__(self, spots: list[Spot]) -> None:
        self._spots = spots
        self._bytes: list[int] = []
        self._groups: list[int] = []
        self._is_shared = False  # the last chunk takes more tensors

    def add(self, number: int, size: int, group: int) -> None:
        if size >= OWN_BYTES:
            self._spots[number] = Spot(len(self._bytes), 0)
            whole, rest = divmod(size, CHUNK_BYTES)
            self._bytes += [CHUNK_BYTES] * whole + [rest] * (rest > 0)
            self._groups += [group] * (len(self._bytes) - len(self._groups))
            self._is_shared = False
            return
        start = _up(self._bytes[-1], ALIGNMENT_BYTES) if self._is_shared else 0
        if not self._is_shared or self._groups[-1] != group or start + size > CHUNK_BYTES:
            self._bytes.append(0)
            self._groups.append(group)
            self._is_shared, start = True, 0
        self._spots[number] = Spot(len(self._bytes) - 1, start)
        self._bytes[-1] = start + size

    def finished(self) -> Layout:
        padded = tuple(max(_up(size, PAGE_BYTES), PAGE_BYTES) for size in self._bytes)
        return Layout(tuple(self._spots), padded, tuple(self._groups))


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
