"""One checkpoint from several ranks (`resharding` is the way back, onto any other number of them).

What every rank holds alike (DDP) is kept as one process would keep it: the same names, each chunk written by one rank.
Of a DTensor (FSDP2, tensor parallelism) each rank keeps its own box; a reader puts together whatever box it needs.

`torch.distributed.checkpoint.state_dict` is not used: to name an optimizer's state it runs a step of an optimizer that
has none yet, which moves its counters, and for FSDP2 and DDP the names of plain `state_dict()` do not depend on the
world size either, once the wrapper is taken off. Nothing here communicates.
"""

from __future__ import annotations

import json
import math
import sys
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer_hooks.checkpoint.layout import Spot
from trainer_hooks.checkpoint.leaves import is_sharded
from trainer_hooks.checkpoint.manifest import Chunk, Piece, Stored
from trainer_hooks.errors import NotLoadable

if TYPE_CHECKING:
    import torch
    from torch.distributed.tensor import DTensor

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shard:
    """What this rank holds of a tensor: the box at `offset`, row by row. Of what all hold alike, all of it.

    `is_mine`: no other rank of the mesh holds the same box, or this is the first of them; and it is not empty.
    """

    global_shape: Shape
    offset: Shape
    local: torch.Tensor
    is_mine: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one rank has written of a save.

    `tensors` have the same numbers on every rank, and pieces only where this rank holds one; their chunks are those of
    this rank. The first `replicated_chunks` are the same on every rank, and `None` where another rank writes them.
    """

    rank: int
    place: Any  # JSON
    tensors: tuple[Stored, ...]
    chunks: tuple[Chunk | None, ...]
    replicated_chunks: int

    def to_json(self) -> bytes:
        """Packed, as thousands of tensors are described in nearly the same words."""
        body = {
            "rank": self.rank,
            "place": self.place,
            "tensors": [_tensor_to_json(one) for one in self.tensors],
            "chunks": [None if chunk is None else [chunk.hash, chunk.bytes] for chunk in self.chunks],
            "replicated_chunks": self.replicated_chunks,
        }
        return zlib.compress(json.dumps(body, separators=(",", ":")).encode(), level=1)

    @classmethod
    def from_json(cls, raw: bytes) -> Part:
        """Raises: OSError: that rank could not write its part."""
        body = json.loads(zlib.decompress(raw))
        if "failure" in body:
            raise OSError(f"rank {body['rank']} did not write its part: {body['failure']}")
        return cls(
            rank=body["rank"],
            place=body["place"],
            tensors=tuple(_tensor_from_json(entry) for entry in body["tensors"]),
            chunks=tuple(None if entry is None else Chunk(*entry) for entry in body["chunks"]),
            replicated_chunks=body["replicated_chunks"],
        )


@dataclass(frozen=True, slots=True)
class Merged:
    """The fields of a `Manifest` that come from all ranks."""

    ranks: tuple[Any, ...]
    tensors: tuple[Stored, ...]
    chunks: tuple[Chunk, ...]


def local_pieces(tensor: torch.Tensor) -> Shard:
    """The memory of this rank, live where it lies row by row. Raises: NotLoadable: it is no box of the tensor."""
    import torch

    if not is_sharded(tensor):
        return Shard(tuple(tensor.shape), (0,) * tensor.dim(), tensor, is_mine=True)
    sharded: DTensor = tensor  # type: ignore[assignment]  # as `is_sharded` has found
    with torch.no_grad():  # or it would be a node of the graph
        local = sharded.to_local()
    coordinate = sharded.device_mesh.get_coordinate()
    if coordinate is None:
        return Shard(tuple(sharded.shape), (0,) * sharded.dim(), local, is_mine=False)
    offset, shape = _box(tuple(sharded.shape), _splits(sharded, coordinate))
    if shape != tuple(local.shape):
        raise NotLoadable(_no_box(sharded, f"{shape} was expected here, and {tuple(local.shape)} is what there is"))
    is_first = all(
        at == 0 for at, placement in zip(coordinate, sharded.placements, strict=True) if placement.is_replicate()
    )
    return Shard(tuple(sharded.shape), offset, local.contiguous(), is_mine=is_first and local.numel() > 0)


def unwrapped(thing: Any) -> Any:
    """Without the wrappers that would put their own name before every other.

    Raises: NotLoadable: it is a FullyShardedDataParallel, whose state is of one world size, or costs a gather.
    """
    import torch

    while True:
        if isinstance(thing, torch.nn.parallel.DistributedDataParallel):
            thing = thing.module
        elif _is_of(thing, "torch._dynamo.eval_frame", "OptimizedModule"):
            thing = thing._orig_mod
        elif _is_of(thing, "torch.distributed.fsdp", "FullyShardedDataParallel"):
            raise NotLoadable(
                "a FullyShardedDataParallel cannot be saved beside the training; shard the model with "
                "torch.distributed.fsdp.fully_shard, its successor"
            )
        else:
            return thing


def state_of(thing: Any) -> Any:
    """Its `state_dict()`, live, with the same names on any number of ranks."""
    return unwrapped(thing).state_dict()


def load_into(thing: Any, state: Any) -> None:
    """What `state_of` gave; DTensors wherever the live object has them (see `resharding`)."""
    unwrapped(thing).load_state_dict(state)


def no_part(rank: int, error: BaseException) -> bytes:
    """In the place of a part: `Part.from_json` raises it on rank 0."""
    body = {"rank": rank, "failure": f"{type(error).__name__}: {error}"}
    return zlib.compress(json.dumps(body).encode())


def merge(parts: Sequence[Part]) -> Merged:
    """The whole of what the ranks, in their order, have written.

    Raises: NotLoadable: the ranks hold different tensors, or some of a tensor is held by none.
    """
    first = parts[0]
    for part in parts[1:]:
        _demand_alike(first, part)
    shared = first.replicated_chunks
    chunks = [_only(number, [part.chunks[number] for part in parts]) for number in range(shared)]
    moves: list[int] = []  # of each rank's own chunks
    for part in parts:
        moves.append(len(chunks) - shared)
        chunks += [_written(part, number) for number in range(shared, len(part.chunks))]
    tensors = tuple(
        _merged(number, [(part.tensors[number], move) for part, move in zip(parts, moves, strict=True)], shared)
        for number in range(len(first.tensors))
    )
    return Merged(tuple(part.place for part in parts), tensors, tuple(chunks))


@dataclass(frozen=True, slots=True)
class _Split:
    """Of dimension `dim` into `count` parts, of which this rank holds the one at `at`."""

    dim: int
    count: int
    at: int


def _splits(tensor: DTensor, coordinate: Sequence[int]) -> list[_Split]:
    """In the order in which the tensor was cut.

    FSDP over tensor parallelism on the same dimension cuts that one last, though its mesh dimension comes first; torch
    calls this a _StridedShard. It is a box where the parts are even.
    """
    plain: list[_Split] = []
    strided: list[_Split] = []
    for mesh_dim, (placement, at) in enumerate(zip(tensor.placements, coordinate, strict=True)):
        count = tensor.device_mesh.size(mesh_dim)
        if placement.is_replicate():
            continue
        if placement.is_partial():
            raise NotLoadable(_no_box(tensor, "its value is still to be summed up over the ranks"))
        split = _Split(placement.dim, count, at)  # type: ignore[attr-defined]  # the other kinds have one
        factor = getattr(placement, "split_factor", 1)
        if factor == 1:
            plain.append(split)
            continue
        later = tensor.placements[mesh_dim + 1 :]
        inner = [tensor.device_mesh.size(mesh_dim + 1 + n) for n, one in enumerate(later) if one.is_shard(split.dim)]
        is_first = not any(one.dim == split.dim for one in (*plain, *strided))
        if not is_first or factor != math.prod(inner) or tensor.shape[split.dim] % (factor * count):
            raise NotLoadable(_no_box(tensor, "its shards are not boxes"))
        strided.append(split)
    return plain + strided


def _box(shape: Shape, splits: Iterable[_Split]) -> tuple[Shape, Shape]:
    """Offset and shape, by torch's rule: all parts are as large as the first, until nothing is left."""
    offset, box = [0] * len(shape), list(shape)
    for split in splits:
        size = box[split.dim]
        each = -(-size // split.count)
        start = min(size, each * split.at)
        offset[split.dim] += start
        box[split.dim] = min(each, size - start)
    return tuple(offset), tuple(box)


def _no_box(tensor: DTensor, why: str) -> str:
    return (
        f"a DTensor of shape {tuple(tensor.shape)} with placements {tuple(tensor.placements)} cannot be kept: {why}. "
        "Shard it with Shard(dim) in even parts, or give its .full_tensor()"
    )


def _is_of(thing: Any, module: str, name: str) -> bool:
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(thing, kind)


def _tensor_to_json(one: Stored) -> list[Any]:
    pieces = [[piece.offset, piece.shape, piece.spot.chunk, piece.spot.start] for piece in one.pieces]
    return [one.dtype, one.shape, one.strides, pieces]


def _tensor_from_json(entry: Sequence[Any]) -> Stored:
    dtype, shape, strides, pieces = entry
    return Stored(
        dtype,
        tuple(shape),
        tuple(Piece(tuple(offset), tuple(box), Spot(chunk, start)) for offset, box, chunk, start in pieces),
        None if strides is None else tuple(strides),
    )


def _demand_alike(first: Part, other: Part) -> None:
    """Ranks of one training hold the same tensors; what differs belongs into the place of each."""
    found = ""
    if len(first.tensors) != len(other.tensors):
        found = f"{len(first.tensors)} tensors and {len(other.tensors)}"
    elif first.replicated_chunks != other.replicated_chunks:
        found = "tensors that are sharded or owned by an optimizer on one of them only"
    for number, (one, two) in enumerate(zip(first.tensors, other.tensors, strict=False)):
        if not found and (one.dtype, one.shape) != (two.dtype, two.shape):
            found = f"as tensor {number} a {one.dtype} {one.shape} and a {two.dtype} {two.shape}"
    if found:
        raise NotLoadable(
            f"ranks {first.rank} and {other.rank} hold different states: {found}. Give Session(…) the same objects, "
            "of the same shapes, on every rank"
        )


def _only(number: int, written: Sequence[Chunk | None]) -> Chunk:
    there = [chunk for chunk in written if chunk is not None]
    if len(there) != 1:
        raise NotLoadable(f"chunk {number} of what all ranks hold was written by {len(there)} of them, instead of one")
    return there[0]


def _written(part: Part, number: int) -> Chunk:
    chunk = part.chunks[number]
    if chunk is None:
        raise NotLoadable(f"chunk {number} of rank {part.rank} was not written")
    return chunk


def _merged(number: int, held: Sequence[tuple[Stored, int]], shared: int) -> Stored:
    """A tensor's pieces, its chunks numbered anew; of equal boxes (a mesh that spans some ranks only) the first."""
    pieces: dict[tuple[Shape, Shape], Piece] = {}
    for stored, move in held:
        for piece in stored.pieces:
            spot = piece.spot
            moved = spot if spot.chunk < shared or not move else Spot(spot.chunk + move, spot.start)
            pieces.setdefault((piece.offset, piece.shape), Piece(piece.offset, piece.shape, moved))
    first = held[0][0]
    if math.prod(first.shape) and not _tile(list(pieces), first.shape, 0):
        raise NotLoadable(f"tensor {number}, a {first.dtype} {first.shape}, is not held once and whole by all ranks")
    strides = next((stored.strides for stored, _ in held if stored.pieces), None)
    return Stored(first.dtype, first.shape, tuple(pieces.values()), strides)


def _tile(boxes: Sequence[tuple[Shape, Shape]], shape: Shape, dim: int) -> bool:
    """Whether boxes that a mesh has cut, one dimension after the other, cover a tensor once and without a gap."""
    if len(boxes) == 1:
        ((offset, size),) = boxes
        return not any(offset[dim:]) and size[dim:] == shape[dim:]
    if dim == len(shape):
        return False
    slices: dict[tuple[int, int], list[tuple[Shape, Shape]]] = {}
    for offset, size in boxes:
        slices.setdefault((offset[dim], size[dim]), []).append((offset, size))
    end = 0
    for start, length in sorted(slices):
        if start != end:
            return False
        end = start + length
    return end == shape[dim] and all(_tile(within, shape, dim + 1) for within in slices.values())
