"""Whatever happens to a save, or to what was saved: the newest state that verifies loads, bit for bit."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import random
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from tests.hooks.storages import Disk, Dying, Full, Loss, MemoryStorage
from tests.hooks.training import Death
from trainer_hooks.checkpoint import manifest as manifests
from trainer_hooks.checkpoint.store import Loaded, Owner, Store
from trainer_hooks.errors import CheckpointsDamaged, NotLoadable, Superseded
from trainer_hooks.storage import LocalStorage, Storage


def a_store(storage: Storage, *, attempt: int = 1, keep: int = 2) -> Store:
    return Store(storage, owner=Owner(run_id="r", attempt=attempt, world_size=1), keep=keep)


def a_state(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {"model": {"w": torch.rand(40, generator=generator)}, "optimizer": {"state": {0: {"step": step}}, "lr": 0.1}}


def commit(store: Store, step: int) -> None:
    store.commit(step, a_state(step), cursor={"batch": step})
    store.prune()


def step_of(loaded: Loaded | None) -> int:
    """The loaded step, once its state is seen to be that step's."""
    assert loaded is not None
    expected, step = a_state(loaded.manifest.step), loaded.manifest.step
    assert torch.equal(expected["model"]["w"], loaded.components["model"]["w"])
    assert expected["optimizer"] == loaded.components["optimizer"]
    assert loaded.manifest.cursor == {"batch": step}
    return step


def checkpoints(storage: Storage) -> tuple[str, ...]:
    return storage.names("checkpoints")


def test_what_was_committed_loads(tmp_path: Path) -> None:
    commit(a_store(LocalStorage(tmp_path)), 10)

    assert step_of(a_store(LocalStorage(tmp_path)).load_newest()) == 10


def test_without_a_checkpoint_there_is_nothing_to_load() -> None:
    storage = MemoryStorage()
    storage.files["checkpoints/step-5-a1/model.pt"] = b"a leftover without a manifest"
    storage.files["checkpoints/other/manifest.json"] = b"not ours"

    assert a_store(storage).load_newest() is None


def test_a_later_attempt_is_newer_whatever_its_step() -> None:
    storage = MemoryStorage()
    commit(a_store(storage, attempt=1), 30)
    commit(a_store(storage, attempt=2), 20)

    assert step_of(a_store(storage, attempt=3).load_newest()) == 20


# --- death at every call ---


def life(storage: Storage, attempt: int, committed: list[int]) -> None:
    """One attempt: resume, save twice. Each commit that returned is remembered."""
    store = a_store(storage, attempt=attempt)
    loaded = store.load_newest()
    start = step_of(loaded) if loaded else 0
    assert not committed or start >= max(committed), "a commit that returned was lost"
    for step in (start + 1, start + 2):
        store.commit(step, a_state(step), cursor={"batch": step})
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


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_death_at_any_call_and_a_second_one_lose_no_commit(when: Any) -> None:
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
            life(storage, 4, committed)
            assert len(checkpoints(storage)) == 2, "leftovers are removed"


@pytest.mark.parametrize("loss", get_args(Loss))
def test_a_power_loss_at_any_call_of_a_save_loses_no_commit(
    loss: Loss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        if not has_died:
            break
    assert at > 40


# --- damage ---


def two_checkpoints(folder: Path) -> tuple[Path, list[Path]]:
    store = a_store(LocalStorage(folder))
    commit(store, 10)
    commit(store, 20)
    newest = folder / "checkpoints" / "step-20-a1"
    return newest, sorted(newest.iterdir())


def assert_falls_back(folder: Path) -> Loaded:
    loaded = a_store(LocalStorage(folder), attempt=2).load_newest()
    assert step_of(loaded) == 10
    assert loaded is not None
    assert [one.name for one in loaded.skipped] == ["step-20-a1"]
    assert loaded.lost_steps == 10
    return loaded


@pytest.mark.parametrize("name", ["manifest.json", "model.pt", "optimizer.pt"])
def test_any_flipped_bit_is_found_and_the_older_checkpoint_loads(name: str, tmp_path: Path) -> None:
    newest, _ = two_checkpoints(tmp_path)
    good = (newest / name).read_bytes()
    bits = random.Random(0).sample(range(len(good) * 8), 150) if name != "manifest.json" else range(0, len(good) * 8, 7)

    for bit in bits:
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        (newest / name).write_bytes(damaged)
        assert_falls_back(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "model.pt", "optimizer.pt"])
