"""Storages that fail: a fake in memory, one that dies at any call, a full, a slow one, and a disk that loses power."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest

from tests.hooks.training import Death
from trainer_hooks.storage import Buffer, Storage
from trainer_hooks.storage.port import path_parts

When = Literal["before", "after"]


class MemoryStorage:
    """Keeps the port's promises (test_storage.py holds it to them), fast enough for thousands of deaths."""

    parallel = 2

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def put(self, path: str, data: Buffer, *, exclusive: bool = False) -> None:
        path_parts(path)
        content = bytes(data)
        with self._lock:
            if exclusive and path in self.files:
                raise FileExistsError(errno.EEXIST, "exists already", path)
            self.files[path] = content

    def sync(self, folder: str) -> None:
        path_parts(folder)

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        content = self._content(path)
        if len(content) > limit_bytes:
            raise OSError(errno.EFBIG, "too large", path)
        return content

    def read_into(self, path: str, target: memoryview) -> None:
        content = self._content(path)
        if len(content) != target.nbytes:
            raise OSError(errno.EINVAL, f"has {len(content):,} bytes, {target.nbytes:,} are expected", path)
        target.cast("B")[:] = content

    def names(self, folder: str) -> tuple[str, ...]:
        return tuple(sorted({inside.partition("/")[0] for inside, _ in self._below(folder)}))

    def sizes(self, folder: str) -> dict[str, int]:
        return {inside: len(content) for inside, content in self._below(folder) if "/" not in inside}

    def delete(self, path: str) -> None:
        path_parts(path)
        with self._lock:
            for key in [key for key in self.files if key == path or key.startswith(f"{path}/")]:
                del self.files[key]

    def remove(self, folder: str, names: Collection[str]) -> None:
        for name in names:
            self.delete(f"{folder}/{name}")

    def sweep(self, folder: str) -> None:
        path_parts(folder)  # a put in memory is never half done

    def _content(self, path: str) -> bytes:
        path_parts(path)
        with self._lock:
            if path not in self.files:
                raise FileNotFoundError(errno.ENOENT, "no such object", path)
            return self.files[path]

    def _below(self, folder: str) -> list[tuple[str, bytes]]:
        path_parts(folder)
        with self._lock:
            found = [(path, content) for path, content in self.files.items() if path.startswith(f"{folder}/")]
        return [(path.removeprefix(f"{folder}/"), content) for path, content in found]


class Dying:
    """Dies at the k-th call (from 1), before or after its effect; `at=0` only counts.

    All threads of the process die with it: what they call later has no effect. Deleting a folder may die half way.
    """

    def __init__(self, storage: MemoryStorage, *, at: int = 0, when: When = "before") -> None:
        self._storage = storage
        self._at = at
        self._when = when
        self._lock = threading.Lock()
        self._is_dead = False
        self.parallel = storage.parallel
        self.calls: list[str] = []

    def put(self, path: str, data: Buffer, *, exclusive: bool = False) -> None:
        self._call(f"put {path}", lambda: self._storage.put(path, data, exclusive=exclusive))

    def sync(self, folder: str) -> None:
        self._call(f"sync {folder}", lambda: self._storage.sync(folder))

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        content: bytes = self._call(f"read {path}", lambda: self._storage.read(path, limit_bytes=limit_bytes))
        return content

    def read_into(self, path: str, target: memoryview) -> None:
        self._call(f"read {path}", lambda: self._storage.read_into(path, target))

    def names(self, folder: str) -> tuple[str, ...]:
        found: tuple[str, ...] = self._call(f"names {folder}", lambda: self._storage.names(folder))
        return found

    def sizes(self, folder: str) -> dict[str, int]:
        found: dict[str, int] = self._call(f"sizes {folder}", lambda: self._storage.sizes(folder))
        return found

    def delete(self, path: str) -> None:
        for key in self._inside(path) or [path]:
            self._call(f"delete {key}", partial(self._storage.delete, key))

    def remove(self, folder: str, names: Collection[str]) -> None:
        for name in names:
            self._call(f"remove {folder}/{name}", partial(self._storage.remove, folder, [name]))

    def sweep(self, folder: str) -> None:
        self._call(f"sweep {folder}", lambda: self._storage.sweep(folder))

    def _inside(self, path: str) -> list[str]:
        """In the order that does most harm: the manifest last."""
        found = [key for key in list(self._storage.files) if key == path or key.startswith(f"{path}/")]
        return sorted(found, key=lambda key: (key.endswith("manifest.json"), key))

    def _call(self, name: str, effect: Callable[[], Any]) -> Any:
        with self._lock:
            if self._is_dead:
                raise Death(name)
            self.calls.append(name)
            self._is_dead = len(self.calls) == self._at
            if self._is_dead and self._when == "before":
                raise Death(name)
            result = effect()
            if self._is_dead:
                raise Death(name)
            return result


