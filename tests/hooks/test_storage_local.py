"""On a local disk: nothing half done is seen, a power loss takes nothing that was promised, links lead nowhere."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.hooks.storages import Disk, Loss
from tests.hooks.test_storage import MIB, pages, read_back
from tests.hooks.training import Death
from trainer_hooks.storage import LocalStorage

NEW = pages(2 * MIB, byte=b"n")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def parts(folder: Path) -> list[str]:
    return [name for name in files(folder) if name.startswith(".")]


# --- hostile folders ---


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_bytes(b"x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "run" / "object").symlink_to(tmp_path / "secret" / "file")
    (tmp_path / "run" / "c").mkdir()
    (tmp_path / "run" / "c" / ".a.1-1.part").symlink_to(tmp_path / "secret" / "file")
    storage = LocalStorage(tmp_path / "run")

    for path in ("link/file", "object"):
        for act in (
            lambda path=path: storage.read(path, limit_bytes=9),
            lambda path=path: storage.read_into(path, memoryview(bytearray(1))),
            lambda path=path: storage.put(path, b"y"),
            lambda path=path: storage.put(path, b"y", exclusive=True),
        ):
            with pytest.raises(OSError, match="symbolic link"):
                act()
    storage.sweep("c")
    storage.delete("link")
    storage.delete("object")

    assert (tmp_path / "secret" / "file").read_bytes() == b"x"
    assert storage.names("link") == ()


def test_a_pipe_is_no_object_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    storage = LocalStorage(tmp_path)

    with pytest.raises(OSError, match="regular file"):
        storage.read("pipe", limit_bytes=9)
    with pytest.raises(OSError, match="regular file"):
        storage.read_into("pipe", memoryview(bytearray(9)))


# --- failures ---


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_put_that_fails_leaves_the_old_object_and_no_other(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("a/kept", b"old")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        for path in ("a/kept", "a/new"):
            with pytest.raises(OSError, match="No space"):
                storage.put(path, NEW)

    assert files(tmp_path / "a") == ["kept"]
    assert storage.read("a/kept", limit_bytes=3) == b"old"


def test_a_write_that_is_cut_short_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:300_000]))  # no whole pages
    storage = LocalStorage(tmp_path)

    for _ in range(2):
        storage.put("a", NEW)
        assert read_back(storage, "a", len(NEW)) == bytes(NEW)


def test_a_disk_without_hard_links_still_keeps_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    storage = LocalStorage(tmp_path)

    storage.put("m", b"first", exclusive=True)
    with pytest.raises(FileExistsError):
        storage.put("m", b"second", exclusive=True)

    assert storage.read("m", limit_bytes=9) == b"first"
    assert parts(tmp_path) == []


def test_a_link_whose_answer_was_lost_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link

    def link_twice(source: Any, target: Any, **kwargs: Any) -> None:
        with suppress(FileExistsError):
            real(source, target, **kwargs)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", link_twice)
    storage = LocalStorage(tmp_path)

    storage.put("m", b"first", exclusive=True)
    with pytest.raises(FileExistsError):
        storage.put("m", b"second", exclusive=True)

    assert storage.read("m", limit_bytes=9) == b"first"


# --- unfinished puts ---

PUT_THAT_WAITS = """
import os, sys
from pathlib import Path
from trainer_hooks.storage import LocalStorage

def wait(fd, real=os.fsync):
    print("written", flush=True)
    sys.stdin.readline()
    real(fd)

