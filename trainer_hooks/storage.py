"""Where a run folder lies: four methods, on a POSIX file system or on anything fsspec can reach.

Paths are relative, with `/` between their parts. What `create` has written is durable, and whole, when the
block ends; until then nothing of it is visible. Every failure is an `OSError`.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, Self


class Writer(Protocol):
    def write(self, data: bytes, /) -> object: ...


class Storage(Protocol):
    """One run folder."""

    def create(self, path: str) -> AbstractContextManager[Writer]:
        """A new object, replacing an older one; if the block raises, the path is left as it was."""
        ...

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        """Raises: FileNotFoundError. OSError(EFBIG): it is larger than the limit. OSError(ELOOP): a symbolic link."""
        ...

    def names(self, folder: str) -> tuple[str, ...]:
        """What lies directly in `folder`, sorted; nothing if there is no such folder."""
        ...

    def delete(self, path: str) -> None:
        """Remove an object, or a folder with all that is in it; what is not there is fine."""
        ...


def open_storage(uri: str) -> Storage:
    """The folder at a path or an fsspec URI. It need not exist.

    Raises: ImportError, ValueError: no installed library reads such a URI.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return LocalStorage(Path(uri))
    return LocalStorage(Path(rest)) if scheme == "file" else FsspecStorage(uri)


class LocalStorage:
    """A folder of a POSIX file system.

    Data is fsynced before the rename that makes it visible, and the folder after it: without the first, a
    power loss leaves an empty file under the final name, without the second, no name at all.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    @contextmanager
    def create(self, path: str) -> Iterator[Writer]:
        target = self._resolve(path)
        _make_folders(target.parent)
        fresh = target.with_name(f".{target.name}.part")
        try:
            with _create_file(fresh) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(target)
            _sync_folder(target.parent)
        except BaseException:
            with suppress(OSError):
                fresh.unlink()
            raise

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        # O_NONBLOCK: a pipe under this name must not hang the resume
        fd = os.open(self._resolve(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "is not a regular file", path)
            if found.st_size > limit_bytes:
                raise OSError(errno.EFBIG, f"has {found.st_size:,} bytes, {limit_bytes:,} are expected", path)
            return file.read(found.st_size)

    def names(self, folder: str) -> tuple[str, ...]:
        try:
            found = [entry.name for entry in self._resolve(folder).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return tuple(sorted(name for name in found if not name.startswith(".")))

    def delete(self, path: str) -> None:
        target = self._resolve(path, last_may_be_link=True)
        with suppress(FileNotFoundError):
            _remove(target)
            _sync_folder(target.parent)

    def _resolve(self, path: str, *, last_may_be_link: bool = False) -> Path:
        """Raises: OSError(ELOOP): a part of `path` is a symbolic link, so it may lead out of the run folder."""
        parts = path.split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise OSError(errno.EINVAL, "is not a path in a run folder", path)
        here = self._root
        for number, part in enumerate(parts, start=1):
            here = here / part
            if here.is_symlink() and not (last_may_be_link and number == len(parts)):
                raise OSError(errno.ELOOP, "is a symbolic link", str(here))
        return here


class _File(io.RawIOBase):
    """An open descriptor, by the calls of `os`, so that a test can stand in for the disk."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def write(self, data: Any, /) -> int:
        return os.write(self._fd, data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._fd)


def _create_file(path: Path) -> io.BufferedWriter:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    return io.BufferedWriter(_File(os.open(path, flags, 0o666)), buffer_size=1 << 20)


def _make_folders(folder: Path) -> None:
    """Like `mkdir -p`, and each new name is durable."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, where the file system knows how (buckets mounted by FUSE do not)."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for entry in path.iterdir():
            _remove(entry)
        path.rmdir()
    else:
        path.unlink()


class FsspecStorage:
    """A folder in an object store. An upload becomes visible, whole, when it is closed."""

    def __init__(self, uri: str) -> None:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]  # it ships no types

        # A cached listing would hide what another process has written since.
        self._files, path = url_to_fs(uri, use_listings_cache=False)
        self._root = str(path).rstrip("/")

    @contextmanager
    def create(self, path: str) -> Iterator[Writer]:
        with _translated(path):
            file = self._files.open(f"{self._root}/{path}", "wb")
        try:
            with _OnlyOSErrors(file, path) as writer:
                yield writer
            with _translated(path):
                file.close()
        except BaseException:
            _abandon(file)
            raise

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        where = f"{self._root}/{path}"
        with _translated(path):
            size = self._files.info(where)["size"]
            if size > limit_bytes:
                raise OSError(errno.EFBIG, f"has {size:,} bytes, {limit_bytes:,} are expected", path)
            return bytes(self._files.cat_file(where))

    def names(self, folder: str) -> tuple[str, ...]:
        where = f"{self._root}/{folder}"
        with _translated(folder):
            self._files.invalidate_cache(where)
            try:
                found = self._files.ls(where, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return ()
        return tuple(sorted({str(path).rstrip("/").rpartition("/")[2] for path in found if str(path) != where}))

    def delete(self, path: str) -> None:
        with _translated(path), suppress(FileNotFoundError):
            self._files.rm(f"{self._root}/{path}", recursive=True)


class _OnlyOSErrors:
    """A writer whose failures are `OSError`s, whatever library is behind it."""

    def __init__(self, file: Any, path: str) -> None:
        self._file = file
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """The file is closed by the one who opened it."""

    def write(self, data: bytes, /) -> object:
        with _translated(self._path):
            return self._file.write(data)


@contextmanager
def _translated(path: str) -> Iterator[None]:
    """Libraries of clouds raise errors of their own; the hooks know a failed storage as `OSError`."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", path) from error


def _abandon(file: Any) -> None:
    """End an upload so that nothing of it appears, not even when the garbage collector closes the file."""
    with suppress(Exception):
        file.discard()
    with suppress(AttributeError, TypeError):
        file.closed = True
