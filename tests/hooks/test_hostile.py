"""Somebody else has written into the run folder: no code runs, nothing outside is touched, memory stays bounded.

Every folder is opened by one process whose memory is limited and whose every `open` is watched; it resumes, saves and
prunes there. Each folder holds a good checkpoint of step 10 and a hostile one of step 20.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hooks.states import a_state, a_store, build, put_chunks, save
from trainer_hooks.checkpoint import manifest as manifests
from trainer_hooks.checkpoint.layout import CHUNK_BYTES, Spot
from trainer_hooks.checkpoint.manifest import Manifest, Piece, Stored, hash_of
from trainer_hooks.storage import LocalStorage

pytestmark = pytest.mark.system

LIMIT_BYTES = 1 << 30
"""Beyond what the process has taken before. A manifest of a million chunks takes half of it."""

CHILD = """
import json, os, re, resource, sys
from pathlib import Path
from tests.hooks.states import a_store, save
from trainer_hooks.checkpoint import reader
from trainer_hooks.storage import LocalStorage

reader.PAUSES_SECONDS = ()
events, opened = [], []

def watch(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)):
        opened.append(os.fsdecode(args[0]))
    elif event in ("pickle.find_class", "os.system", "os.exec", "subprocess.Popen", "exec", "compile", "import"):
        events.append(event)

def live(folder):
    store = a_store(LocalStorage(folder), attempt=2)
    try:
        loaded = store.load_newest()
        found = {"step": loaded.manifest.step, "skipped": [one.why for one in loaded.skipped]}
        del loaded
        for step in (30, 40, 50):
            save(store, step)
            store.prune()
    except Exception as error:
        return {"error": type(error).__name__, "why": str(error)}
    return found

