"""Storages that fail: a fake in memory, one that dies at any call, one that is full, and a disk that loses power."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.hooks.training import Death
from trainer_hooks.storage import Storage, Writer

When = Literal["before", "after"]


class MemoryStorage:
    """Keeps the port's promises (test_storage.py holds it to them), fast enough for thousands of deaths."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    @contextmanager
    def create(self, path: str) -> Iterator[Writer]:
        buffer = _Buffer()
        yield buffer
        self.files[path] = bytes(buffer.data)

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(errno.ENOENT, "no such object", path)
        if len(self.files[path]) > limit_bytes:
            raise OSError(errno.EFBIG, "too large", path)
        return self.files[path]

    def names(self, folder: str) -> tuple[str, ...]:
        inside = [path.removeprefix(f"{folder}/") for path in self.files if path.startswith(f"{folder}/")]
        return tuple(sorted({path.partition("/")[0] for path in inside}))

    def delete(self, path: str) -> None:
        for key in [key for key in self.files if key == path or key.startswith(f"{path}/")]:
            del self.files[key]


class _Buffer:
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: Any, /) -> int:
        self.data += data
        return len(data)


class Dying:
    """Dies at the k-th call (from 1), before or after its effect; `at=0` only counts.

    A create is several calls: its beginning, every write, its end. Deleting a folder may die half way.
    """

    def __init__(self, storage: MemoryStorage, *, at: int = 0, when: When = "before") -> None:
        self._storage = storage
        self._at = at
        self._when = when
        self.calls: list[str] = []

    @contextmanager
    def create(self, path: str) -> Iterator[Writer]:
        buffer = _Buffer()
        self._call(f"create {path}", lambda: None)
        yield _Through(lambda data: self._call(f"write {path}", lambda: buffer.write(data)))
        self._call(f"end {path}", lambda: self._storage.files.update({path: bytes(buffer.data)}))

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        return self._call(f"read {path}", lambda: self._storage.read(path, limit_bytes=limit_bytes))

    def names(self, folder: str) -> tuple[str, ...]:
        return self._call(f"names {folder}", lambda: self._storage.names(folder))

    def delete(self, path: str) -> None:
        for key in self._inside(path) or [path]:
            self._call(f"delete {key}", lambda key=key: self._storage.delete(key))

    def _inside(self, path: str) -> list[str]:
        """In the order that does most harm: the manifest last."""
        found = [key for key in self._storage.files if key == path or key.startswith(f"{path}/")]
        return sorted(found, key=lambda key: (key.endswith("manifest.json"), key))

    def _call(self, name: str, effect: Callable[[], Any]) -> Any:
        self.calls.append(name)
        is_it = len(self.calls) == self._at
        if is_it and self._when == "before":
            raise Death(name)
        result = effect()
        if is_it:
            raise Death(name)
        return result


@dataclass
class _Through:
    write: Callable[[Any], Any]


@dataclass
class Full:
    """No space left, as long as `is_full`; `applies` picks the paths."""

    storage: Storage
    is_full: bool = True
    applies: Callable[[str], bool] = lambda path: True
    number: int = errno.ENOSPC

    @contextmanager
    def create(self, path: str) -> Iterator[Writer]:
        with self.storage.create(path) as writer:
            yield _Through(lambda data: self._write(writer, path, data))

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        return self.storage.read(path, limit_bytes=limit_bytes)

    def names(self, folder: str) -> tuple[str, ...]:
        return self.storage.names(folder)

    def delete(self, path: str) -> None:
        self.storage.delete(path)

    def _write(self, writer: Writer, path: str, data: Any) -> Any:
        if self.is_full and self.applies(path):
            raise OSError(self.number, os.strerror(self.number), path)
        return writer.write(data)


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

    Data is durable once its file was fsynced, a name (made, moved or removed) once its folder was. `dies_at`
    counts calls; at that one, before its effect, the power fails.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = str(root)
        self._tree = _Folder()
        self._open: dict[int, _File | _Folder] = {}
        self._real = {name: getattr(os, name) for name in ("open", "write", "fsync", "close")}
        self.calls = 0
        self.dies_at = 0
        for name in ("open", "write", "fsync", "close", "mkdir", "rmdir", "unlink", "replace"):
            monkeypatch.setattr(os, name, self._watch(name, getattr(os, name)))

    def left_by(self, loss: Loss, target: Path) -> None:
        """Make `target` what the folder is after the power came back."""
        _materialise(self._tree, loss, target)

    def _watch(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *args: Any, **kwargs: Any) -> Any:
            is_ours = first in self._open if isinstance(first, int) else str(first).startswith(f"{self._root}/")
            if not is_ours and str(first) != self._root:
                return real(first, *args, **kwargs)
            if name not in ("open", "close"):
                self.calls += 1
                if self.calls == self.dies_at:
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