def test_any_truncation_or_growth_is_found(name: str, tmp_path: Path) -> None:
    newest, _ = two_checkpoints(tmp_path)
    good = (newest / name).read_bytes()

    for content in (*(good[: len(good) * n // 8] for n in range(8)), good[:-1], good + b"\0", bytes(len(good))):
        (newest / name).write_bytes(content)
        assert_falls_back(tmp_path)


def test_a_missing_component_is_found(tmp_path: Path) -> None:
    newest, _ = two_checkpoints(tmp_path)

    (newest / "model.pt").unlink()

    assert_falls_back(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "model.pt"])
def test_a_link_is_damage(name: str, tmp_path: Path) -> None:
    newest, _ = two_checkpoints(tmp_path)
    (newest / name).rename(tmp_path / "elsewhere")

    (newest / name).symlink_to(tmp_path / "elsewhere")

    assert "symbolic link" in assert_falls_back(tmp_path).skipped[0].why


def test_a_linked_checkpoint_is_damage_and_pruned_as_a_link(tmp_path: Path) -> None:
    newest, _ = two_checkpoints(tmp_path)
    newest.rename(tmp_path / "elsewhere")
    newest.symlink_to(tmp_path / "elsewhere")

    store = a_store(LocalStorage(tmp_path), attempt=2)
    assert step_of(store.load_newest()) == 10
    commit(store, 30)

    assert checkpoints(LocalStorage(tmp_path)) == ("step-10-a1", "step-30-a2")
    assert (tmp_path / "elsewhere" / "manifest.json").exists()


NAMES = ("parent", "separator", "absolute", "backslash")
HOSTILE: dict[str, Any] = {
    "parent": lambda body: body["files"].update({"../../x.pt": body["files"]["model.pt"]}),
    "separator": lambda body: body["files"].update({"a/b.pt": body["files"]["model.pt"]}),
    "absolute": lambda body: body["files"].update({"/etc/passwd": body["files"]["model.pt"]}),
    "backslash": lambda body: body["files"].update({"..\\x.pt": body["files"]["model.pt"]}),
    "huge": lambda body: body["files"]["model.pt"].update({"bytes": 1 << 70}),
    "large": lambda body: body["files"]["model.pt"].update({"bytes": 1 << 62}),
    "negative": lambda body: body["files"]["model.pt"].update({"bytes": -1}),
    "no number": lambda body: body["files"]["model.pt"].update({"bytes": "many"}),
    "true": lambda body: body["files"]["model.pt"].update({"bytes": True}),
    "hash": lambda body: body["files"]["model.pt"].update({"sha256": ["x"]}),
    "other step": lambda body: body.update({"step": 999}),
    "schema": lambda body: body.update({"schema": 2}),
    "files": lambda body: body.update({"files": [1]}),
    "cursor": lambda body: body.update({"cursor": 7}),
}


def forge(path: Path, change: Any) -> None:
    """A manifest that somebody who knows the format has written."""
    body = json.loads(path.read_bytes())
    del body["digest"]
    change(body)
    path.write_text(json.dumps(body | {"digest": manifests._digest(body)}))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_manifest_is_damage(name: str, tmp_path: Path) -> None:
    newest, _ = two_checkpoints(tmp_path)

    forge(newest / "manifest.json", HOSTILE[name])

    why = assert_falls_back(tmp_path).skipped[0].why
    assert name not in NAMES or "which is no component" in why, "not left to the storage to refuse"


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["EVIL"],)


@pytest.mark.parametrize("wrapped", [True, False])
def test_code_in_a_component_never_runs(wrapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest, _ = two_checkpoints(tmp_path)
    monkeypatch.setenv("EVIL", str(tmp_path / "ran"))
    if wrapped:
        torch.save({"w": Evil()}, newest / "model.pt")
    else:
        (newest / "model.pt").write_bytes(pickle.dumps(Evil()))
    content = (newest / "model.pt").read_bytes()
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    forge(newest / "manifest.json", lambda body: body["files"].update({"model.pt": entry}))

    assert_falls_back(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_when_nothing_verifies_the_run_does_not_start_over(tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    for file in tmp_path.rglob("model.pt"):
        file.write_bytes(b"?")

    with pytest.raises(CheckpointsDamaged, match=r"step-20-a1.*step-10-a1.*delete the folder"):
        a_store(LocalStorage(tmp_path), attempt=2).load_newest()


# --- pruning, fencing, failing ---


def test_pruning_counts_only_what_was_verified(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    first = a_store(storage, keep=3)
    for step in (10, 20, 30):
        commit(first, step)
    (tmp_path / "checkpoints" / "step-30-a1" / "model.pt").write_bytes(b"?")

    second = a_store(storage, attempt=2)
    assert step_of(second.load_newest()) == 20
    second.prune()
    assert checkpoints(storage) == ("step-10-a1", "step-20-a1", "step-30-a1"), "one verified is not two"
    commit(second, 21)

    assert checkpoints(storage) == ("step-20-a1", "step-21-a2")


def test_pruning_leaves_newer_attempts_and_strangers_alone() -> None:
    storage = MemoryStorage()
    for path in ("checkpoints/step-1-a9/model.pt", "checkpoints/best/model.pt"):
        storage.files[path] = b""
    store = a_store(storage)
    store._owner = Owner(run_id="r", attempt=1, world_size=1)
    with pytest.raises(Superseded):
        commit(store, 10)

    store.prune()

    assert checkpoints(storage) == ("best", "step-1-a9")


@pytest.mark.parametrize("sign", ["journal/002/00000000.jsonl", "checkpoints/step-3-a2/model.pt"])
def test_a_superseded_attempt_does_not_commit(sign: str) -> None:
    storage = MemoryStorage()
    store = a_store(storage)
    commit(store, 10)
    storage.files[sign] = b""

    with pytest.raises(Superseded, match="attempt 2"):
        commit(store, 20)

    assert step_of(a_store(storage, attempt=3).load_newest()) == 10
    assert "step-20-a1" not in checkpoints(storage)


@pytest.mark.parametrize("path", ["model.pt", "optimizer.pt", "manifest.json"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_full_disk_harms_nothing_and_leaves_nothing(path: str, number: int) -> None:
    storage = MemoryStorage()
    full = Full(storage, is_full=False, applies=lambda name: name.endswith(path), number=number)
    store = a_store(full)
    commit(store, 10)
    full.is_full = True

    with pytest.raises(OSError, match=os.strerror(number)):
        commit(store, 20)

    assert checkpoints(storage) == ("step-10-a1",)
    full.is_full = False
    commit(store, 20)
    assert step_of(a_store(storage, attempt=2).load_newest()) == 20


@pytest.mark.parametrize("bad", [{"x": {1, 2}.__iter__}, {"x": Path("x")}, {"x": lambda: 0}], ids=["c", "path", "fn"])
def test_a_state_that_cannot_be_loaded_is_refused_at_the_first_save(bad: Mapping[str, Any]) -> None:
    storage = MemoryStorage()

    with pytest.raises(NotLoadable, match=r"state of scheduler cannot be read back"):
        a_store(storage).commit(1, {"model": {}, "scheduler": dict(bad)}, cursor={})

    assert checkpoints(storage) == ()


def test_a_storage_that_returns_other_bytes_is_found_at_the_first_save() -> None:
    class Lying(MemoryStorage):
        def read(self, path: str, *, limit_bytes: int) -> bytes:
            return bytes(len(super().read(path, limit_bytes=limit_bytes)))

    with pytest.raises(OSError, match="read back differently"):
        commit(a_store(Lying()), 1)
