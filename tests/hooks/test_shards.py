"""A checkpoint of several ranks is the whole state, once; and any number of ranks can go on from it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from tests.hooks.distributed import on_ranks
from tests.hooks.sharded import ChunkReader, Written, read_back, step_once, train, write
from trainer_hooks.checkpoint import tree
from trainer_hooks.checkpoint.layout import Spot
from trainer_hooks.checkpoint.manifest import Chunk, Piece, Stored
from trainer_hooks.checkpoint.resharding import Targets
from trainer_hooks.checkpoint.shards import Part, local_pieces, merge, no_part, state_of
from trainer_hooks.errors import CheckpointMismatch, NotLoadable

pytestmark = pytest.mark.system

written = cache(write)

PLAIN_PARAMETERS = {"model/0.weight", "model/0.bias", "model/2.weight", "model/2.bias", "model/seen"}


@pytest.mark.parametrize("kind", ["plain", "ddp2", "fsdp1", "fsdp2", "fsdp4", "hsdp4", "tensor4"])
def test_the_parts_of_all_ranks_are_the_whole_state_once(kind: str) -> None:
    checkpoint = written(kind)

    assert checkpoint.merged.ranks == tuple(range(len(checkpoint.merged.ranks)))
    assert checkpoint.whole.keys() > PLAIN_PARAMETERS
    _demand_equal(_assembled(checkpoint), checkpoint.whole)
    for stored in checkpoint.merged.tensors:
        covered = torch.zeros(stored.shape, dtype=torch.int)
        for piece in stored.pieces:
            covered[tuple(slice(at, at + size) for at, size in zip(piece.offset, piece.shape, strict=True))] += 1
        assert bool((covered == 1).all())


@pytest.mark.parametrize(
    ("saved", "resumed"),
    [
        ("fsdp4", "fsdp1"),
        ("fsdp4", "fsdp2"),
        ("fsdp1", "fsdp4"),
        ("fsdp2", "fsdp4"),
        ("fsdp2", "plain"),
        ("plain", "fsdp2"),
        ("plain", "ddp2"),
        ("ddp2", "plain"),
        ("ddp2", "ddp4"),
        ("hsdp4", "fsdp2"),
        ("tensor4", "fsdp2"),
        ("fsdp4", "tensor4"),
    ],
)
def test_another_number_of_ranks_goes_on_from_the_same_bits(saved: str, resumed: str) -> None:
    checkpoint = written(saved)

    for state in read_back(resumed, checkpoint):
        _demand_equal(state, checkpoint.whole)


@pytest.mark.parametrize("kind", ["fsdp2", "ddp2", "tensor4"])
def test_a_state_is_taken_without_a_copy_and_without_the_other_ranks(kind: str) -> None:
    on_ranks(4 if kind == "tensor4" else 2, _take_state_alone, kind)


def test_boxes_are_where_torch_says_and_each_is_written_by_one_rank() -> None:
    answers = on_ranks(4, _boxes)

    for case, shape in enumerate(answers[0][1]):
        covered = torch.zeros(shape, dtype=torch.int)
        for boxes, _ in answers:
            offset, size, is_mine = boxes[case]
            covered[tuple(slice(at, at + length) for at, length in zip(offset, size, strict=True))] += is_mine
        assert bool((covered == 1).all()), f"case {case}"


def test_what_is_no_box_is_refused() -> None:
    told = on_ranks(4, _no_boxes)[0]

    assert "not boxes" in told[0]
    assert "summed up" in told[1]


def test_wrappers_leave_no_trace_in_the_names() -> None:
    model = nn.Linear(2, 2)

    assert list(state_of(torch.compile(model))) == ["weight", "bias"]


def test_a_flat_parameter_model_is_refused_with_advice() -> None:
    assert "fully_shard" in on_ranks(1, _wrap_in_the_old_way)[0]


def test_a_part_survives_its_journey() -> None:
    part = _part(0, [None, Chunk("b" * 32, 4096)], _stored((3, 2), Piece((0, 0), (3, 2), Spot(1, 64))), shared=1)
    strided = replace(part, tensors=(replace(part.tensors[0], strides=(1, 3)),), place={"now": [1, None, "x"]})

    assert Part.from_json(part.to_json()) == part
    assert Part.from_json(strided.to_json()) == strided


def test_a_rank_that_failed_says_why() -> None:
    with pytest.raises(OSError, match=r"rank 3 did not write its part: OSError: \[Errno 28\] No space left"):
        Part.from_json(no_part(3, OSError(28, "No space left")))


def test_chunks_are_numbered_anew() -> None:
    shared = _stored((2,), Piece((0,), (2,), Spot(0, 0)))
    parts = [
        _part(
            rank,
            [Chunk("s" * 32, 4096) if rank == 1 else None, Chunk(str(rank) * 32, 4096)],
            shared,
            _stored((4,), Piece((2 * rank,), (2,), Spot(1, 0))),
            shared=1,
        )
        for rank in range(2)
    ]

    merged = merge(parts)

    assert [chunk.hash[0] for chunk in merged.chunks] == ["s", "0", "1"]
    assert [piece.spot.chunk for tensor in merged.tensors for piece in tensor.pieces] == [0, 1, 2]


def test_a_box_that_two_ranks_wrote_counts_once() -> None:
    """As where a mesh spans some of the ranks, and the others have a mesh of their own."""
    parts = [
        _part(rank, [Chunk(str(rank) * 32, 4096)], _stored((4,), Piece((2 * (rank % 2),), (2,), Spot(0, 0))), shared=0)
        for rank in range(4)
    ]

    (tensor,) = merge(parts).tensors

    assert [piece.offset for piece in tensor.pieces] == [(0,), (2,)]


@pytest.mark.parametrize(
    ("boxes", "is_whole"),
    [
        ([((0, 0), (2, 4)), ((2, 0), (1, 4))], True),
        ([((0, 0), (2, 3)), ((0, 3), (2, 1)), ((2, 0), (1, 3)), ((2, 3), (1, 1))], True),
        ([((0, 0), (2, 4))], False),  # a gap at the end
        ([((1, 0), (2, 4))], False),  # and at the beginning
        ([((0, 0), (2, 4)), ((1, 0), (2, 4))], False),  # an overlap
        ([((0, 0), (1, 4)), ((1, 0), (2, 3)), ((1, 2), (1, 1))], False),  # the right number of items
        ([], False),
    ],
)
def test_only_a_tensor_that_is_whole_is_committed(boxes: list[Any], is_whole: bool) -> None:
    pieces = [Piece(offset, shape, Spot(0, 0)) for offset, shape in boxes]
    part = _part(0, [Chunk("a" * 32, 4096)], _stored((3, 4), *pieces), shared=0)

    if is_whole:
        assert merge([part]).tensors[0].pieces == tuple(pieces)
    else:
        with pytest.raises(NotLoadable, match="once and whole"):
            merge([part])


@pytest.mark.parametrize(
    ("other", "found"),
    [
        ({"tensors": ()}, "1 tensors and 0"),
        ({"tensors": (Stored("float16", (2,), ()),)}, r"a float32 \(2,\) and a float16 \(2,\)"),
        ({"replicated_chunks": 0}, "on one of them only"),
        ({"chunks": (Chunk("b" * 32, 4096),)}, "was written by 2 of them"),
    ],
)
def test_ranks_that_hold_different_things_are_refused(other: dict[str, Any], found: str) -> None:
    first = _part(0, [Chunk("a" * 32, 4096)], _stored((2,), Piece((0,), (2,), Spot(0, 0))), shared=1)
    second = replace(first, rank=1, chunks=(None,))

    merge([first, second])  # what is changed is what is refused

    with pytest.raises(NotLoadable, match=found):
        merge([first, replace(second, **other)])


def test_a_tensor_of_another_shape_is_a_mismatch() -> None:
    assert on_ranks(1, _want_another_shape)[0] == "model/2.bias has the shape (3,) here, (4,) in the checkpoint"


def _assembled(checkpoint: Written) -> dict[str, torch.Tensor]:
    return {where: ChunkReader(checkpoint).whole(number) for where, number in tree.walk(checkpoint.state)}


def _demand_equal(found: Any, expected: Any) -> None:
    assert list(found) == list(expected)
    for where, tensor in expected.items():
        assert found[where].dtype == tensor.dtype
        assert torch.equal(found[where], tensor), where


def _stored(shape: tuple[int, ...], *pieces: Piece) -> Stored:
    return Stored("float32", shape, pieces)


def _part(rank: int, chunks: list[Chunk | None], *tensors: Stored, shared: int) -> Part:
    return Part(rank=rank, place=None, tensors=tensors, chunks=tuple(chunks), replicated_chunks=shared)


def _take_state_alone(rank: int, kind: str) -> None:
    objects = train(rank, kind, seed=0, steps=2)
    dist.barrier()
    if rank == 1:  # had it to wait for another, it would never end
        for thing in objects.values():
            taken = state_of(thing)
            assert _addresses(taken) == _addresses(state_of(thing)) != []
        parameters = [local_pieces(one).local.data_ptr() for one in objects["model"].parameters()]
        assert set(parameters) <= set(_addresses(state_of(objects["model"])))
    dist.barrier()
    step_once(objects["model"], objects["optimizer"], 3)


def _memory(state: Any) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    return [tensor for value in values for tensor in _memory(value)]


def _addresses(state: Any) -> list[int]:
    return [local_pieces(tensor).local.data_ptr() for tensor in _memory(state)]


def _boxes(rank: int) -> Any:
    line, square = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
    spread = [
        *(((size, 3), line, [Shard(0)]) for size in (1, 3, 5, 6, 9)),
        ((3, 5), line, [Shard(1)]),
        ((3, 5), line, [Replicate()]),
        ((7, 5), square, [Shard(0), Shard(1)]),
        ((7, 5), square, [Shard(1), Shard(0)]),
        ((9, 2), square, [Shard(0), Shard(0)]),
        ((5, 2), square, [Replicate(), Shard(0)]),
        ((5, 2), square, [Shard(1), Replicate()]),
        ((), line, [Replicate()]),
    ]
    boxes = []
    for shape, mesh, placements in spread:
        whole = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
        tensor = distribute_tensor(whole, mesh, placements)
        held = local_pieces(tensor)
        (theirs,) = tensor.__create_chunk_list__()
        assert (held.offset, tuple(held.local.shape)) == (tuple(theirs.offsets), tuple(theirs.sizes))
        box = tuple(slice(at, at + size) for at, size in zip(held.offset, held.local.shape, strict=True))
        assert torch.equal(held.local, whole[box])
        boxes.append((held.offset, tuple(held.local.shape), held.is_mine))
    return boxes, [shape for shape, _, _ in spread]


def _no_boxes(rank: int) -> list[str]:
    from torch.distributed.tensor.placement_types import _StridedShard

    square = init_device_mesh("cpu", (2, 2))
    told = []
    for placements in ([Shard(0), _StridedShard(0, split_factor=2)], [Partial(), Replicate()]):
        tensor = DTensor.from_local(torch.zeros(2, 2), square, placements, run_check=False, shape=(8, 2), stride=(2, 1))
        try:
            local_pieces(tensor)
        except NotLoadable as error:
            told.append(str(error))
    return told


def _wrap_in_the_old_way(rank: int) -> str:
    try:
        state_of(FullyShardedDataParallel(nn.Linear(2, 2), device_id=torch.device("cpu")))
    except NotLoadable as error:
        return str(error)
    return ""


def _want_another_shape(rank: int) -> str:
    targets = Targets(train(rank, "fsdp1", seed=0, steps=0))
    try:
        targets.of("model/2.bias", (4,))
    except CheckpointMismatch as error:
        return str(error)
    return ""