(Path(sys.argv[1]) / "c").mkdir()
os.fsync = wait
LocalStorage(Path(sys.argv[1])).put("c/a", b"whole")
"""


@contextmanager
def a_put_under_way(root: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PUT_THAT_WAITS, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.system
def test_a_put_under_way_is_hidden_and_not_swept(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    with a_put_under_way(tmp_path) as process:
        assert storage.names("c") == ()
        assert storage.sizes("c") == {}
        assert len(parts(tmp_path / "c")) == 1

        storage.sweep("c")
        process.communicate("go on\n")

    assert process.returncode == 0
    assert storage.read("c/a", limit_bytes=9) == b"whole"


@pytest.mark.system
def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    with a_put_under_way(tmp_path) as process:
        process.kill()
        process.wait()
    assert len(parts(tmp_path / "c")) == 1

    LocalStorage(tmp_path).sweep("c")

    assert parts(tmp_path / "c") == []


@pytest.mark.parametrize(("age_seconds", "left"), [(60, 1), (7200, 0)])
def test_without_locks_only_old_leftovers_are_swept(
    age_seconds: int, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    leftover = tmp_path / ".a.1-1.part"
    leftover.write_bytes(b"half")
    before = leftover.stat().st_mtime - age_seconds
    os.utime(leftover, (before, before))
    storage = LocalStorage(tmp_path.parent)

    storage.sweep(tmp_path.name)
    storage.put(f"{tmp_path.name}/b", b"written without a lock")

    assert len(parts(tmp_path)) == left


def test_a_put_survives_a_sweep_between_its_birth_and_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock
    swept: list[int] = []

    def flock(fd: int, how: int) -> None:
        if not swept:
            swept.append(fd)
            LocalStorage(tmp_path).sweep("c")
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    LocalStorage(tmp_path).put("c/a", b"whole")

    assert files(tmp_path / "c") == ["a"]


# --- direct I/O ---


class Watched:
    """Whether each `os.write` bypassed the page cache; one that does fails with `refuses`, if given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, refuses: int = 0) -> None:
        self.was_direct: list[bool] = []
        self._real = os.write
        self._refuses = refuses
        monkeypatch.setattr(os, "write", self._write)

    def _write(self, fd: int, data: memoryview) -> int:
        is_direct = bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)
        self.was_direct.append(is_direct)
        if is_direct and self._refuses:
            raise OSError(self._refuses, os.strerror(self._refuses))
        return self._real(fd, data)


@pytest.fixture
def direct_root(tmp_path: Path) -> Path:
    try:
        os.close(os.open(tmp_path / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system knows no direct I/O")
    return tmp_path / "run"


def test_large_aligned_buffers_bypass_the_page_cache(direct_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    storage = LocalStorage(direct_root)

    for data in (NEW, NEW[1:], NEW[:-1], NEW[:4096], NEW.toreadonly(), NEW[4096:]):
        storage.put("a", data)

    assert watched.was_direct == [True, False, False, False, False, True]
    assert read_back(storage, "a", len(NEW) - 4096) == bytes(NEW[4096:])


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_disk_that_refuses_direct_writes_is_asked_once(
    number: int, direct_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch, refuses=number)
    storage = LocalStorage(direct_root)

    for path in ("a", "b"):
        storage.put(path, NEW)

    assert watched.was_direct == [True, False, False]
    assert read_back(storage, "a", len(NEW)) == bytes(NEW)


def test_an_error_of_a_direct_write_is_not_hidden(direct_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Watched(monkeypatch, refuses=errno.EIO)

    with pytest.raises(OSError, match=rf"Errno {errno.EIO}\b"):
        LocalStorage(direct_root).put("a", NEW)

    assert files(direct_root) == []


def test_a_disk_that_cannot_be_switched_to_direct_is_written_all_the_same(
    direct_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.fcntl

    def refuse(fd: int, command: int, value: int = 0) -> int:
        if command == fcntl.F_SETFL:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, command, value)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    storage = LocalStorage(direct_root)

    storage.put("a", NEW)

    assert read_back(storage, "a", len(NEW)) == bytes(NEW)


# --- power loss ---


@pytest.mark.parametrize("loss", get_args(Loss))
def test_a_power_loss_at_any_call_leaves_whole_objects(
    loss: Loss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = {"c/chunk": bytes(NEW), "c/chunk2": b"second", "k/s/manifest": b"names both"}
    at = 0
    while True:
        at += 1
        with monkeypatch.context() as patch:
            root, left = tmp_path / f"{at}" / "run", tmp_path / f"{at}" / "left"
            disk = Disk(root, patch)
            disk.dies_at = at
            storage, done = LocalStorage(root), []
            with suppress(Death):
                storage.put("c/chunk", NEW)
                storage.put("c/chunk2", objects["c/chunk2"])
                storage.sync("c")
                done.append("synced")
                storage.put("k/s/manifest", objects["k/s/manifest"], exclusive=True)
                done.append("committed")
        disk.left_by(loss, left)

        after = LocalStorage(left)
        visible = {f"{folder}/{name}" for folder in ("c", "k/s") for name in after.names(folder)}
        for path in visible:
            assert after.read(path, limit_bytes=4 * MIB) == objects[path]
        assert visible >= ({"c/chunk", "c/chunk2"} if "synced" in done or "k/s/manifest" in visible else set())
        assert ("k/s/manifest" in visible) >= ("committed" in done)
        for folder in ("c", "k/s"):
            after.sweep(folder)
        assert not list(left.rglob(".*.part")), "leftovers go"
        if "committed" in done:
            return
