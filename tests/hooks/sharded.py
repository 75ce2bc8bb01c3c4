"""A small training under every way to spread it over ranks; what its ranks would write, and a reader of that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from tests.hooks.distributed import on_ranks
from trainer_hooks.checkpoint import tree
from trainer_hooks.checkpoint.layout import Spot
from trainer_hooks.checkpoint.manifest import Chunk, Manifest, Piece, Stored, hash_of
from trainer_hooks.checkpoint.reader import Box
from trainer_hooks.checkpoint.resharding import Targets, read_tensors
from trainer_hooks.checkpoint.shards import Merged, Part, is_sharded, load_into, local_pieces, merge, state_of

WORLD_SIZES = {"plain": 1, "ddp2": 2, "ddp4": 4, "fsdp1": 1, "fsdp2": 2, "fsdp4": 4, "hsdp4": 4, "tensor4": 4}


@dataclass(frozen=True)
class Written:
    """A checkpoint without a store. `whole`: its tensors by path, as collectives put them together."""

    state: Mapping[str, Any]
    merged: Merged
    chunks: Mapping[str, bytes]
    whole: Mapping[str, torch.Tensor]


class ChunkReader:
    """Of a checkpoint in memory."""

    def __init__(self, written: Written) -> None:
        self._written = written
        self.manifest = Manifest(
            step=3,
            attempt=1,
            run_id="run",
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
            torch=torch.__version__,
            world_size=len(written.merged.ranks),
            cursor={},
            state=written.state,
            ranks=written.merged.ranks,
            tensors=written.merged.tensors,
            chunks=written.merged.chunks,
        )

    def read_boxes(self, wanted: Mapping[int, Box]) -> dict[int, torch.Tensor]:
        return {number: self.whole(number)[_slices(box.offset, box.shape)].clone() for number, box in wanted.items()}

    def whole(self, number: int) -> torch.Tensor:
        stored = self._written.merged.tensors[number]
        whole = torch.empty(stored.shape, dtype=getattr(torch, stored.dtype))
        for piece in stored.pieces:
            raw = bytearray(self._written.chunks[self._written.merged.chunks[piece.spot.chunk].hash])
            whole[_slices(piece.offset, piece.shape)] = torch.frombuffer(raw, dtype=whole.dtype).view(piece.shape)
        return whole


def _slices(offset: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(at, at + size) for at, size in zip(offset, shape, strict=True))


def train(rank: int, kind: str, *, seed: int, steps: int) -> dict[str, Any]:
    """`model` and `optimizer`; with 4 ranks some hold nothing of the last layer."""
    torch.manual_seed(seed)
    inner = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))
    inner.register_buffer("seen", torch.rand(5))
    model = _spread(inner, kind, WORLD_SIZES[kind])
    optimizer = torch.optim.AdamW([{"params": inner[2].parameters()}, {"params": inner[0].parameters(), "lr": 0.1}])
    for step in range(steps):
        step_once(model, optimizer, step)
    return {"model": model, "optimizer": optimizer}


def step_once(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    batch = torch.linspace(-1.0, 1.0 + step, 32).view(4, 8)
    model(batch).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def write(kind: str) -> Written:
    """What the ranks of a training would leave in a store."""
    answers = on_ranks(WORLD_SIZES[kind], _written_by, kind)
    chunks: dict[str, bytes] = {}
    for _, _, theirs, _ in answers:
        chunks |= theirs
    merged = merge([Part.from_json(part) for part, _, _, _ in answers])
    return Written(answers[0][1], merged, chunks, answers[0][3])


def read_back(kind: str, written: Written) -> list[Mapping[str, torch.Tensor]]:
    """The state of every rank of a training that was restored from it, and then trained on."""
    return on_ranks(WORLD_SIZES[kind], _restored, kind, written)


def whole(objects: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Every tensor of the state by path. A collective where there are DTensors."""
    found: list[torch.Tensor] = []
    plain = {name: tree.encode(state_of(thing), found) for name, thing in objects.items()}
    return {
        where: (found[number].full_tensor() if isinstance(found[number], DTensor) else found[number]).clone()
        for where, number in tree.walk(plain)
    }


def _spread(model: nn.Module, kind: str, world_size: int) -> nn.Module:
    match kind.rstrip("124"):
        case "ddp":
            return nn.parallel.DistributedDataParallel(model)
        case "fsdp":
            mesh = init_device_mesh("cpu", (world_size,))
            fully_shard(model[0], mesh=mesh)
            return fully_shard(model, mesh=mesh)
        case "hsdp":
            return fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards")))
        case "tensor":
            both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
            parallelize_module(model, both["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
            return fully_shard(model, mesh=both["data"])
    return model


def _written_by(rank: int, kind: str) -> Any:
    objects = train(rank, kind, seed=1, steps=3)
    found: list[torch.Tensor] = []
    state = {name: tree.encode(state_of(thing), found) for name, thing in objects.items()}
    part, chunks = part_of(rank, found)
    return part.to_json(), state, chunks, whole(objects)


def part_of(rank: int, tensors: list[torch.Tensor]) -> tuple[Part, dict[str, bytes]]:
    """Every tensor in a chunk of its own."""
    alike = [tensor for tensor in tensors if not is_sharded(tensor)]
    chunks: list[Chunk | None] = []
    data: dict[str, bytes] = {}

    def add(local: torch.Tensor, *, is_mine: bool) -> Spot:
        raw = local.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        chunks.append(Chunk(hash_of(raw), len(raw)) if is_mine else None)
        if is_mine:
            data[hash_of(raw)] = raw
        return Spot(len(chunks) - 1, 0)

    turns = range(len(alike))
    spots = {
        id(one): add(one, is_mine=turn % dist.get_world_size() == rank) for turn, one in zip(turns, alike, strict=True)
    }
    stored = []
    for tensor in tensors:
        held = local_pieces(tensor)
        spot = spots.get(id(tensor)) or (add(held.local, is_mine=True) if held.is_mine else None)
        pieces = (Piece(held.offset, tuple(held.local.shape), spot),) if spot is not None else ()
        stored.append(Stored(str(tensor.dtype).removeprefix("torch."), held.global_shape, pieces))
    return Part(rank=rank, place=rank, tensors=tuple(stored), chunks=tuple(chunks), replicated_chunks=len(alike)), data


def _restored(rank: int, kind: str, written: Written) -> Mapping[str, torch.Tensor]:
    objects = train(rank, kind, seed=2, steps=0)
    tensors = read_tensors(ChunkReader(written), written.state, written.merged.tensors, Targets(objects))
    for name, thing in objects.items():
        load_into(thing, tree.decode(written.state[name], tensors))
    restored = whole(objects)
    step_once(objects["model"], objects["optimizer"], 4)
    return restored
