"""What is read back is what was saved, bit for bit, wherever it lies; nothing unhashed, nothing twice, nothing else."""

from __future__ import annotations

import gc
import math
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hooks.states import a_store, build, put_chunks, save
from tests.hooks.storages import MemoryStorage
from trainer_hooks.checkpoint import reader as readers
from trainer_hooks.checkpoint.certificate import verify_restored
from trainer_hooks.checkpoint.layout import CHUNK_BYTES, OWN_BYTES, Spot, lay_out
from trainer_hooks.checkpoint.manifest import ITEM_BYTES, Chunk, Manifest, Piece, Stored, hash_of
from trainer_hooks.checkpoint.reader import Reader, in_parallel
from trainer_hooks.errors import Damaged
from trainer_hooks.storage import LocalStorage, Storage


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PAUSES_SECONDS", (0.0, 0.0, 0.0))


class Counting(MemoryStorage):
    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self._counting = threading.Lock()

    def read_into(self, path: str, target: memoryview) -> None:
        with self._counting:
            self.reads[path] += 1
        super().read_into(path, target)


def stored(storage: Storage, components: dict[str, Any]) -> Manifest:
    manifest, chunks = build(1, components)
    put_chunks(a_store(storage), manifest, chunks)
    return manifest


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    rows = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*rows)


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    size = math.prod(shape) * dtype.itemsize
    if dtype == torch.bool:
        return torch.randint(0, 2, shape).bool()
    return torch.randint(0, 256, (size,), dtype=torch.uint8).view(dtype).view(shape)


@pytest.mark.parametrize("name", ITEM_BYTES)
def test_every_dtype_comes_back_bit_for_bit(name: str) -> None:
    tensor = noise(3, 5, dtype=getattr(torch, name))
    storage = MemoryStorage()

    found = Reader(storage, stored(storage, {"model": [tensor]})).read([0])

    assert same_bits(tensor, found[0])


