"""Every storage keeps the promises that checkpoints are built on; so does the fake."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hooks.storages import MemoryStorage
from trainer_hooks.storage import FsspecStorage, LocalStorage, Storage, open_storage

KINDS: dict[str, Callable[[Path], Storage]] = {
    "local": lambda path: LocalStorage(path / "run"),
    "fsspec": lambda path: FsspecStorage(f"memory://{uuid.uuid4().hex}/run"),
    "fake": lambda path: MemoryStorage(),
}


@pytest.fixture(params=KINDS)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return KINDS[request.param](tmp_path)


def put(storage: Storage, path: str, content: bytes) -> None:
    with storage.create(path) as writer:
        writer.write(content)


def put_half(storage: Storage, path: str) -> None:
    with storage.create(path) as writer:
        writer.write(b"half")
        raise KeyError


def test_what_was_written_is_read(storage: Storage) -> None:
    put(storage, "a/b/c.txt", b"one")
    put(storage, "a/b/c.txt", b"two")

    assert storage.read("a/b/c.txt", limit_bytes=3) == b"two"


def test_names_are_those_directly_in_a_folder(storage: Storage) -> None:
    for path in ("a/x", "a/b/y", "a/b/z", "top"):
        put(storage, path, b"")

    assert storage.names("a") == ("b", "x")
    assert storage.names("nowhere") == ()


def test_a_block_that_raises_leaves_nothing(storage: Storage) -> None:
    put(storage, "a/kept", b"old")

    for path in ("a/new", "a/kept"):
        with pytest.raises(KeyError):
            put_half(storage, path)

    if not isinstance(storage, FsspecStorage):  # fsspec's memory has no uploads to abandon
        assert storage.names("a") == ("kept",)
        assert storage.read("a/kept", limit_bytes=3) == b"old"


def test_what_is_not_there_is_file_not_found(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("a/none", limit_bytes=9)


def test_what_is_larger_than_expected_is_not_read(storage: Storage) -> None:
    put(storage, "a", b"12345")

    with pytest.raises(OSError, match=rf"Errno {errno.EFBIG}\b"):
        storage.read("a", limit_bytes=4)


def test_deleting_takes_folders_and_may_be_repeated(storage: Storage) -> None:
    for path in ("a/x", "a/b/y", "c"):
        put(storage, path, b"")

    for path in ("a", "a", "c", "never"):
        storage.delete(path)

    assert storage.names("a") == ()
    with pytest.raises(FileNotFoundError):
        storage.read("c", limit_bytes=1)


@pytest.mark.parametrize("path", ["../out", "a/../../out", "/etc/passwd", "a//b", "."])
def test_a_path_cannot_leave_the_run_folder(path: str, tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "run")

    for act in (lambda: storage.read(path, limit_bytes=1), lambda: storage.delete(path), lambda: storage.names(path)):
        with pytest.raises(OSError, match="not a path"):
            act()


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_bytes(b"x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path / "secret")
    storage = LocalStorage(tmp_path / "run")

    with pytest.raises(OSError, match="symbolic link"):
        storage.read("link/file", limit_bytes=9)
    storage.delete("link")

    assert (tmp_path / "secret" / "file").exists()


def test_a_pipe_is_no_object_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(OSError, match="regular file"):
        LocalStorage(tmp_path).read("pipe", limit_bytes=9)


def test_uris_choose_the_storage(tmp_path: Path) -> None:
    assert isinstance(open_storage(str(tmp_path)), LocalStorage)
    assert isinstance(open_storage(f"file://{tmp_path}"), LocalStorage)
    assert isinstance(open_storage("memory://x/y"), FsspecStorage)
    with pytest.raises(ValueError, match="nonsense"):
        open_storage("nonsense://x")


def test_an_abandoned_upload_does_not_appear_when_it_is_collected(tmp_path: Path) -> None:
    storage = FsspecStorage("memory://z/run")
    closed = []

    class Upload:
        closed = False

        def write(self, data: bytes) -> int:
            raise KeyError("an error of some library")

        def close(self) -> None:
            closed.append(True)

        def discard(self) -> None:
            pass

    upload = Upload()
    storage._files = type("Files", (), {"open": lambda *args: upload})()

    with pytest.raises(OSError, match="KeyError"), storage.create("a") as writer:
        writer.write(b"x")

    assert not closed
    assert upload.closed
