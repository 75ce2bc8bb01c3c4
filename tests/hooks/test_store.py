"""Whatever happens to a save, or to what was saved: the newest state that verifies loads, bit for bit."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
import torch

from tests.hooks.states import a_state, a_store, build, put_chunks, save, step_of
from tests.hooks.storages import Disk, Dying, Full, Loss, MemoryStorage
from tests.hooks.training import Death
from trainer_hooks.checkpoint import reader
from trainer_hooks.checkpoint.store import Loaded, Store
from trainer_hooks.errors import CheckpointsDamaged, Damaged, Superseded
from trainer_hooks.storage import Buffer, LocalStorage, Storage


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "PAUSES_SECONDS", (0.0, 0.0, 0.0))


def commit(store: Store, step: int) -> None:
    save(store, step)
    store.prune()


def checkpoints(storage: Storage) -> tuple[str, ...]:
    return storage.names("checkpoints")


def test_what_was_committed_loads(tmp_path: Path) -> None:
    commit(a_store(LocalStorage(tmp_path)), 10)

    assert step_of(a_store(LocalStorage(tmp_path)).load_newest()) == 10


def test_without_a_commit_there_is_nothing_to_load() -> None:
    storage = MemoryStorage()
    put_chunks(a_store(storage), *build(10, a_state(10)))
    storage.files["checkpoints/step-5-a1/something"] = b"a leftover without a manifest"
    storage.files["checkpoints/other/manifest.json"] = b"not ours"

    assert a_store(storage).load_newest() is None


def test_a_later_attempt_is_newer_whatever_its_step() -> None:
    storage = MemoryStorage()
    commit(a_store(storage, attempt=1), 30)
    commit(a_store(storage, attempt=2), 20)

    assert step_of(a_store(storage, attempt=3).load_newest()) == 20


# --- nothing is written twice ---


def test_what_has_not_changed_is_not_written_again() -> None:
    store = a_store(MemoryStorage())

    assert save(store, 10) == 2 * 4096
    assert save(store, 20) == 4096


def test_what_was_verified_while_loading_is_not_written_again() -> None:
    storage = MemoryStorage()
    save(a_store(storage), 10)
    resumed = a_store(storage, attempt=2)
    resumed.load_newest()

    assert save(resumed, 20) == 4096


def test_what_nobody_verified_is_not_trusted() -> None:
    storage = MemoryStorage()
    save(a_store(storage), 10)

    assert save(a_store(storage, attempt=2), 20) == 2 * 4096


def test_a_chunk_that_two_threads_need_is_written_once() -> None:
    class Slow(MemoryStorage):
        puts = 0

        def put(self, path: str, data: Buffer, *, exclusive: bool = False) -> None:
            self.puts += 1
            both_ask.wait()
            super().put(path, data, exclusive=exclusive)

    both_ask, storage, written = threading.Event(), Slow(), []
    store = a_store(storage)
    manifest, chunks = build(10, {"model": {"w": a_state(1)["model"]["w"]}})
    threads = [threading.Thread(target=lambda: written.append(put_chunks(store, manifest, chunks))) for _ in range(2)]

    for thread in threads:
        thread.start()
    both_ask.set()
    for thread in threads:
        thread.join()

    assert (sorted(written), storage.puts) == ([0, 4096], 1)


# --- death at every call ---


def life(storage: Storage, attempt: int, committed: list[int]) -> None:
    """One attempt: resume, save twice. Each commit that returned is remembered."""
    store = a_store(storage, attempt=attempt)
    loaded = store.load_newest()
    start = step_of(loaded) if loaded else 0
    assert not committed or start >= max(committed), "a commit that returned was lost"
    assert not loaded or not loaded.skipped, "a death damages nothing"
    for step in (start + 1, start + 2):
        save(store, step)
        committed.append(step)
        store.prune()


def calls_of_a_life(storage: MemoryStorage) -> int:
    counting = Dying(storage)
    life(counting, 2, [])
    return len(counting.calls)


def born(storage: MemoryStorage) -> list[int]:
    committed: list[int] = []
    life(storage, 1, committed)
    return committed


def assert_all_verify(storage: MemoryStorage) -> None:
    """What has a manifest is whole, old ones that are being removed included: a fallback may need them."""
    for name in checkpoints(storage):
        if "manifest.json" in storage.names(f"checkpoints/{name}"):
            a_store(storage).load(name)


def assert_no_leftovers(storage: MemoryStorage) -> None:
    """Two checkpoints: the frozen chunk, and one for each."""
    assert len(checkpoints(storage)) == 2
    assert len(storage.names("chunks")) == 3


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_death_at_any_call_and_a_second_one_lose_no_commit_and_leave_nothing(when: Any) -> None:
    first = MemoryStorage()
    born(first)
    calls = calls_of_a_life(first)
    assert calls > 30

    for at in range(1, calls + 1):
        for second in (0, 1 + at * 7 % calls):
            storage = MemoryStorage()
            committed = born(storage)
            with pytest.raises(Death):
                life(Dying(storage, at=at, when=when), 2, committed)
            assert_all_verify(storage)
            if second:
                with suppress(Death):
                    life(Dying(storage, at=second, when=when), 3, committed)
            assert_all_verify(storage)
            life(storage, 4, committed)
            assert_no_leftovers(storage)


@pytest.mark.parametrize("loss", get_args(Loss))
def test_a_power_loss_at_any_call_loses_no_commit(loss: Loss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = 0
    while True:
        at += 1
        with monkeypatch.context() as patch:
            disk = Disk(tmp_path / f"{at}" / "run", patch)
            storage = LocalStorage(tmp_path / f"{at}" / "run")
            committed: list[int] = []
            life(storage, 1, committed)
            disk.dies_at = disk.calls + at
            try:
                life(storage, 2, committed)
            except Death:
                has_died = True
            else:
                has_died = False
        disk.left_by(loss, tmp_path / f"{at}" / "after")

        life(LocalStorage(tmp_path / f"{at}" / "after"), 3, committed)
        shutil.rmtree(tmp_path / f"{at}")
        if not has_died:
            break
    assert at > 30


# --- damage ---


def two_checkpoints(folder: Path) -> list[Path]:
    """What only the newer one has: its manifest, and the chunk that changed."""
    store = a_store(LocalStorage(folder))
    save(store, 10)
    there = {path for path in folder.rglob("*") if path.is_file()}
    save(store, 20)
    return sorted(path for path in folder.rglob("*") if path.is_file() and path not in there)


def assert_falls_back(folder: Path) -> Loaded:
    loaded = a_store(LocalStorage(folder), attempt=2).load_newest()
    assert step_of(loaded) == 10
    assert loaded is not None
    assert [one.name for one in loaded.skipped] == ["step-20-a1"]
    assert loaded.lost_steps == 10
    return loaded


@pytest.mark.parametrize("which", ["manifest", "chunk"])
def test_any_flipped_bit_is_found_and_the_older_checkpoint_loads(which: str, tmp_path: Path) -> None:
    manifest, chunk = two_checkpoints(tmp_path)
    path = manifest if which == "manifest" else chunk
    good = path.read_bytes()
    bits = range(0, len(good) * 8, 13) if which == "manifest" else random.Random(0).sample(range(len(good) * 8), 150)

    for bit in bits:
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert_falls_back(tmp_path)


@pytest.mark.parametrize("which", ["manifest", "chunk"])
def test_any_truncation_growth_or_zeroed_range_is_found(which: str, tmp_path: Path) -> None:
    manifest, chunk = two_checkpoints(tmp_path)
    path = manifest if which == "manifest" else chunk
    good = path.read_bytes()
    content = len(good.rstrip(b"\0"))  # zeros among the padding of a chunk change nothing
    zeroed = [good[:at] + bytes(16) + good[at + 16 :] for at in range(0, content - 16, 16)]

    for bad in (*(good[: len(good) * n // 8] for n in range(8)), good[:-1], good + b"\0", bytes(len(good)), *zeroed):
        path.write_bytes(bad)
        assert_falls_back(tmp_path)


@pytest.mark.parametrize("how", ["missing", "link", "folder", "pipe"])
def test_a_chunk_that_is_no_file_is_damage(how: str, tmp_path: Path) -> None:
    _, chunk = two_checkpoints(tmp_path)
    chunk.rename(tmp_path / "elsewhere")

    match how:
        case "link":
            chunk.symlink_to(tmp_path / "elsewhere")
        case "folder":
            chunk.mkdir()
        case "pipe":
            os.mkfifo(chunk)

    assert f"chunks/{chunk.name} is not what was written" in assert_falls_back(tmp_path).skipped[0].why


def test_a_damaged_chunk_damages_every_checkpoint_that_shares_it(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    store = a_store(storage)
    save(store, 10, {"other": {"w": a_state(3)["model"]["w"]}})
    for step in (20, 30):
        save(store, step)
    manifest = store.manifest("step-30-a1")
    (tmp_path / "chunks" / manifest.chunks[0].hash).write_bytes(bytes(4096))

    loaded = a_store(storage, attempt=2).load_newest()

    assert loaded is not None
    assert loaded.name == "step-10-a1"
    assert [one.name for one in loaded.skipped] == ["step-30-a1", "step-20-a1"]
    assert loaded.lost_steps == 20


def test_the_next_save_writes_a_damaged_chunk_again_and_heals_what_shares_it(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    first = a_store(storage)
    save(first, 5, {"other": {"w": a_state(3)["model"]["w"]}})
    save(first, 10)
    frozen = tmp_path / "chunks" / first.manifest("step-10-a1").chunks[0].hash
    frozen.write_bytes(bytes(4096))
    store = a_store(storage, attempt=2)
    store.load_newest()

    assert save(store, 20) == 2 * 4096
    assert step_of(a_store(storage, attempt=3).load("step-10-a1")) == 10


def test_a_manifest_may_be_damaged_in_one_checkpoint_and_a_chunk_in_the_next(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    store = a_store(storage)
    for step in (10, 20, 30):
        save(store, step)
    (tmp_path / "checkpoints" / "step-30-a1" / "manifest.json").write_bytes(b"{}")
    (tmp_path / "chunks" / store.manifest("step-20-a1").chunks[1].hash).unlink()

    loaded = a_store(storage, attempt=2).load_newest()

    assert step_of(loaded) == 10
    assert loaded is not None
    assert loaded.lost_steps == 20


def test_when_nothing_verifies_the_run_does_not_start_over(tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    for file in (tmp_path / "chunks").iterdir():
        file.write_bytes(b"?")

    with pytest.raises(CheckpointsDamaged, match=r"step-20-a1.*step-10-a1.*delete the folder"):
        a_store(LocalStorage(tmp_path), attempt=2).load_newest()


def test_a_checkpoint_larger_than_the_memory_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = MemoryStorage()
    save(a_store(storage), 10)
    reads: list[str] = []
    monkeypatch.setattr(reader, "available_bytes", lambda: 8191)
    monkeypatch.setattr(storage, "read_into", lambda path, target: reads.append(path))

    with pytest.raises(CheckpointsDamaged, match=r"takes 8,192 bytes of memory, this machine has 8,191"):
        a_store(storage, attempt=2).load_newest()

    assert reads == []


# --- failures that may pass ---


class Flaky(MemoryStorage):
    """Reads of a path fail a few times. `flips`: instead of failing, they return a wrong byte."""

    def __init__(self, number: int = errno.EIO, *, flips: bool = False) -> None:
        super().__init__()
        self.failures = 0
        self.applies = ""
        self._number = number
        self._flips = flips

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        self._fail(path)
        return super().read(path, limit_bytes=limit_bytes)

    def read_into(self, path: str, target: memoryview) -> None:
        is_flipped = self._flips and self.failures > 0 and self.applies in path
        self._fail(path)
        super().read_into(path, target)
        if is_flipped:
            target[0] ^= 1

    def _fail(self, path: str) -> None:
        if self.failures > 0 and self.applies in path:
            self.failures -= 1
            if not self._flips:
                raise OSError(self._number, os.strerror(self._number), path)


@pytest.mark.parametrize("applies", ["manifest.json", "chunks/"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT, errno.EACCES, errno.ESTALE])
def test_a_read_that_fails_for_a_while_is_tried_again(applies: str, number: int) -> None:
    storage = Flaky(number)
    save(a_store(storage), 10)
    storage.applies, storage.failures = applies, 3

    assert step_of(a_store(storage, attempt=2).load_newest()) == 10
    assert storage.failures == 0


@pytest.mark.parametrize("applies", ["step-20-a1", "chunks/"])
def test_a_read_that_goes_on_failing_does_not_lose_steps_silently(applies: str) -> None:
    storage = Flaky()
    store = a_store(storage)
    save(store, 10)
    save(store, 20)
    storage.applies, storage.failures = applies, 1000

    with pytest.raises(OSError, match=r"checkpoint step-20-a1 cannot be read .*delete checkpoints/step-20-a1"):
        a_store(storage, attempt=2).load_newest()


def test_a_bit_that_flips_on_its_way_is_no_damage() -> None:
    storage = Flaky(flips=True)
    save(a_store(storage), 10)
    storage.applies, storage.failures = "chunks/", 1

    loaded = a_store(storage, attempt=2).load_newest()

    assert step_of(loaded) == 10
    assert loaded is not None
    assert not loaded.skipped


# --- committing ---


@pytest.mark.parametrize("sign", ["journal/002/00000000.jsonl", "checkpoints/step-3-a2/manifest.json"])
def test_a_superseded_attempt_neither_commits_nor_removes(sign: str) -> None:
    storage = MemoryStorage()
    store = a_store(storage)
    for step in (10, 20):
        save(store, step)
    storage.files[sign] = b""

    with pytest.raises(Superseded, match="attempt 2"):
        save(store, 30)
    before = dict(storage.files)
    with pytest.raises(Superseded, match="attempt 2"):
        store.prune()

    assert "step-30-a1" not in checkpoints(storage)
    assert before == storage.files


def test_two_processes_with_the_same_number_do_not_overwrite_each_other() -> None:
    storage = MemoryStorage()
    save(a_store(storage), 10)

    with pytest.raises(Superseded, match="another process of attempt 1"):
        save(a_store(storage), 10, {"model": {"w": a_state(99)["model"]["w"]}})

    assert step_of(a_store(storage, attempt=2).load_newest()) == 10


def test_a_commit_whose_answer_was_lost_is_not_lost() -> None:
    class Mute(MemoryStorage):
        is_mute = True
        synced: ClassVar[list[str]] = []

        def sync(self, folder: str) -> None:
            self.synced.append(folder)

        def put(self, path: str, data: Buffer, *, exclusive: bool = False) -> None:
            super().put(path, data, exclusive=exclusive)
            if exclusive and self.is_mute:
                raise OSError(errno.ETIMEDOUT, "no answer")

    storage = Mute()
    store = a_store(storage)
    with pytest.raises(OSError, match="no answer"):
        save(store, 10)
    assert not store.has(10)

    storage.is_mute = False
    save(store, 10)

    assert store.has(10)
    assert step_of(a_store(storage, attempt=2).load_newest()) == 10
    assert {"checkpoints", "checkpoints/step-10-a1"} < set(storage.synced), "its names may not have been durable"


def test_a_damaged_checkpoint_of_the_same_name_makes_way(tmp_path: Path) -> None:
    manifest, _ = two_checkpoints(tmp_path)
    manifest.write_bytes(b"{}")
    restarted = a_store(LocalStorage(tmp_path))  # the same attempt: a launcher of processes restarts them so
    assert step_of(restarted.load_newest()) == 10

    save(restarted, 20)

    assert step_of(a_store(LocalStorage(tmp_path), attempt=2).load_newest()) == 20


@pytest.mark.parametrize("damage", ["gone", "short"])
def test_nothing_is_committed_whose_chunks_are_not_there(damage: str) -> None:
    storage = MemoryStorage()
    store = a_store(storage)
    save(store, 10)
    frozen = f"chunks/{store.manifest('step-10-a1').chunks[0].hash}"
    if damage == "gone":
        del storage.files[frozen]
    else:
        storage.files[frozen] = b"?"

    with pytest.raises(OSError, match="not there any more"):
        save(store, 20)

    assert "step-20-a1" not in checkpoints(storage)
    assert save(store, 30) == 2 * 4096, "and the next save writes them again"


@pytest.mark.parametrize("part", ["chunks/", "manifest.json"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_full_disk_harms_nothing(part: str, number: int) -> None:
    storage = MemoryStorage()
    full = Full(storage, is_full=False, applies=lambda path: part in path, number=number)
    store = a_store(full)
    commit(store, 10)
    full.is_full = True

    with pytest.raises(OSError, match=os.strerror(number)):
        save(store, 20)

    assert checkpoints(storage) == ("step-10-a1",)
    assert step_of(a_store(storage).load_newest()) == 10
    full.is_full = False
    save(store, 30)
    assert step_of(a_store(storage, attempt=2).load_newest()) == 30


# --- pruning ---


def test_pruning_tells_what_is_left_and_what_it_takes() -> None:
    storage = MemoryStorage()
    store = a_store(storage)
    for step in (10, 20, 30):
        save(store, step)

    kept = store.prune()

    assert kept.names == ("step-30-a1", "step-20-a1")
    assert kept.stored_bytes == 3 * 4096 == sum(storage.sizes("chunks").values())


def test_pruning_counts_only_what_was_verified(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    first = a_store(storage, keep=3)
    for step in (10, 20, 30):
        commit(first, step)
    (tmp_path / "chunks" / first.manifest("step-30-a1").chunks[1].hash).write_bytes(b"?")

    second = a_store(storage, attempt=2)
    assert step_of(second.load_newest()) == 20
    second.prune()
    assert checkpoints(storage) == ("step-10-a1", "step-20-a1", "step-30-a1"), "one verified is not two"
    commit(second, 21)

    assert checkpoints(storage) == ("step-20-a1", "step-21-a2")


def test_milestones_and_the_best_survive_a_resume() -> None:
    storage = MemoryStorage()
    retention: dict[str, Any] = {"every_steps": 100, "best": "loss"}
    first = a_store(storage, **retention)
    for step in (50, 100, 150, 160):
        save(first, step, metrics={"loss": 1.0 if step == 50 else 2.0})
    second = a_store(storage, attempt=2, **retention)
    second.load_newest()

    for step in (210, 220, 230):
        save(second, step, metrics={"loss": 3.0})
        second.prune()

    older = {
        "step-50-a1",
        "step-100-a1",
        "step-160-a1",
    }  # the best, the milestone, the best of those that were verified
    assert set(checkpoints(storage)) == older | {"step-210-a2", "step-220-a2", "step-230-a2"}


def test_a_damaged_checkpoint_is_no_milestone() -> None:
    storage = MemoryStorage()
    first = a_store(storage)
    for step in (90, 100):
        save(first, step)
    storage.files["checkpoints/step-100-a1/manifest.json"] += b" "
    second = a_store(storage, attempt=2, every_steps=100)
    second.load_newest()

    for step in (110, 120, 130):
        save(second, step)
        second.prune()

    assert checkpoints(storage) == ("step-110-a2", "step-120-a2", "step-130-a2")


def test_chunks_of_a_save_that_goes_on_are_not_removed() -> None:
    storage = MemoryStorage()
    store = a_store(storage)
    for step in (10, 20, 30):
        save(store, step)
    manifest, chunks = build(40, a_state(40))
    for chunk, data in zip(manifest.chunks, chunks, strict=True):
        if not store.knows(chunk.hash):
            store.put_chunk(chunk.hash, memoryview(data))

    store.prune()
    store.commit(manifest)

    assert step_of(a_store(storage, attempt=2).load_newest()) == 40


def test_a_known_chunk_that_a_save_relies_on_is_not_removed() -> None:
    storage = MemoryStorage()
    store = a_store(storage)
    for step in (10, 20, 30):
        save(store, step)
    manifest, _ = build(40, a_state(10))  # the state of step 10 again, which only that checkpoint refers to
    assert all(store.knows(chunk.hash) for chunk in manifest.chunks)

    store.prune()
    assert "step-10-a1" not in checkpoints(storage)
    store.commit(manifest)

    assert a_store(storage, attempt=2).verify("step-40-a1") == store.manifest("step-40-a1")


def test_a_chunk_that_was_removed_is_not_known() -> None:
    storage = MemoryStorage()
    store = a_store(storage)
    for step in (10, 20, 30):
        commit(store, step)
    manifest, chunks = build(40, a_state(10))

    assert put_chunks(store, manifest, chunks) == 4096
    store.commit(manifest)

    assert a_store(storage, attempt=2).verify("step-40-a1").step == 40


def test_a_chunk_that_is_wanted_while_it_is_removed_is_written_after_that() -> None:
    class Waiting(MemoryStorage):
        def remove(self, folder: str, names: Collection[str]) -> None:
            if wanted.hash in names:
                threads.append(threading.Thread(target=lambda: written.append(put_chunks(store, manifest, chunks))))
                threads[0].start()
            super().remove(folder, names)

    storage, threads, written = Waiting(), list[threading.Thread](), list[int]()
    store = a_store(storage)
    manifest, chunks = build(40, a_state(10))
    wanted = manifest.chunks[1]
    for step in (10, 20, 30):
        save(store, step)

    store.prune()
    threads[0].join()
    store.commit(manifest)

    assert written == [4096]
    assert a_store(storage, attempt=2).verify("step-40-a1").step == 40


def test_what_a_save_left_that_came_to_nothing_is_removed() -> None:
    storage = MemoryStorage()
    store = a_store(storage)
    commit(store, 10)
    put_chunks(store, *build(20, a_state(20)))

    store.prune()
    assert len(storage.names("chunks")) == 3, "it may still go on"
    store.abandon()
    store.prune()

    assert len(storage.names("chunks")) == 2


def test_another_rank_relies_only_on_what_the_last_commit_refers_to() -> None:
    storage = MemoryStorage()
    first, other = a_store(storage), a_store(storage)
    manifest, chunks = build(10, a_state(10))
    put_chunks(other, manifest, chunks)
    first.commit(manifest)

    other.committed_elsewhere([manifest.chunks[0].hash])

    assert [other.knows(chunk.hash) for chunk in manifest.chunks] == [True, False]


def test_no_chunk_is_removed_while_a_manifest_cannot_be_told(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    first = a_store(storage)
    for step in (10, 20):
        save(first, step)
    (tmp_path / "checkpoints" / "step-20-a1" / "manifest.json").write_bytes(b"{}")
    second = a_store(storage, attempt=2)
    second.load_newest()

    second.prune()
    assert len(storage.names("chunks")) == 3, "it is not removed yet, so it may be repaired by hand"
    commit(second, 30)
    commit(second, 40)

    assert checkpoints(storage) == ("step-30-a2", "step-40-a2")
    assert len(storage.names("chunks")) == 3


def test_a_manifest_that_cannot_be_read_just_now_stops_the_pruning() -> None:
    storage = Flaky()
    first = a_store(storage)
    for step in (10, 20, 30):
        save(first, step)
    second = a_store(storage, attempt=2)
    second.load_newest()
    save(second, 40)
    before = dict(storage.files)
    storage.applies, storage.failures = "step-10-a1", 1000

    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        second.prune()

    assert before == storage.files


def test_the_copy_of_a_checkpoint_keeps_its_chunks_and_strangers_are_left_alone(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    store = a_store(storage)
    save(store, 10)
    shutil.copytree(tmp_path / "checkpoints" / "step-10-a1", tmp_path / "checkpoints" / "published")
    (tmp_path / "checkpoints" / "notes.txt").write_text("x")
    (tmp_path / "checkpoints" / "newest").symlink_to("step-10-a1")
    (tmp_path / "chunks" / "README").write_text("x")
    for step in (20, 30, 40):
        commit(store, step)

    assert set(checkpoints(storage)) == {"newest", "notes.txt", "published", "step-30-a1", "step-40-a1"}
    assert {chunk.hash for chunk in build(10, a_state(10))[0].chunks} | {"README"} < set(storage.names("chunks"))
    assert len(storage.names("chunks")) == 1 + 4


def test_a_linked_checkpoint_is_damage_and_pruned_as_a_link(tmp_path: Path) -> None:
    newest, _ = two_checkpoints(tmp_path)
    newest.parent.rename(tmp_path / "elsewhere")
    newest.parent.symlink_to(tmp_path / "elsewhere")

    store = a_store(LocalStorage(tmp_path), attempt=2)
    assert step_of(store.load_newest()) == 10
    commit(store, 30)

    assert checkpoints(LocalStorage(tmp_path)) == ("step-10-a1", "step-30-a2")
    assert (tmp_path / "elsewhere" / "manifest.json").exists()


def test_an_unfinished_put_is_swept(tmp_path: Path) -> None:
    store = a_store(LocalStorage(tmp_path))
    save(store, 10)
    unfinished = tmp_path / "chunks" / f".{'0' * 32}.999999-0.part"
    unfinished.write_bytes(b"half")

    store.prune()

    assert not unfinished.exists()


def test_checkpoints_can_be_listed_and_verified_without_reading_them_into_memory() -> None:
    storage = MemoryStorage()
    store = a_store(storage)
    for step in (10, 20):
        save(store, step)
    storage.files[f"chunks/{store.manifest('step-10-a1').chunks[1].hash}"] = bytes(4096)
    other = a_store(storage)

    assert other.names() == ("step-20-a1", "step-10-a1")
    assert other.verify("step-20-a1").step == 20
    with pytest.raises(Damaged, match="its hash differs"):
        other.verify("step-10-a1")
    with pytest.raises(FileNotFoundError):
        other.verify("step-30-a1")


def test_a_rank_that_is_not_the_first_reads_only_what_it_wants_and_hashes_that() -> None:
    storage = MemoryStorage()
    save(a_store(storage), 10)
    frozen, changing = (f"chunks/{chunk.hash}" for chunk in a_store(storage).manifest("step-10-a1").chunks)
    storage.files[changing] = bytes(4096)
    other = a_store(storage, attempt=2)

    loaded = other.load("step-10-a1", fetch=lambda reader: [reader.read([0])[0], None], is_first=False)

    assert torch.equal(a_state(10)["backbone"]["frozen"], loaded.components["backbone"]["frozen"])
    with pytest.raises(Damaged):
        other.load("step-10-a1")
    storage.files[frozen] = bytes(4096)
    with pytest.raises(Damaged):
        a_store(storage).load("step-10-a1", fetch=lambda reader: [reader.read([0])[0], None], is_first=False)


def test_a_manifest_of_another_attempt_is_not_committed_under_ours() -> None:
    store = a_store(MemoryStorage())
    manifest, chunks = build(10, a_state(10))
    put_chunks(store, manifest, chunks)

    with pytest.raises(ValueError, match="attempt 7"):
        store.commit(replace(manifest, attempt=7))
