"""Whoever has `torch.distributed.checkpoint` can load our checkpoints, on any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from tests.hooks.distributed import on_ranks
from tests.hooks.sharded import ChunkReader, Written, part_of, train, whole, write
from trainer_hooks import Session
from trainer_hooks.checkpoint import tree
from trainer_hooks.checkpoint.dcp import DcpReader, open_checkpoint
from trainer_hooks.checkpoint.shards import merge, state_of
from trainer_hooks.errors import CheckpointsDamaged, Damaged

pytestmark = pytest.mark.system

written = cache(write)

NAMES = ["2.weight", "2.bias", "0.weight", "0.bias"]  # as the optimizer's groups have them


@pytest.mark.parametrize(("saved", "loaded"), [("fsdp4", "fsdp2"), ("ddp2", "fsdp4"), ("tensor4", "plain")])
def test_dcp_loads_model_and_optimizer_to_the_bit_on_other_ranks(saved: str, loaded: str) -> None:
    checkpoint = written(saved)

    states = on_ranks(int(loaded[-1]) if loaded[-1].isdecimal() else 1, _load, loaded, checkpoint)

    for state in states:
        assert list(state) == list(checkpoint.whole)
        for where, tensor in checkpoint.whole.items():
            assert torch.equal(state[where], tensor), where


def test_the_metadata_names_shards_as_they_lie() -> None:
    metadata = DcpReader(ChunkReader(written("fsdp4"))).read_metadata()

    entry = metadata.state_dict_metadata["model.0.weight"]
    assert isinstance(entry, TensorStorageMetadata)
    assert (entry.size, entry.properties.dtype) == (torch.Size([12, 8]), torch.float32)
    assert [tuple(chunk.offsets) for chunk in entry.chunks] == [(0, 0), (3, 0), (6, 0), (9, 0)]
    assert isinstance(metadata.state_dict_metadata["optimizer.param_groups.0.lr"], BytesStorageMetadata)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_run_folder_is_opened_at_its_newest_whole_checkpoint(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    torch.nn.init.zeros_(model.weight)  # whole numbers: what is added can be taken away again to the bit
    with Session(run_uri=str(tmp_path), checkpoint_every_steps=2, model=model) as session:
        for _ in session(range(4)):
            model.weight.data += 1
    live = {"model": {name: torch.zeros_like(value) for name, value in model.state_dict().items()}}

    dcp.load(live, storage_reader=open_checkpoint(str(tmp_path)), no_dist=True)
    assert torch.equal(live["model"]["weight"], model.weight)
    dcp.load(live, storage_reader=open_checkpoint(str(tmp_path), "step-2-a1"), no_dist=True)
    assert torch.equal(live["model"]["weight"], model.weight - 2)

    (tmp_path / "checkpoints/step-4-a1/manifest.json").write_bytes(b"?")
    dcp.load(live, storage_reader=open_checkpoint(str(tmp_path)), no_dist=True)
    assert torch.equal(live["model"]["weight"], model.weight - 2)


def test_a_run_folder_without_a_whole_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_checkpoint(str(tmp_path))
    with Session(run_uri=str(tmp_path), model=torch.nn.Linear(1, 1)) as session:
        list(session(range(1)))
    (tmp_path / "checkpoints/step-1-a1/manifest.json").write_bytes(b"?")

    with pytest.raises(CheckpointsDamaged):
        open_checkpoint(str(tmp_path))
    with pytest.raises(Damaged):
        open_checkpoint(str(tmp_path), "step-1-a1")


def test_what_is_no_tensor_is_loaded_too() -> None:
    kept = {"lr": 0.25, "betas": (0.9, 0.99), "name": "x", "counts": np.arange(6).reshape(2, 3), "none": None}
    live: dict[str, Any] = {"lr": 0.0, "betas": (0.0, 0.0), "name": "", "counts": np.zeros((2, 3), int), "none": 1}

    loaded = on_ranks(1, _load_values, kept, live)[0]

    assert np.array_equal(loaded.pop("counts"), kept.pop("counts"))
    assert loaded == kept


def test_a_key_that_is_not_there_is_refused() -> None:
    assert "model.3.weight" in on_ranks(1, _load_unknown, written("plain"))[0]


def _load(rank: int, kind: str, checkpoint: Written) -> Mapping[str, torch.Tensor]:
    objects = train(rank, kind, seed=2, steps=0)
    model, optimizer = objects["model"], objects["optimizer"]
    state = {"model": state_of(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.load(state, storage_reader=DcpReader(ChunkReader(checkpoint), names={"optimizer": NAMES}))
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    return whole(objects)


def _load_values(rank: int, kept: dict[str, Any], live: dict[str, Any]) -> dict[str, Any]:
    found: list[torch.Tensor] = []
    plain = {"extra": tree.encode(kept, found)}
    part, chunks = part_of(rank, found)
    reader = DcpReader(ChunkReader(Written(plain, merge([part]), chunks, {})))
    state = {"extra": live}
    dcp.load(state, storage_reader=reader)
    return state["extra"]


def _load_unknown(rank: int, checkpoint: Written) -> str:
    try:
        dcp.load({"model": {"3.weight": torch.zeros(2)}}, storage_reader=DcpReader(ChunkReader(checkpoint)))
    except CheckpointException as error:
        return str(error)
    return ""
