"""The format is what its document says: a program that has neither spotlaunch nor torch reads a checkpoint."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples.read_checkpoint import read
from trainer_hooks.checkpoint.layout import CHUNK_BYTES, Spot, lay_out, parts
from trainer_hooks.checkpoint.manifest import Chunk, Manifest, Piece, Stored, encode, hash_of
from trainer_hooks.checkpoint.tree import encode as encode_tree
from trainer_hooks.checkpoint.tree import walk

NAME = "step-5-a1"


def written(run: Path, state: dict[str, Any], *, is_cut: bool = False) -> dict[str, int]:
    """The files of a checkpoint, as docs/checkpoint-format.md describes them; cut: each tensor as two shards.

    Returns the number of each tensor by where it is in the state.
    """
    tensors: list[torch.Tensor] = []
    plain = encode_tree(state, tensors)
    boxes = [(number, box) for number, tensor in enumerate(tensors) for box in boxes_of(tensor, is_cut)]
    blobs = [bytes_of(tensors[number][slice(*box)] if box else tensors[number]) for number, box in boxes]
    layout = lay_out([len(blob) for blob in blobs], [0] * len(blobs))
    memory = [bytearray(size) for size in layout.chunk_bytes]
    pieces: list[list[Piece]] = [[] for _ in tensors]
    for (number, box), blob, spot in zip(boxes, blobs, layout.spots, strict=True):
        at = 0
        for chunk, start, size in parts(spot, len(blob), layout.chunk_bytes):
            memory[chunk][start : start + size] = blob[at : at + size]
            at += size
        pieces[number].append(a_piece(tensors[number], box, spot))
    (run / "chunks").mkdir(parents=True, exist_ok=True)
    for data in memory:
        (run / "chunks" / hash_of(data)).write_bytes(data)
    manifest = Manifest(
        step=5,
        attempt=1,
        run_id="r",
        created_at=datetime(2025, 11, 21, tzinfo=UTC),
        torch="2",
        world_size=1,
        cursor={},
        state=plain,
        ranks=[],
        chunks=[Chunk(hash_of(data), len(data)) for data in memory],
        tensors=[stored(tensor, tuple(of)) for tensor, of in zip(tensors, pieces, strict=True)],
    )
    (run / "checkpoints" / NAME).mkdir(parents=True, exist_ok=True)
    (run / "checkpoints" / NAME / "manifest.json").write_bytes(encode(manifest))
    return dict(walk(plain))


def boxes_of(tensor: torch.Tensor, is_cut: bool) -> list[tuple[int, int] | None]:
    return [(0, 1), (1, len(tensor))] if is_cut else [None]


def bytes_of(tensor: torch.Tensor) -> bytes:
    """Of a dense tensor, in the order of its memory."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy().tobytes()


def a_piece(tensor: torch.Tensor, box: tuple[int, int] | None, spot: Spot) -> Piece:
    if box is None:
        return Piece((0,) * tensor.dim(), tuple(tensor.shape), spot)
    return Piece((box[0], *[0] * (tensor.dim() - 1)), (box[1] - box[0], *tensor.shape[1:]), spot)


def stored(tensor: torch.Tensor, pieces: tuple[Piece, ...]) -> Stored:
    strides = None if tensor.is_contiguous() else tensor.stride()
    return Stored(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), pieces, strides)


@pytest.fixture
def state() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3))
    large = torch.rand(CHUNK_BYTES // 4 + 1000, generator=generator)  # more than one chunk
    turned = torch.rand(4, 6, generator=generator).T
    half = torch.tensor([1.0, -2.0], dtype=torch.bfloat16)
    return {
        "model": model.state_dict(),
        "other": {"large": large, "turned": turned, "half": half, "none": torch.empty(0)},
    }


def test_a_stand_alone_program_reads_what_was_written(tmp_path: Path, state: dict[str, Any]) -> None:
    numbers = written(tmp_path, state)

    manifest, tensors = read(tmp_path, NAME)

    assert manifest["step"] == 5
    for key, value in state["model"].items():
        assert np.array_equal(value.numpy(), tensors[numbers[f"model/{key}"]])
    for key in ("large", "turned", "none"):
        assert np.array_equal(state["other"][key].numpy(), tensors[numbers[f"other/{key}"]])
    assert tensors[numbers["other/half"]].tolist() == [0x3F80, 0xC000]


def test_it_puts_shards_together(tmp_path: Path) -> None:
    whole = torch.arange(12).reshape(4, 3)
    written(tmp_path, {"w": whole}, is_cut=True)

    manifest, tensors = read(tmp_path, NAME)

    assert len(manifest["tensors"][0]["pieces"]) == 2
    assert np.array_equal(whole.numpy(), tensors[0])


def test_it_takes_no_chunk_and_no_manifest_with_a_changed_bit(tmp_path: Path, state: dict[str, Any]) -> None:
    written(tmp_path, state)

    for path in [*(tmp_path / "chunks").iterdir(), tmp_path / "checkpoints" / NAME / "manifest.json"]:
        sound = path.read_bytes()
        path.write_bytes(sound[:100] + bytes([sound[100] ^ 1]) + sound[101:])
        with pytest.raises(ValueError, match="damaged"):
            read(tmp_path, NAME)
        path.write_bytes(sound)


def test_it_runs_without_torch_and_without_spotlaunch(tmp_path: Path, state: dict[str, Any]) -> None:
    written(tmp_path, state)
    script = Path(__file__).parents[2] / "examples" / "read_checkpoint.py"
    hidden = (
        "import sys; sys.modules.update(torch=None, trainer_hooks=None, launcher=None); import runpy; sys.argv.pop(0); "
    )
    code = hidden + "runpy.run_path(sys.argv[0], run_name='__main__')"

    done = subprocess.run(
        [sys.executable, "-c", code, script, tmp_path, NAME], check=True, capture_output=True, text=True, cwd=tmp_path
    )

    assert '"0.weight"' in done.stdout
    assert "float32 (3, 5)" in done.stdout