def test_tensors_of_any_size_come_back_from_a_real_folder(tmp_path: Path) -> None:
    sizes = [0, 1, 1000, OWN_BYTES // 4, OWN_BYTES // 4 - 1, CHUNK_BYTES // 4, CHUNK_BYTES // 2 + 7, 3]
    tensors = [noise(size) for size in sizes] + [noise(), noise(2, 0, 3)]
    storage = LocalStorage(tmp_path)

    found = Reader(storage, stored(storage, {"model": tensors})).read(range(len(tensors)))

    assert all(same_bits(tensor, found[number]) for number, tensor in enumerate(tensors))


def test_only_what_is_wanted_is_read_and_only_once() -> None:
    storage = Counting()
    manifest = stored(storage, {"small": [noise(9), noise(9)], "big": [noise(CHUNK_BYTES // 2)], "other": [noise(9)]})
    storage.reads.clear()

    Reader(storage, manifest).read([0, 1, 3])

    expected = [manifest.chunks[manifest.tensors[number].pieces[0].spot.chunk].hash for number in (0, 3)]
    assert {f"chunks/{chunk_hash}": 1 for chunk_hash in expected} == storage.reads


def test_verifying_reads_what_was_not_read_yet_and_equal_chunks_once() -> None:
    storage = Counting()
    manifest = stored(storage, {"one": [noise(9)], "zeros": [torch.zeros(CHUNK_BYTES)], "two": [noise(9)]})
    assert len(manifest.chunks) == 6
    reader = Reader(storage, manifest)

    reader.read([0])
    reader.verify()

    assert set(storage.reads.values()) == {1}
    assert len(storage.reads) == 3


def test_equal_tensors_do_not_share_memory() -> None:
    storage = MemoryStorage()
    found = Reader(storage, stored(storage, {"a": [torch.ones(9)], "b": [torch.ones(9)]})).read([0, 1])

    found[0] += 1

    assert torch.equal(torch.ones(9), found[1])


def test_tensors_of_one_chunk_have_storages_of_their_own() -> None:
    storage = MemoryStorage()
    found = Reader(storage, stored(storage, {"a": [torch.zeros(9), torch.ones(9)]})).read([0, 1])

    assert [tensor.untyped_storage().nbytes() for tensor in found.values()] == [36, 36]
    assert found[0].untyped_storage().data_ptr() != found[1].untyped_storage().data_ptr()


def test_memory_is_page_aligned_and_outlives_the_reader() -> None:
    storage = MemoryStorage()
    big = noise(OWN_BYTES)

    found = Reader(storage, stored(storage, {"a": [big]})).read([0])[0]
    gc.collect()

    assert found.data_ptr() % 4096 == 0
    assert same_bits(big, found)


def test_a_tensor_keeps_its_strides() -> None:
    storage = MemoryStorage()
    tensor = noise(2, 3, 4, 5).to(memory_format=torch.channels_last)
    flat = tensor.permute(0, 2, 3, 1).contiguous().view(-1)
    manifest = stored(storage, {"a": [flat]})
    shaped = Stored("float32", (2, 3, 4, 5), (Piece((0,) * 4, (2, 3, 4, 5), Spot(0, 0)),), tensor.stride())

    found = Reader(storage, replace(manifest, tensors=(shaped,)))

    assert same_bits(tensor, found.read([0])[0])
    assert found.read([0])[0].stride() == tensor.stride()
    assert same_bits(tensor[1:, 1:3], found.read_box(0, (1, 1, 0, 0), (1, 2, 4, 5)))


# --- boxes of sharded tensors ---


def cut(shape: tuple[int, ...], grid: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Offset and shape of each box, as torch cuts: all as large as the first, until nothing is left."""
    boxes: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((), ())]
    for size, count in zip(shape, grid, strict=True):
        each = -(-size // count)
        spans = [(min(size, each * at), min(each, size - min(size, each * at))) for at in range(count)]
        boxes = [((*offset, at), (*box, span)) for offset, box in boxes for at, span in spans if span]
    return boxes


def of_box(tensor: torch.Tensor, offset: tuple[int, ...], shape: tuple[int, ...]) -> torch.Tensor:
    return tensor[tuple(slice(at, at + size) for at, size in zip(offset, shape, strict=True))]


def sharded(storage: Storage, tensors: list[torch.Tensor], grid: tuple[int, ...]) -> Manifest:
    """As ranks save them: each box by itself, those of a rank together."""
    boxes = [cut(tuple(tensor.shape), grid) for tensor in tensors]
    ranks = max(len(of) for of in boxes)
    order = [(rank, number) for rank in range(ranks) for number in range(len(tensors)) if rank < len(boxes[number])]
    rows = [of_box(tensors[number], *boxes[number][rank]).contiguous().view(-1) for rank, number in order]
    raw = [row.view(torch.uint8).numpy().tobytes() for row in rows]
    laid = lay_out([len(row) for row in raw], [rank for rank, _ in order])
    contents = [bytearray(size) for size in laid.chunk_bytes]
    pieces: dict[int, list[Piece]] = {number: [] for number in range(len(tensors))}
    for (rank, number), row, spot in zip(order, raw, laid.spots, strict=True):
        pieces[number].append(Piece(*boxes[number][rank], spot))
        chunk, start = spot.chunk, spot.start
        while row:
            here = min(len(row), len(contents[chunk]) - start)
            contents[chunk][start : start + here] = row[:here]
            row, chunk, start = row[here:], chunk + 1, 0  # noqa: PLW2901  # what is left of it
    chunks = tuple(Chunk(hash_of(bytes(content)), len(content)) for content in contents)
    for chunk_of, content in zip(chunks, contents, strict=True):
        storage.put(f"chunks/{chunk_of.hash}", bytes(content))
    described = tuple(
        Stored(str(tensor.dtype)[6:], tuple(tensor.shape), tuple(pieces[number]))
        for number, tensor in enumerate(tensors)
    )
    return replace(build(1, {})[0], tensors=described, chunks=chunks)


@st.composite
def boxes_within(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    offset = tuple(draw(st.integers(0, size - 1)) for size in shape)
    return offset, tuple(draw(st.integers(1, size - at)) for size, at in zip(shape, offset, strict=True))


@settings(deadline=None)
@given(st.data())
def test_any_box_of_a_tensor_that_was_cut_in_any_way(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)))
    grid = tuple(data.draw(st.integers(1, 4)) for _ in shape)
    dtype = data.draw(st.sampled_from([torch.float32, torch.uint8, torch.bfloat16]))
    tensors = [noise(*shape, dtype=dtype), noise(*shape, dtype=torch.float64)]
    storage = MemoryStorage()
    manifest = sharded(storage, tensors, grid)
    wanted = {number: readers.Box(*data.draw(boxes_within(shape))) for number in (0, 1)}

    found = Reader(storage, manifest).read_boxes(wanted)
    whole = Reader(storage, manifest).read([0, 1])

    for number, box in wanted.items():
        assert same_bits(of_box(tensors[number], box.offset, box.shape), found[number])
        assert same_bits(tensors[number], whole[number])


@pytest.mark.parametrize("batch_bytes", [1, 256 << 20])
def test_a_large_sharded_tensor_is_put_together_from_several_chunks(
    batch_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "BATCH_BYTES", batch_bytes)
    tensor, storage = noise(3000, 5000), Counting()  # 60 MB
    manifest = sharded(storage, [tensor], (3, 1))

    part = Reader(storage, manifest).read_box(0, (900, 10), (300, 4000))

    assert same_bits(tensor[900:1200, 10:4010], part)
    assert set(storage.reads.values()) == {1}
    assert len(storage.reads) < len(manifest.chunks), "rows that nobody wants are not read"
    assert same_bits(tensor, Reader(storage, manifest).read([0])[0])


def test_a_box_as_it_was_saved_is_not_copied() -> None:
    storage = MemoryStorage()
    tensor = noise(64, 64)
    manifest = sharded(storage, [tensor], (4, 1))

    found = Reader(storage, manifest).read_box(0, (16, 0), (16, 64))

    assert same_bits(tensor[16:32], found)
    assert found.data_ptr() % 4096 == 0, "it lies where its chunk was read to"


def test_boxes_of_many_small_tensors_read_each_chunk_once() -> None:
    storage = Counting()
    tensors = [noise(8, 8) for _ in range(50)]
    manifest = sharded(storage, tensors, (4, 1))

    found = Reader(storage, manifest).read_boxes({n: readers.Box((1, 0), (6, 8)) for n in range(50)})

    assert all(same_bits(tensors[number][1:7], tensor) for number, tensor in found.items())
    assert set(storage.reads.values()) == {1}


@pytest.mark.parametrize(("offset", "shape"), [((0, 0), (9, 8)), ((1, 1), (8, 1)), ((0,), (8,))])
def test_a_box_outside_of_its_tensor_is_refused(offset: Any, shape: Any) -> None:
    storage = MemoryStorage()
    manifest = sharded(storage, [noise(8, 8)], (2, 1))

    with pytest.raises(ValueError, match=r"not within tensor 0|shorter|longer"):
        Reader(storage, manifest).read_box(0, offset, shape)


# --- trust ---


def test_who_listens_hears_which_chunks_are_right() -> None:
    storage, heard = MemoryStorage(), dict[str, bool]()
    manifest = stored(storage, {"a": [noise(9)], "b": [noise(9)]})
    good, bad = (chunk.hash for chunk in manifest.chunks)
    storage.files[f"chunks/{bad}"] = bytes(4096)
    reader = Reader(storage, manifest, on_chunk=lambda chunk_hash, is_right: heard.update({chunk_hash: is_right}))

    reader.read([0])
    with pytest.raises(Damaged, match=f"chunks/{bad} is not what was written: its hash differs"):
        reader.read([1])

    assert heard == {good: True, bad: False}


def test_what_does_not_fit_into_memory_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Counting()
    manifest = sharded(storage, [noise(1024, 1024)], (4, 1))  # 4 MiB
    needed = (4 << 20) + (4 << 20)  # of its chunks, and of the tensor put together from them
    monkeypatch.setattr(readers, "available_bytes", lambda: needed - 1)

    with pytest.raises(Damaged, match=f"takes {needed:,} bytes"):
        Reader(storage, manifest).read([0])

    assert not storage.reads
    monkeypatch.setattr(readers, "available_bytes", lambda: needed)
    Reader(storage, manifest).read([0])


def test_the_first_failure_ends_the_work_of_all_threads() -> None:
    done, has_failed = list[int](), threading.Event()

    def work(item: int) -> None:
        if item == 1:
            has_failed.set()
            raise KeyError(item)
        has_failed.wait()
        done.append(item)

    with pytest.raises(KeyError):
        in_parallel(work, range(1_000_000), threads=2)

    assert len(done) < 999_999


def test_everything_is_worked_on_once() -> None:
    done: list[int] = []

    in_parallel(done.append, range(1000), threads=8)

    assert sorted(done) == list(range(1000))


# --- the certificate, on the live objects ---


def a_training(seed: int = 0) -> dict[str, Any]:
    """With a tensor that has a chunk of its own, and small ones."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(300, 4000), torch.nn.BatchNorm1d(4000), torch.nn.Linear(4000, 2))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.randn(4, 300)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer}


def states(objects: dict[str, Any]) -> dict[str, Any]:
    return {name: thing.state_dict() for name, thing in objects.items()}


def test_the_certificate_holds_for_what_was_restored(tmp_path: Path) -> None:
    storage, objects = LocalStorage(tmp_path), a_training()
    save(a_store(storage), 1, states(objects))
    loaded = a_store(storage, attempt=2).load_newest()
    assert loaded is not None
    fresh = a_training(seed=1)
    assert verify_restored(loaded.manifest, states(fresh)) == ["model", "optimizer"]

    for name, thing in fresh.items():
        thing.load_state_dict(loaded.components[name])

    assert verify_restored(loaded.manifest, states(fresh)) == []


CHANGES: dict[str, Any] = {
    "one bit": lambda live: live["model"]["0.weight"].view(torch.int32)[7].bitwise_xor_(1),
    "a buffer": lambda live: live["model"]["1.running_mean"].neg_(),
    "a count": lambda live: live["model"]["1.num_batches_tracked"].add_(1),
    "a missing tensor": lambda live: live["model"].pop("2.bias"),
    "one more": lambda live: live["model"].update(extra=torch.zeros(1)),
    "another dtype": lambda live: live["model"].update({"2.bias": live["model"]["2.bias"].double()}),
    "another shape": lambda live: live["model"].update({"2.bias": live["model"]["2.bias"].view(2, 1)}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_certificate_fails_where_anything_differs(change: str) -> None:
    live = {name: dict(state) for name, state in states(a_training()).items()}
    manifest, _ = build(1, live)
    live["model"] = {key: tensor.clone() for key, tensor in live["model"].items()}
    assert verify_restored(manifest, live) == []

    CHANGES[change](live)

    assert verify_restored(manifest, live) == ["model"]


def test_the_certificate_fails_for_numbers_and_names_beside_the_tensors() -> None:
    live = states(a_training())
    manifest, _ = build(1, live)

    live["optimizer"]["param_groups"][0]["lr"] = 1
    assert verify_restored(manifest, live) == ["optimizer"]
    assert verify_restored(manifest, {"model": live["model"]}) == ["optimizer"]
    assert verify_restored(manifest, live | {"scaler": {}}) == ["optimizer", "scaler"]


def test_the_certificate_holds_whatever_the_order_of_keys_and_the_strides() -> None:
    image = noise(2, 3, 4, 4)
    state = {"a": image, "b": noise(3)}
    manifest, _ = build(1, {"model": state})

    live = {"b": state["b"], "a": image.to(memory_format=torch.channels_last)}

    assert verify_restored(manifest, {"model": live}) == []
    assert verify_restored(manifest, {"model": {"b": image, "a": state["b"]}}) == ["model"]


def test_the_certificate_looks_at_every_copy_of_a_shared_tensor() -> None:
    shared = noise(9)
    manifest, _ = build(1, {"model": {"w": shared}, "ema": {"w": shared}})
    assert len(manifest.tensors) == 1

    assert verify_restored(manifest, {"model": {"w": shared}, "ema": {"w": shared.clone()}}) == []
    assert "ema" in verify_restored(manifest, {"model": {"w": shared}, "ema": {"w": shared.clone().neg_()}})


def test_the_certificate_looks_into_sharded_tensors() -> None:
    tensor = torch.arange(4096.0 * 8).view(4096, 8)
    manifest = sharded(MemoryStorage(), [tensor], (4, 1))
    manifest = replace(manifest, state={"model": {"w": {"$": "tensor", "i": 0}}})
    changed = tensor.clone()
    changed[3000, 3] += 1

    assert verify_restored(manifest, {"model": {"w": tensor.clone()}}) == []
    assert verify_restored(manifest, {"model": {"w": changed}}) == ["model"]
