"""Read a checkpoint with nothing of spotlaunch or torch installed: an example for docs/checkpoint-format.md.

    python read_checkpoint.py RUN_FOLDER step-1200-a3        # needs numpy and xxhash

It verifies every byte that it reads. It does not ask whether the manifest is larger than the memory.
"""

from __future__ import annotations

import json
import sys
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

DTYPES = {name: name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")}
DTYPES |= {name: name for name in ("bool", "float16", "float32", "float64", "complex64", "complex128")}
DTYPES["bfloat16"] = "uint16"  # numpy lacks it, and float8 as well: these are its bits


def read(run: Path, name: str) -> tuple[dict[str, Any], list[np.ndarray[Any, Any]]]:
    """The manifest, and its tensors in order; `{"$": "tensor", "i": n}` in the state stands for the n-th."""
    raw = (run / "checkpoints" / name / "manifest.json").read_bytes()
    text, seal = raw[:-45], raw[-45:]  # `,"digest":"<32 hex digits>"}`
    if seal != b',"digest":"%s"}' % xxhash.xxh3_128_hexdigest(text).encode():
        raise ValueError("the manifest is damaged")
    manifest = json.loads(raw)
    if manifest["format"] != "spotlaunch-checkpoint/1" or name != f"step-{manifest['step']}-a{manifest['attempt']}":
        raise ValueError("another format, or the manifest of another checkpoint")
    chunks = [chunk(run, *entry) for entry in manifest["chunks"]]
    return manifest, [tensor(entry, chunks) for entry in manifest["tensors"]]


def chunk(run: Path, digest: str, size: int) -> bytes:
    data = (run / "chunks" / digest).read_bytes() if digest.isalnum() else b""
    if len(data) != size or xxhash.xxh3_128_hexdigest(data) != digest:
        raise ValueError(f"chunk {digest} is damaged")
    return data


def tensor(entry: dict[str, Any], chunks: list[bytes]) -> np.ndarray[Any, Any]:
    dtype, shape = np.dtype(DTYPES[entry["dtype"]]).newbyteorder("<"), entry["shape"]
    strides = entry.get("strides")  # only where it is one piece in another order than row by row
    order = sorted(range(len(shape)), key=lambda axis: -strides[axis]) if strides else range(len(shape))
    whole, filled = np.empty(shape, dtype), 0
    for offset, box, number, start in entry["pieces"]:
        size, last = prod(box) * dtype.itemsize, number
        found = chunks[number][start : start + size] if size else b""
        while len(found) < size:  # it goes on at the beginning of the next chunk
            last += 1
            found += chunks[last][: size - len(found)]
        place: tuple[Any, ...] = tuple(slice(at, at + length) for at, length in zip(offset, box, strict=True))
        whole[(*place, ...)].transpose(order)[...] = np.frombuffer(found, dtype).reshape([box[axis] for axis in order])
        filled += prod(box)
    if filled != whole.size:
        raise ValueError("the pieces of a tensor do not fill it")
    return whole


if __name__ == "__main__":
    manifest, tensors = read(Path(sys.argv[1]), sys.argv[2])
    print(json.dumps(manifest["state"], indent=1)[:2000])
    for number, one in enumerate(tensors):
        print(number, one.dtype, one.shape)
