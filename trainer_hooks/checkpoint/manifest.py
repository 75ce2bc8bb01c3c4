"""The last object of a checkpoint: what its state is, and which chunks hold the bytes. Without it there is none.

docs/checkpoint-format.md describes it for other programs. `decode` takes nothing on trust: whoever can write to the
run folder can write a manifest.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, TypeVar

import xxhash

from trainer_hooks.checkpoint.layout import CHUNK_BYTES, PAGE_BYTES, Spot
from trainer_hooks.errors import Damaged, NotLoadable
from trainer_hooks.protocol import checkpoint_name

FORMAT = "spotlaunch-checkpoint/1"
LIMIT_BYTES = 256 << 20
MAX_VALUES = 16 << 20
"""Commas and brackets: parsed, two bytes of JSON become a hundred, so that the limit above alone bounds no memory."""

MAX_DIMENSIONS = 64  # torch's own limit
ITEM_BYTES: Mapping[str, int] = {
    "bool": 1, "uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4, "uint64": 8, "int64": 8,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "complex32": 4, "complex64": 8, "complex128": 16,
}  # fmt: skip
"""By the name of the dtype in torch; the bytes are little-endian."""

T = TypeVar("T")

_HASH = re.compile(r"[0-9a-f]{32}")
_SEAL = b',"digest":"%s"}'
_SEAL_BYTES = len(_SEAL % bytes(32))


@dataclass(frozen=True, slots=True)
class Chunk:
    """`hash` is XXH3-128 of its bytes, and its name in the run folder."""

    hash: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor, row by row from `spot` on. Of a tensor that was not sharded, the only one: all of it."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    spot: Spot


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor. `strides` (in items) only where its bytes are not row by row: dense all the same, and one piece."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    strides: tuple[int, ...] | None = None

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """`state` by component and `ranks` by rank are trees (see `tree`), whose tensors are numbers in `tensors`."""

    step: int
    attempt: int
    run_id: str
    created_at: datetime
    torch: str
    world_size: int
    cursor: Mapping[str, Any]  # plain JSON
    state: Mapping[str, Any]
    ranks: Sequence[Any]
    tensors: Sequence[Stored]
    chunks: Sequence[Chunk]
    metrics: Mapping[str, float] = field(default_factory=dict)  # newest values, to keep the best by

    @property
    def bytes(self) -> int:
        """Of the objects that hold it, each counted once."""
        return sum({chunk.hash: chunk.bytes for chunk in self.chunks}.values())

    @property
    def certificate(self) -> str:
        """One hash of everything that a resume restores: state, random numbers, place in the data.

        Keys are sorted: the same state is the same state in whichever order a dict was filled.
        """
        everything = [self.cursor, self.state, list(self.ranks), _tensors(self), _chunks(self)]
        return hash_of(_json(everything, is_sorted=True))


def hash_of(data: Any) -> str:
    """XXH3-128 as 32 hex digits. It finds accidents, not forgeries: see docs/decisions/0006."""
    return xxhash.xxh3_128_hexdigest(data)


def encode(manifest: Manifest) -> bytes:
    """The object that commits it. Of `metrics`, numbers that JSON lacks are left out.

    Raises: NotLoadable: it is larger than `decode` takes. ValueError: the cursor is no plain JSON.
    """
    body = {
        "format": FORMAT,
        "step": manifest.step,
        "attempt": manifest.attempt,
        "run_id": manifest.run_id,
        "created_at": manifest.created_at.astimezone(UTC).isoformat(),
        "torch": manifest.torch,
        "world_size": manifest.world_size,
        "metrics": {name: value for name, value in manifest.metrics.items() if math.isfinite(value)},
        "cursor": dict(manifest.cursor),
        "state": dict(manifest.state),
        "ranks": list(manifest.ranks),
        "tensors": _tensors(manifest),
        "chunks": _chunks(manifest),
        "certificate": manifest.certificate,
    }
    raw = seal(body)
    if len(raw) > LIMIT_BYTES or _values(raw) > MAX_VALUES:
        raise NotLoadable(
            f"what is not a tensor takes {len(raw):,} bytes and {_values(raw):,} values in the manifest; "
            f"{LIMIT_BYTES:,} and {MAX_VALUES:,} are the most. Let state_dict() return long lists as tensors"
        )
    return raw


def seal(body: Mapping[str, Any]) -> bytes:
    """As JSON whose last field, `digest`, is the hash of all the text before it."""
    text = _json(body)[:-1]
    return text + _SEAL % hash_of(text).encode()


def decode(raw: bytes, *, name: str) -> Manifest:
    """The manifest of the checkpoint folder `name`.

    Raises: Damaged: it is not what `encode` wrote, or not for this folder, or contradicts itself.
    """
    if raw[-_SEAL_BYTES:] != _SEAL % hash_of(memoryview(raw)[:-_SEAL_BYTES]).encode():
        raise Damaged("the manifest is not what was written")
    if len(raw) > LIMIT_BYTES or _values(raw) > MAX_VALUES:
        raise Damaged(f"a manifest of {len(raw):,} bytes and {_values(raw):,} values could fill the memory")
    try:
        body = json.loads(raw.decode(), object_pairs_hook=_object, parse_float=_finite, parse_constant=_finite)
        if body["format"] != FORMAT:
            raise Damaged(f"its format is {reprlib.repr(body['format'])}, these hooks read {FORMAT}")
        manifest = _manifest(body)
        if body["certificate"] != manifest.certificate:
            raise Damaged("its certificate is of another state")
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        why = f"{type(error).__name__}: {str(error)[:200]}"
        raise Damaged(f"the manifest is not readable ({why})") from error
    if checkpoint_name(manifest.step, manifest.attempt) != name:
        raise Damaged(f"the manifest is of step {manifest.step}, attempt {manifest.attempt}")
    return manifest


def _manifest(body: Mapping[str, Any]) -> Manifest:
    metrics = _the(dict, body["metrics"])
    created_at = datetime.fromisoformat(_the(str, body["created_at"]))
    if created_at.tzinfo is None or not all(type(value) in (int, float) for value in metrics.values()):
        raise Damaged("the manifest holds a metric that is no number, or an instant without a zone")
    manifest = Manifest(
        step=_count(body["step"]),
        attempt=_count(body["attempt"]),
        run_id=_the(str, body["run_id"]),
        created_at=created_at,
        torch=_the(str, body["torch"]),
        world_size=_count(body["world_size"]),
        cursor=_the(dict, body["cursor"]),
        state=_the(dict, body["state"]),
        ranks=_the(list, body["ranks"]),
        tensors=tuple(_stored(entry) for entry in _the(list, body["tensors"])),
        chunks=tuple(_chunk(entry) for entry in _the(list, body["chunks"])),
        metrics={name: float(value) for name, value in metrics.items()},
    )
    _check_spots(manifest)
    return manifest


def _check_spots(manifest: Manifest) -> None:
    """Every tensor lies within the chunks, and all of them need no more memory than these."""
    ends = list(accumulate((chunk.bytes for chunk in manifest.chunks), initial=0))
    total = 0
    for tensor in manifest.tensors:
        for piece in tensor.pieces:
            size, spot = math.prod(piece.shape) * ITEM_BYTES[tensor.dtype], piece.spot
            is_inside = spot.chunk < len(manifest.chunks) and spot.start <= manifest.chunks[spot.chunk].bytes
            if not is_inside or ends[spot.chunk] + spot.start + size > ends[-1]:
                raise Damaged("a tensor lies outside of its chunks")
            if spot.start % ITEM_BYTES[tensor.dtype]:
                raise Damaged("a tensor lies between two items' addresses")
            total += size
    if total > ends[-1]:
        raise Damaged("its tensors are larger than its chunks")


def _tensors(manifest: Manifest) -> list[dict[str, Any]]:
    return [
        {"dtype": one.dtype, "shape": list(one.shape)}
        | ({"strides": list(one.strides)} if one.strides is not None else {})
        | {"pieces": [[list(p.offset), list(p.shape), p.spot.chunk, p.spot.start] for p in one.pieces]}
        for one in manifest.tensors
    ]


def _chunks(manifest: Manifest) -> list[list[Any]]:
    return [[chunk.hash, chunk.bytes] for chunk in manifest.chunks]


def _stored(entry: Mapping[str, Any]) -> Stored:
    dtype, shape = entry["dtype"], _shape(entry["shape"])
    if dtype not in ITEM_BYTES:
        raise Damaged(f"a tensor has the dtype {reprlib.repr(dtype)}")
    pieces = tuple(
        Piece(_shape(offset), _shape(box), Spot(_count(chunk), _count(start)))
        for offset, box, chunk, start in _the(list, entry["pieces"])
    )
    if any(len(piece.offset) != len(shape) or len(piece.shape) != len(shape) for piece in pieces):
        raise Damaged("a piece has other dimensions than its tensor")
    if not _fill(shape, [piece for piece in pieces if math.prod(piece.shape)]):
        raise Damaged("the pieces of a tensor do not fill it, each item once")
    strides = _shape(entry["strides"]) if "strides" in entry else None
    if strides is not None and (len(pieces) != 1 or not is_dense(shape, strides)):
        raise Damaged("the strides of a tensor are not dense")
    return Stored(dtype, shape, pieces, strides)


def _fill(shape: Sequence[int], pieces: Sequence[Piece]) -> bool:
    """Whether the boxes leave no item out, which a reader would fill with anything, and overlap nowhere."""
    return not pieces if math.prod(shape) == 0 else _fill_from(0, shape, pieces)


def _fill_from(dimension: int, shape: Sequence[int], pieces: Sequence[Piece]) -> bool:
    """Sharding cuts a tensor into slabs along one dimension, and each slab along the next."""
    if dimension == len(shape):
        return len(pieces) == 1
    slabs: dict[tuple[int, int], list[Piece]] = {}
    for piece in pieces:
        slabs.setdefault((piece.offset[dimension], piece.shape[dimension]), []).append(piece)
    end = 0
    for start, size in sorted(slabs):
        if start != end:
            return False
        end = start + size
    return end == shape[dimension] and all(_fill_from(dimension + 1, shape, slab) for slab in slabs.values())


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the items lie one after the other without gaps or overlaps, in some order of the dimensions."""
    if len(shape) != len(strides):
        return False
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size if size > 1 else 1
    return True