def data_bytes():
    return int(re.search(r"VmData:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

warm, limit_bytes, *folders = sys.argv[1:]
live(Path(warm))
allowed = data_bytes() + int(limit_bytes)
resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
sys.addaudithook(watch)
for folder in folders:
    events.clear()
    opened.clear()
    found = live(Path(folder))
    print(json.dumps(found | {"events": list(events), "opened": list(opened)}), flush=True)
"""


def write(folder: Path, manifest: Manifest) -> Path:
    """As somebody who knows the format would."""
    path = folder / "checkpoints" / "step-20-a1" / "manifest.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(manifests.encode(manifest))
    return path


def step_20(folder: Path) -> Manifest:
    manifest, chunks = build(20, a_state(20))
    put_chunks(a_store(LocalStorage(folder)), manifest, chunks)
    return manifest


def with_chunk(folder: Path, **changes: Any) -> None:
    manifest = step_20(folder)
    write(folder, replace(manifest, chunks=(*manifest.chunks[:-1], replace(manifest.chunks[-1], **changes))))


def with_tensor(folder: Path, **changes: Any) -> None:
    manifest = step_20(folder)
    write(folder, replace(manifest, tensors=(*manifest.tensors[:-1], replace(manifest.tensors[-1], **changes))))


def as_chunk(put: Callable[[Path, Path], object]) -> Callable[[Path, Path], None]:
    """Something else lies where a chunk of step 20 was."""

    def hostile(folder: Path, outside: Path) -> None:
        manifest = step_20(folder)
        write(folder, manifest)
        path = folder / "chunks" / manifest.chunks[-1].hash
        (outside / "secret").write_bytes(path.read_bytes())
        path.unlink()
        put(path, outside)

    return hostile


def as_manifest(put: Callable[[Path, Path], object]) -> Callable[[Path, Path], None]:
    def hostile(folder: Path, outside: Path) -> None:
        path = write(folder, step_20(folder))
        (outside / "secret").write_bytes(path.read_bytes())
        path.unlink()
        put(path, outside)

    return hostile


def linked_folder(name: str) -> Callable[[Path, Path], None]:
    def hostile(folder: Path, outside: Path) -> None:
        write(folder, step_20(folder))
        (folder / name).rename(outside / "secret")
        (folder / name).symlink_to(outside / "secret")

    return hostile


def sparse(path: Path, _: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def link(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "secret")


class Bomb:
    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._marker),)


def bomb(path: Path, outside: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(outside / "ran")))


def zipped_bomb(path: Path, outside: Path) -> None:
    torch.save({"w": Bomb(outside / "ran")}, path)


def a_bomb_that_is_a_chunk(folder: Path, outside: Path) -> None:
    """Its hash is right, so it is a tensor's bytes."""
    content = pickle.dumps(Bomb(outside / "ran")).ljust(4096, b"\0")
    (folder / "chunks").mkdir(exist_ok=True)
    (folder / "chunks" / hash_of(content)).write_bytes(content)
    with_chunk(folder, hash=hash_of(content))


def a_million_entries(entry_bytes: int, items: int) -> Callable[[Path, Path], None]:
    def hostile(folder: Path, outside: Path) -> None:
        manifest = step_20(folder)
        chunks = (manifest.chunks[0], *[replace(manifest.chunks[1], bytes=entry_bytes)] * 1_000_000)
        tensor = Stored("float32", (items,), (Piece((0,), (items,), Spot(1, 0)),))
        write(folder, replace(manifest, chunks=chunks, tensors=(manifest.tensors[0], tensor)))

    return hostile


def huge(shape: tuple[int, ...], **changes: Any) -> dict[str, Any]:
    return {"shape": shape, "pieces": (Piece((0,) * len(shape), shape, Spot(1, 0)),), **changes}


def with_state(state: dict[str, Any]) -> Callable[[Path, Path], object]:
    return lambda folder, outside: write(folder, replace(step_20(folder), state={"model": state}))


def beside_other_files(folder: Path, outside: Path) -> None:
    write(folder, step_20(folder))
    bomb(folder / "checkpoints" / "step-20-a1" / "model.pt", outside)
    bomb(folder / "chunks" / "0", outside)


NOT_WRITTEN = "not what was written"
NO_HASH = "is no chunk's hash"
DAMAGED: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "manifest: pickle": (as_manifest(bomb), NOT_WRITTEN),
    "manifest: torch.save": (as_manifest(zipped_bomb), NOT_WRITTEN),
    "manifest: link": (as_manifest(link), "symbolic link"),
    "manifest: pipe": (as_manifest(lambda path, _: os.mkfifo(path)), "regular file"),
    "manifest: folder": (as_manifest(lambda path, _: path.mkdir()), "regular file"),
    "manifest: sparse": (as_manifest(sparse), "are expected"),
    "chunk: pickle": (as_chunk(bomb), "are expected"),
    "chunk: torch.save": (as_chunk(zipped_bomb), NOT_WRITTEN),
    "chunk: link": (as_chunk(link), "symbolic link"),
    "chunk: dangling link": (as_chunk(lambda path, outside: path.symlink_to(outside / "new")), "symbolic link"),
    "chunk: pipe": (as_chunk(lambda path, _: os.mkfifo(path)), "regular file"),
    "chunk: sparse": (as_chunk(sparse), "are expected"),
    "name: parent": (lambda folder, outside: with_chunk(folder, hash="../../outside/secret"), NO_HASH),
    "name: absolute": (lambda folder, outside: with_chunk(folder, hash=str(outside / "secret")), NO_HASH),
    "name: backslash": (lambda folder, outside: with_chunk(folder, hash="..\\secret"), NO_HASH),
    "name: zero": (lambda folder, outside: with_chunk(folder, hash="a" * 31 + "\0"), NO_HASH),
    "name: newline": (lambda folder, outside: with_chunk(folder, hash="a" * 32 + "\n"), NO_HASH),
    "name: long": (lambda folder, outside: with_chunk(folder, hash="a" * 100_000), NO_HASH),
    "name: other digits": (lambda folder, outside: with_chunk(folder, hash="\u0663" * 32), NO_HASH),
    "size: large chunk": (lambda folder, outside: with_chunk(folder, bytes=CHUNK_BYTES + 1), "a chunk of"),
    "size: huge chunk": (lambda folder, outside: with_chunk(folder, bytes=1 << 62), "count is wanted"),
    "size: negative chunk": (lambda folder, outside: with_chunk(folder, bytes=-1), "count is wanted"),
    "size: empty chunk": (lambda folder, outside: with_chunk(folder, bytes=0), "a chunk of"),
    "size: huge tensor": (lambda folder, outside: with_tensor(folder, **huge((1 << 40, 1 << 40))), "larger than torch"),
    "size: many dimensions": (lambda folder, outside: with_tensor(folder, **huge((1,) * 1000)), "larger than torch"),
    "size: overlapping strides": (
        lambda folder, outside: with_tensor(folder, **huge((40, 1 << 30), strides=(1, 0))),
        "not dense",
    ),
    "size: 16 TB in a million entries": (a_million_entries(CHUNK_BYTES, CHUNK_BYTES // 4 * 1_000_000), "of memory"),
    "dtype: an attribute of torch": (lambda folder, outside: with_tensor(folder, dtype="hub"), "dtype"),
    "tree: unknown kind": (with_state({"$": "os.system", "command": "true"}), "not readable"),
    "tree: no such tensor": (with_state({"w": {"$": "tensor", "i": 1 << 40}}), "a tensor that is not there"),
    "tree: negative tensor": (with_state({"w": {"$": "tensor", "i": -1}}), "a tensor that is not there"),
}
HARMLESS: dict[str, Callable[[Path, Path], object]] = {
    "a bomb whose hash is right": a_bomb_that_is_a_chunk,
    "a million entries that nobody needs": a_million_entries(4096, 40),
    "bombs beside it": beside_other_files,
}
LINKED = {
    "checkpoints": ("OSError", "symbolic link"),
    "chunks": ("CheckpointsDamaged", "symbolic link"),
}
CASES = {name: hostile for name, (hostile, _) in DAMAGED.items()} | HARMLESS
CASES |= {name: linked_folder(name) for name in LINKED}


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of every folder."""
    root = tmp_path_factory.mktemp("hostile")
    folders: dict[str, Path] = {"": root / "warm" / "run"}
    for number, (name, hostile) in enumerate(CASES.items()):
        folders[name], outside = root / str(number) / "run", root / str(number) / "outside"
        outside.mkdir(parents=True)
        save(a_store(LocalStorage(folders[name])), 10)
        hostile(folders[name], outside)
    save(a_store(LocalStorage(folders[""])), 10)
    before = {name: content_of(folder.parent / "outside") for name, folder in folders.items()}

    command = [sys.executable, "-c", CHILD, str(folders.pop("")), str(LIMIT_BYTES), *map(str, folders.values())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)

    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(folders), f"died at {list(folders)[len(lines)]}: {done.stderr[-2000:]}"
    found = dict(zip(folders, lines, strict=True))
    for name, folder in folders.items():
        found[name]["folder"] = str(folder)
        found[name]["is outside as before"] = before[name] == content_of(folder.parent / "outside")
    return found


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_hostile_is_damage_and_the_older_checkpoint_loads(name: str, opened: dict[str, Any]) -> None:
    found = opened[name]

    assert found.get("step") == 10, found
    assert len(found["skipped"]) == 1
    assert DAMAGED[name][1] in found["skipped"][0]


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_only_odd_loads(name: str, opened: dict[str, Any]) -> None:
    assert opened[name].get("step") == 20, opened[name]


@pytest.mark.parametrize("name", LINKED)
def test_a_linked_folder_is_not_looked_into(name: str, opened: dict[str, Any]) -> None:
    error, why = LINKED[name]

    assert error == opened[name].get("error"), opened[name]
    assert why in opened[name]["why"]


@pytest.mark.parametrize("name", CASES)
def test_no_code_runs_and_nothing_outside_is_opened_or_changed(name: str, opened: dict[str, Any]) -> None:
    found = opened[name]

    outside = [path for path in found["opened"] if not path.startswith(f"{found['folder']}/")]
    assert {path for path in outside if path != found["folder"]} <= {"/proc/meminfo"}
    assert "pickle.find_class" not in found["events"]
    assert not set(found["events"]) - {"import", "compile", "exec"}, "no process is started"
    assert found["is outside as before"]
    assert not (Path(found["folder"]).parent / "outside" / "ran").exists()
