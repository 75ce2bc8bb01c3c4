"""Whether the live state is, bit for bit, the one that a manifest describes: seen on the objects, after the restore.

What was read was hashed already. This looks at what came of it: an object that rounds what it is given, or keeps
something back, would train on from a state that nobody ever saved.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from trainer_hooks.checkpoint import layout, shards, tree
from trainer_hooks.checkpoint.manifest import ITEM_BYTES, Manifest, Piece, Stored, hash_of
from trainer_hooks.checkpoint.memory import room
from trainer_hooks.checkpoint.reader import in_parallel

if TYPE_CHECKING:
    import torch

THREADS = 2  # hashing is faster than memory delivers, already with these


def verify_restored(manifest: Manifest, live: Mapping[str, Any]) -> list[str]:
    """Names of the components whose live state is another one; none: the certificate of the manifest holds.

    What lies in one chunk is hashed together, so a component may be named because of another in the same chunk. Of
    sharded tensors, each rank looks at the chunks that it holds the whole content of. Memory: a chunk per thread.
    """
    differing = set(manifest.state.keys() ^ live.keys())
    held: dict[int, list[_Held]] = {}
    for name in manifest.state.keys() & live.keys():
        tensors: list[torch.Tensor] = []
        pairs = _paired(manifest.state[name], tree.encode(live[name], tensors))
        if pairs is None or not all(_is_alike(manifest.tensors[stored], tensors[at]) for stored, at in pairs):
            differing.add(name)
            continue
        for stored, at in pairs:
            held.setdefault(stored, []).append(_Held(name, tensors[at]))
    _check_ties(held, differing)
    _check_chunks(manifest, {number: holders[0] for number, holders in held.items()}, held, differing)
    return sorted(differing)


@dataclass(frozen=True, slots=True)
class _Held:
    component: str
    tensor: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Of a piece, within a chunk."""

    number: int
    piece: Piece
    from_byte: int
    to_byte: int
    bytes: int


def _paired(stored: Any, live: Any) -> list[tuple[int, int]] | None:
    """Numbers of the tensors at the same places of two trees; `None` if the trees differ in anything else."""
    numbers: tuple[dict[int, int], dict[int, int]] = ({}, {})
    one, other = (_renumbered(plain, seen) for plain, seen in zip((stored, live), numbers, strict=True))
    if json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True):
        return None
    return list(zip(*numbers, strict=True))


def _renumbered(plain: Any, seen: dict[int, int]) -> Any:
    """A tree whose tensors are numbered in the order of sorted keys: dicts may have been filled in any."""
    if isinstance(plain, list):
        return [_renumbered(one, seen) for one in plain]
    if not isinstance(plain, dict):
        return plain
    if plain.get("$") == "tensor":
        return {"$": "tensor", "i": seen.setdefault(plain["i"], len(seen))}
    return {key: _renumbered(plain[key], seen) for key in sorted(plain)}


def _is_alike(stored: Stored, tensor: torch.Tensor) -> bool:
    return stored.dtype == str(tensor.dtype).removeprefix("torch.") and stored.shape == tuple(tensor.shape)


def _check_ties(held: Mapping[int, Sequence[_Held]], differing: set[str]) -> None:
    """A tensor that several components share was stored once; each may have got a copy of its own."""
    import torch

    for first, *others in held.values():
        for other in others:
            if other.tensor is not first.tensor and not torch.equal(_bytes(first.tensor), _bytes(other.tensor)):
                differing.update((first.component, other.component))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    local = shards.local_pieces(tensor).local.detach()
    return local.contiguous().view(-1).view(torch.uint8)


def _check_chunks(
    manifest: Manifest, first: Mapping[int, _Held], held: Mapping[int, Sequence[_Held]], differing: set[str]
) -> None:
    import torch

    scratch, contents = threading.local(), _contents(manifest)

    @lru_cache(maxsize=2 * THREADS)  # a tensor that must be put in order first may fill many chunks
    def row(number: int, piece: Piece) -> torch.Tensor | None:
        return _row(manifest.tensors[number], piece, first[number].tensor) if number in first else None

    def check(chunk: int) -> None:
        if not hasattr(scratch, "room"):
            scratch.room = memoryview(room(layout.CHUNK_BYTES, is_populated=True))
        target = scratch.room[: manifest.chunks[chunk].bytes]
        bytes_ = torch.frombuffer(target, dtype=torch.uint8).zero_()
        for part in contents[chunk]:
            source = row(part.number, part.piece)
            if source is None:
                return  # not all of it is here
            bytes_[part.to_byte : part.to_byte + part.bytes].copy_(source[part.from_byte : part.from_byte + part.bytes])
        if hash_of(target) != manifest.chunks[chunk].hash:
            differing.update(one.component for part in contents[chunk] for one in held[part.number])

    in_parallel(check, contents, threads=THREADS)


def _contents(manifest: Manifest) -> dict[int, list[_Stretch]]:
    found: dict[int, list[_Stretch]] = {}
    sizes = [chunk.bytes for chunk in manifest.chunks]
    for number, tensor in enumerate(manifest.tensors):
        for piece in tensor.pieces:
            done = 0
            for chunk, start, size in layout.parts(
                piece.spot, math.prod(piece.shape) * ITEM_BYTES[tensor.dtype], sizes
            ):
                found.setdefault(chunk, []).append(_Stretch(number, piece, done, start, size))
                done += size
    return found


def _row(stored: Stored, piece: Piece, tensor: torch.Tensor) -> torch.Tensor | None:
    """The bytes of a piece in the order in which they are stored; `None` if this rank does not hold all of it."""
    import torch

    here = shards.local_pieces(tensor)
    local = here.local.detach().resolve_conj().resolve_neg()
    for dimension, (wanted, at) in enumerate(zip(piece.offset, here.offset, strict=True)):
        if wanted < at or wanted + piece.shape[dimension] > at + local.shape[dimension]:
            return None
        local = local.narrow(dimension, wanted - at, piece.shape[dimension])
    if stored.strides is not None:
        strides = stored.strides
        local = local.permute(sorted(range(local.dim()), key=lambda dimension: -strides[dimension]))
    return local.contiguous().view(-1).view(torch.uint8)