def _chunk(entry: Sequence[Any]) -> Chunk:
    digest, size = _the(list, entry)
    if not _HASH.fullmatch(_the(str, digest)):
        raise Damaged(f"{reprlib.repr(digest)} is no chunk's hash")
    if not 0 < _count(size) <= CHUNK_BYTES or size % PAGE_BYTES:
        raise Damaged(f"a chunk of {size:,} bytes; whole pages are wanted, and {CHUNK_BYTES:,} is the most")
    return Chunk(digest, size)


def _shape(value: object) -> tuple[int, ...]:
    sizes = tuple(_count(size) for size in _the(list, value))
    if len(sizes) > MAX_DIMENSIONS or math.prod(max(size, 1) for size in sizes) >> 58:
        raise Damaged("a shape is larger than torch can count")  # also where one of its sizes is 0
    return sizes


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 53:
        raise Damaged(f"the manifest holds {reprlib.repr(value)} where a count is wanted")
    return value


def _the(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        raise Damaged(f"the manifest holds {reprlib.repr(value)} where a {kind.__name__} is wanted")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Damaged("the manifest says something twice")  # programs differ in which of the two they take
    return found


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise Damaged(f"the manifest holds {digits[:20]}, which JSON lacks")
    return value


def _values(raw: bytes) -> int:
    return raw.count(b",") + raw.count(b"[") + raw.count(b"{")


def _json(value: Any, *, is_sorted: bool = False) -> bytes:
    return json.dumps(value, sort_keys=is_sorted, separators=(",", ":"), allow_nan=False).encode()