class _Passing:
    """Another storage, as it is: for those that change one thing."""

    storage: Storage

    @property
    def parallel(self) -> int:
        return self.storage.parallel

    def put(self, path: str, data: Buffer, *, exclusive: bool = False) -> None:
        self.storage.put(path, data, exclusive=exclusive)

    def sync(self, folder: str) -> None:
        self.storage.sync(folder)

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        return self.storage.read(path, limit_bytes=limit_bytes)

    def read_into(self, path: str, target: memoryview) -> None:
        self.storage.read_into(path, target)

    def names(self, folder: str) -> tuple[str, ...]:
        return self.storage.names(folder)

    def sizes(self, folder: str) -> dict[str, int]:
        return self.storage.sizes(folder)

    def delete(self, path: str) -> None:
        self.storage.delete(path)

    def remove(self, folder: str, names: Collection[str]) -> None:
        self.storage.remove(folder, names)

    def sweep(self, folder: str) -> None:
        self.storage.sweep(folder)


@dataclass
class Full(_Passing):
    """No space left, as long as `is_full`; `applies` picks the paths."""

    storage: Storage
    is_full: bool = True
    applies: Callable[[str], bool] = lambda path: True
    number: int = errno.ENOSPC

    def put(self, path: str, data: Buffer, *, exclusive: bool = False) -> None:
        if self.is_full and self.applies(path):
            raise OSError(self.number, os.strerror(self.number), path)
        self.storage.put(path, data, exclusive=exclusive)


class Sleeps(Protocol):
    def sleep(self, seconds: float, /) -> None: ...


class Throttled(_Passing):
    """A narrow line: what is put and read passes one after the other, and takes its time on `clock`."""

    def __init__(self, storage: Storage, *, bytes_per_second: float, clock: Sleeps) -> None:
        self.storage = storage
        self.bytes_per_second = bytes_per_second
        self._clock = clock
        self._line = threading.Lock()

    def put(self, path: str, data: Buffer, *, exclusive: bool = False) -> None:
        self._pass(memoryview(data).nbytes)
        self.storage.put(path, data, exclusive=exclusive)

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        content = self.storage.read(path, limit_bytes=limit_bytes)
        self._pass(len(content))
        return content

    def read_into(self, path: str, target: memoryview) -> None:
        self._pass(target.nbytes)
        self.storage.read_into(path, target)

    def _pass(self, count: int) -> None:
        with self._line:
            self._clock.sleep(count / self.bytes_per_second)


Loss = Literal["nothing synced later", "names without data", "torn data", "nothing"]


@dataclass
class _File:
    data: bytearray = field(default_factory=bytearray)
    durable: bytes = b""


@dataclass
class _Folder:
    entries: dict[str, _File | _Folder] = field(default_factory=dict)
    durable: dict[str, _File | _Folder] = field(default_factory=dict)


