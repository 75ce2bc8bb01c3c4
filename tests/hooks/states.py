"""Saving by hand: states laid out, put and committed through a `Store`, without a session around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch

from trainer_hooks.checkpoint import layout, tree
from trainer_hooks.checkpoint.manifest import Chunk, Manifest, Piece, Stored, hash_of
from trainer_hooks.checkpoint.retention import Retention
from trainer_hooks.checkpoint.store import Loaded, Owner, Store
from trainer_hooks.storage import Storage


def a_store(storage: Storage, *, attempt: int = 1, **retention: Any) -> Store:
    return Store(storage, owner=Owner(run_id="r", attempt=attempt, world_size=1), retention=Retention(**retention))


def a_state(step: int) -> dict[str, Any]:
    """Something that changes at every step, and something frozen; large enough for a chunk each."""
    generator = torch.Generator().manual_seed(step)
    return {
        "backbone": {"frozen": torch.arange(30.0)},
        "model": {"w": torch.rand(40, generator=generator)},
        "optimizer": {"state": {0: {"step": step}}, "lr": 0.1},
    }


def build(
    step: int, components: Mapping[str, Any], *, attempt: int = 1, metrics: Mapping[str, float] | None = None
) -> tuple[Manifest, list[bytes]]:
    """The manifest of a state, and the bytes of its chunks. Each component has chunks of its own."""
    tensors: list[torch.Tensor] = []
    state: dict[str, Any] = {}
    groups: list[int] = []
    for number, (name, component) in enumerate(components.items()):
        state[name] = tree.encode(component, tensors)
        groups += [number] * (len(tensors) - len(groups))
    rows = [tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors]
    laid = layout.lay_out([len(row) for row in rows], groups)
    chunks = [bytearray(size) for size in laid.chunk_bytes]
    for row, spot in zip(rows, laid.spots, strict=True):
        done = 0
        for chunk, start, size in layout.parts(spot, len(row), laid.chunk_bytes):
            chunks[chunk][start : start + size] = row[done : done + size]
            done += size
    manifest = Manifest(
        step=step,
        attempt=attempt,
        run_id="r",
        created_at=datetime(2025, 11, 20, tzinfo=UTC),
        torch=torch.__version__,
        world_size=1,
        cursor={"batch": step},
        state=state,
        ranks=[tree.encode({"seed": step}, None)],
        tensors=tuple(
            Stored(str(one.dtype)[6:], tuple(one.shape), (Piece((0,) * one.dim(), tuple(one.shape), spot),))
            for one, spot in zip(tensors, laid.spots, strict=True)
        ),
        chunks=tuple(Chunk(hash_of(bytes(chunk)), len(chunk)) for chunk in chunks),
        metrics=metrics or {},
    )
    return manifest, [bytes(chunk) for chunk in chunks]


def put_chunks(store: Store, manifest: Manifest, chunks: Sequence[bytes]) -> int:
    """Bytes written."""
    return sum(
        store.put_chunk(chunk.hash, memoryview(bytearray(data)))
        for chunk, data in zip(manifest.chunks, chunks, strict=True)
    )


def save(store: Store, step: int, components: Mapping[str, Any] | None = None, **given: Any) -> int:
    """Commit a checkpoint as `store`'s attempt; bytes written."""
    manifest, chunks = build(step, a_state(step) if components is None else components, attempt=store.owner.attempt)
    manifest = replace(manifest, **given)
    written = put_chunks(store, manifest, chunks)
    store.commit(manifest)
    return written


def step_of(loaded: Loaded | None) -> int:
    """The loaded step, once its state is seen to be that step's."""
    assert loaded is not None
    expected, step = a_state(loaded.manifest.step), loaded.manifest.step
    assert torch.equal(expected["model"]["w"], loaded.components["model"]["w"])
    assert torch.equal(expected["backbone"]["frozen"], loaded.components["backbone"]["frozen"])
    assert expected["optimizer"] == loaded.components["optimizer"]
    assert loaded.manifest.cursor == {"batch": step}
    assert loaded.places == [{"seed": step}]
    return step
