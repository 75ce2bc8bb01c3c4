"""Our checkpoints for `torch.distributed.checkpoint`: `dcp.load(state_dict, storage_reader=open_checkpoint(run_uri))`.

Keys are those of `state_dict` as dcp flattens it: "model.layer.weight", "optimizer.param_groups.0.lr". Nothing that
lies in the storage is unpickled; dcp wants to unpickle what is no tensor, and gets it pickled in this process.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from trainer_hooks.checkpoint import tree
from trainer_hooks.checkpoint.manifest import Manifest, Stored
from trainer_hooks.checkpoint.reader import Box, Reader
from trainer_hooks.checkpoint.retention import Retention
from trainer_hooks.checkpoint.store import Owner, Store
from trainer_hooks.errors import CheckpointsDamaged, Damaged
from trainer_hooks.storage import open_storage


class Reading(Protocol):
    """What is needed of a `reader.Reader`."""

    @property
    def manifest(self) -> Manifest: ...
    def read_boxes(self, wanted: Mapping[int, Box]) -> dict[int, torch.Tensor]: ...


def open_checkpoint(
    run_uri: str, name: str | None = None, *, names: Mapping[str, Sequence[str]] | None = None
) -> DcpReader:
    """One of a run folder's, as `step-1200-a3`; without a name the newest that is whole. For `names` see `DcpReader`.

    Raises: FileNotFoundError: there is none. CheckpointsDamaged: none is whole. Damaged: this one is not. OSError.
    """
    storage = open_storage(run_uri)
    store = Store(storage, owner=Owner(run_id="", attempt=0, world_size=1), retention=Retention())
    damaged: dict[str, str] = {}
    for candidate in (name,) if name is not None else store.names():
        try:
            return DcpReader(Reader(storage, store.verify(candidate)), names=names)
        except FileNotFoundError:  # begun, and never committed
            continue
        except Damaged as error:
            if name is not None:
                raise
            damaged[candidate] = str(error)
    if damaged:
        raise CheckpointsDamaged("; ".join(f"{one}: {why}" for one, why in damaged.items()))
    raise FileNotFoundError(
        errno.ENOENT, "there is no such checkpoint; `launch checkpoints ls` shows what there is", run_uri
    )


class DcpReader(StorageReader):
    """One checkpoint, verified as it is read.

    We keep an optimizer's state by the numbers of its parameters, `get_optimizer_state_dict` by their names; for the
    latter give, by component, the names in the order of `param_groups`: `names={"optimizer": ["layer.weight", …]}`.
    """

    def __init__(self, reader: Reading, *, names: Mapping[str, Sequence[str]] | None = None) -> None:
        self._reader = reader
        self._names = names or {}
        self._numbers: dict[str, int] = {}  # of tensors, by key
        self._values: dict[str, Any] = {}  # of all else

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """There is one checkpoint, and the reader has it."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        stored = self._reader.manifest.tensors
        planner = DefaultSavePlanner()
        stand_ins = self._stand_ins()
        planner.set_up_planner(self._state(stand_ins))
        by_identity = {id(tensor): number for number, tensor in enumerate(stand_ins)}
        found: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        for key, value in planner.state_dict.items():
            if isinstance(value, torch.Tensor):
                self._numbers[key] = by_identity[id(value)]
                found[key] = _described(stored[by_identity[id(value)]])
            else:
                self._values[key] = value
                found[key] = BytesStorageMetadata()
        return Metadata(state_dict_metadata=found, planner_data=planner.mappings)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Rank 0's metadata may be all that dcp has read; every rank needs the numbers behind them."""
        if not self._numbers and not self._values:
            self.read_metadata()

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Raises: Damaged, OSError: as the reader does."""
        wanted: dict[int, list[ReadItem]] = {}
        for item in plan.items:
            if item.type is LoadItemType.BYTE_IO:
                planner.load_bytes(item, _pickled(self._values[item.storage_index.fqn]))
            else:
                wanted.setdefault(self._numbers[item.storage_index.fqn], []).append(item)
        boxes = {number: _around([_box(item) for item in items]) for number, items in wanted.items()}
        for number, tensor in self._reader.read_boxes(boxes).items():
            for item in wanted[number]:
                target = planner.resolve_tensor(item).detach()
                target.copy_(tensor[_within(_box(item), boxes[number])])
                planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """None: dcp cannot make a reader of an address."""
        return False

    def _stand_ins(self) -> list[torch.Tensor]:
        """Tensors without values, but for those that are read as numpy arrays: dcp takes these for bytes."""
        stored = self._reader.manifest.tensors
        tensors = [torch.empty(one.shape, dtype=getattr(torch, one.dtype), device="meta") for one in stored]
        arrays = {number: Box((0,) * len(stored[number].shape), stored[number].shape) for number in self._arrays()}
        for number, tensor in self._reader.read_boxes(arrays).items():
            tensors[number] = tensor
        return tensors

    def _arrays(self) -> set[int]:
        return set(_array_numbers(dict(self._reader.manifest.state)))

    def _state(self, tensors: Sequence[torch.Tensor]) -> dict[str, Any]:
        state = {name: tree.decode(plain, tensors) for name, plain in self._reader.manifest.state.items()}
        return state | {name: _renamed(state[name], names) for name, names in self._names.items()}


def _described(stored: Stored) -> TensorStorageMetadata:
    chunks = [ChunkStorageMetadata(torch.Size(piece.offset), torch.Size(piece.shape)) for piece in stored.pieces]
    properties = TensorProperties(dtype=getattr(torch, stored.dtype))
    return TensorStorageMetadata(properties, torch.Size(stored.shape), chunks)


def _pickled(value: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return buffer


def _box(item: ReadItem) -> Box:
    """What an item reads, counted from the beginning of the whole tensor."""
    begin: MetadataIndex = item.storage_index
    offset = begin.offset if begin.offset is not None else (0,) * len(item.lengths)
    return Box(tuple(a + b for a, b in zip(offset, item.storage_offsets, strict=True)), tuple(item.lengths))


def _around(boxes: Sequence[Box]) -> Box:
    """A rank reads one box of a tensor, in as many items as pieces hold it."""
    begin = tuple(min(at) for at in zip(*(box.offset for box in boxes), strict=True))
    ends = [tuple(a + b for a, b in zip(box.offset, box.shape, strict=True)) for box in boxes]
    end = (max(at) for at in zip(*ends, strict=True))
    return Box(begin, tuple(b - a for a, b in zip(begin, end, strict=True)))


def _within(box: Box, around: Box) -> tuple[slice, ...]:
    begins = [a - b for a, b in zip(box.offset, around.offset, strict=True)]
    return tuple(slice(begin, begin + size) for begin, size in zip(begins, box.shape, strict=True))


def _renamed(optimizer: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    groups = [group | {"params": [names[number] for number in group["params"]]} for group in optimizer["param_groups"]]
    return dict(optimizer) | {
        "state": {names[number]: value for number, value in optimizer["state"].items()},
        "param_groups": groups,
    }


def _array_numbers(plain: Any) -> Iterator[int]:
    if isinstance(plain, dict):
        if plain.get("$") == "numpy.ndarray":
            yield from (number for _, number in tree.walk(plain["of"]))
        for value in plain.values():
            yield from _array_numbers(value)
    elif isinstance(plain, list):
        for value in plain:
            yield from _array_numbers(value)