class Disk:
    """Follows what a program does to one folder through `os`, and shows what a power loss would leave of it.

    Data is durable once its file was fsynced, by whichever name; a name (made, linked, moved or removed) once its
    folder was. `dies_at` counts calls; at that one, before its effect, the power fails, and nothing later has any.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = str(root)
        self._tree = _Folder()
        self._open: dict[int, _File | _Folder] = {}
        self._lock = threading.RLock()
        self.calls = 0
        self.dies_at = 0
        for name in ("open", "write", "fsync", "close", "mkdir", "rmdir", "unlink", "replace", "link"):
            monkeypatch.setattr(os, name, self._watch(name, getattr(os, name)))

    def left_by(self, loss: Loss, target: Path) -> None:
        """Make `target` what the folder is after the power came back."""
        _materialise(self._tree, loss, target)

    def _watch(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *args: Any, **kwargs: Any) -> Any:
            is_ours = first in self._open if isinstance(first, int) else str(first).startswith(f"{self._root}/")
            if not is_ours and str(first) != self._root:
                return real(first, *args, **kwargs)
            with self._lock:
                self.calls += name not in ("open", "close")
                if 0 < self.dies_at <= self.calls and name != "close":
                    raise Death(f"{name} {first}")
                result = real(first, *args, **kwargs)
                getattr(self, f"_on_{name}")(first, *args, result=result)
                return result

        return call

    def _on_open(self, path: Any, flags: int, *args: Any, result: int) -> None:
        found = self._find(path)
        if flags & os.O_CREAT and (found is None or flags & os.O_TRUNC):
            found = _File()
            self._folder_of(path).entries[Path(path).name] = found
        if found is not None:
            self._open[result] = found

    def _on_write(self, fd: int, data: Any, *, result: int) -> None:
        self._open[fd].data += bytes(data)[:result]  # type: ignore[union-attr]  # nobody writes to a folder

    def _on_fsync(self, fd: int, *, result: None) -> None:
        match self._open[fd]:
            case _File() as file:
                file.durable = bytes(file.data)
            case _Folder() as folder:
                folder.durable = dict(folder.entries)

    def _on_close(self, fd: int, *, result: None) -> None:
        del self._open[fd]

    def _on_mkdir(self, path: Any, *args: Any, result: None) -> None:
        if str(path) != self._root:
            self._folder_of(path).entries[Path(path).name] = _Folder()

    def _on_rmdir(self, path: Any, *, result: None) -> None:
        del self._folder_of(path).entries[Path(path).name]

    def _on_unlink(self, path: Any, *, result: None) -> None:
        del self._folder_of(path).entries[Path(path).name]

    def _on_replace(self, source: Any, target: Any, *, result: None) -> None:
        moved = self._folder_of(source).entries.pop(Path(source).name)
        self._folder_of(target).entries[Path(target).name] = moved

    def _on_link(self, source: Any, target: Any, *, result: None) -> None:
        linked = self._folder_of(source).entries[Path(source).name]
        self._folder_of(target).entries[Path(target).name] = linked

    def _folder_of(self, path: Any) -> _Folder:
        folder = self._find(Path(path).parent)
        assert isinstance(folder, _Folder), path
        return folder

    def _find(self, path: Any) -> _File | _Folder | None:
        here: _File | _Folder | None = self._tree
        for part in Path(path).relative_to(self._root).parts:
            here = here.entries.get(part) if isinstance(here, _Folder) else None
        return here


def _materialise(folder: _Folder, loss: Loss, target: Path) -> None:
    target.mkdir(parents=True)
    for name, node in (folder.durable if loss == "nothing synced later" else folder.entries).items():
        if isinstance(node, _Folder):
            _materialise(node, loss, target / name)
            continue
        match loss:
            case "nothing synced later" | "names without data":
                content = node.durable
            case "torn data":
                content = node.durable or bytes(node.data[: len(node.data) // 2])
            case "nothing":
                content = bytes(node.data)
        (target / name).write_bytes(content)
