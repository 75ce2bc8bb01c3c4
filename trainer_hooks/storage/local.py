"""A run folder on a POSIX file system.

An object is written under a hidden name, `.<name>.<pid>-<n>.part`, which its writer keeps locked; data is fsynced
before the name appears, and the folder after it: without the first, a power loss leaves an empty file under the
final name, without the second, no name at all. Large buffers bypass the page cache, where there is a way to.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import os
import stat
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from trainer_hooks.storage.port import Buffer, path_parts

DIRECT_BYTES = 1 << 20
"""What is smaller (journal, manifest) is no slower through the page cache, and is read again soon."""
PAGE_BYTES = 4096  # address and length of direct I/O: enough for any disk of today
ABANDONED_AFTER_SECONDS = 3600.0
"""An unfinished file this old is nobody's, where the file system knows no locks."""

_NO_DIRECT = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_counter = itertools.count()


class LocalStorage:
    """`put` writes a page-aligned, writable buffer (an anonymous mmap) of whole pages without copying it."""

    parallel = 2  # one writes while the other waits for its fsync; more gain little and take cores from the training

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._is_direct = True  # until this file system refuses

    def put(self, path: str, data: Buffer, *, exclusive: bool = False) -> None:
        target = self._resolve(path)
        _make_folders(target.parent)
        fresh, fd = _create_beside(target)
        try:
            try:
                self._write(fd, memoryview(data).cast("B"))
                os.fsync(fd)
                if exclusive:
                    _link(fresh, fd, target)
                else:
                    fresh.replace(target)
            finally:
                os.close(fd)
        except BaseException:
            with suppress(OSError):
                fresh.unlink()
            raise
        if exclusive:
            _sync_folder(target.parent)

    def sync(self, folder: str) -> None:
        with suppress(FileNotFoundError):  # nothing was ever put there
            _sync_folder(self._resolve(folder))

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        fd, size = self._open(path)
        with os.fdopen(fd, "rb") as file:
            if size > limit_bytes:
                raise OSError(errno.EFBIG, f"has {size:,} bytes, {limit_bytes:,} are expected", path)
            return file.read(size)

    def read_into(self, path: str, target: memoryview) -> None:
        fd, size = self._open(path)
        try:
            left = target.cast("B")
            if size != len(left):
                raise OSError(errno.EINVAL, f"has {size:,} bytes, {len(left):,} are expected", path)
            while left:
                count = os.preadv(fd, [left], size - len(left))
                if count == 0:
                    raise OSError(errno.EINVAL, "became shorter while it was read", path)
                left = left[count:]
        finally:
            os.close(fd)

    def names(self, folder: str) -> tuple[str, ...]:
        return tuple(sorted(entry.name for entry in self._entries(folder) if not entry.name.startswith(".")))

    def sizes(self, folder: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for entry in self._entries(folder):
            if entry.name.startswith(".") or not entry.is_file(follow_symlinks=False):
                continue
            with suppress(FileNotFoundError):  # deleted since the listing
                found[entry.name] = entry.stat(follow_symlinks=False).st_size
        return found

    def delete(self, path: str) -> None:
        target = self._resolve(path, last_may_be_link=True)
        with suppress(FileNotFoundError):
            _remove(target)
            _sync_folder(target.parent)

    def remove(self, folder: str, names: Collection[str]) -> None:
        for name in names:
            with suppress(FileNotFoundError):
                self._resolve(f"{folder}/{name}", last_may_be_link=True).unlink()

    def sweep(self, folder: str) -> None:
        for entry in self._entries(folder):
            is_unfinished = entry.name.startswith(".") and entry.name.endswith(".part")
            if is_unfinished and entry.is_file(follow_symlinks=False):
                _remove_abandoned(Path(entry.path))

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self._resolve(folder)) as found:
                return list(found)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _open(self, path: str) -> tuple[int, int]:
        """The descriptor and the size of a regular file."""
        # O_NONBLOCK: a pipe under this name must not hang the resume
        fd = os.open(self._resolve(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "is not a regular file", path)
        return fd, found.st_size

    def _write(self, fd: int, left: memoryview) -> None:
        is_direct = self._is_direct and _suits_direct(left) and self._turn_direct(fd)
        size = len(left)
        while left:
            try:
                left = left[os.write(fd, left) :]
            except OSError as error:
                if not is_direct or error.errno not in _NO_DIRECT:
                    raise
                _set_direct(fd, on=False)
                is_direct = False
                if len(left) == size:  # not just the odd rest of a write that was cut short
                    self._is_direct = False

    def _turn_direct(self, fd: int) -> bool:
        try:
            _set_direct(fd, on=True)
        except OSError:
            self._is_direct = False
        return self._is_direct

    def _resolve(self, path: str, *, last_may_be_link: bool = False) -> Path:
        """Raises: OSError(ELOOP): a part of `path` is a symbolic link, so it may lead out of the run folder."""
        parts = path_parts(path)
        here = self._root
        for number, part in enumerate(parts, start=1):
            here = here / part
            if here.is_symlink() and not (last_may_be_link and number == len(parts)):
                raise OSError(errno.ELOOP, "is a symbolic link", str(here))
        return here


def _create_beside(target: Path) -> tuple[Path, int]:
    """A new file for what is to become `target`, locked: `sweep` leaves it alone as long as its writer lives."""
    while True:
        fresh = target.with_name(f".{target.name}.{os.getpid()}-{next(_counter)}.part")
        try:
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            continue  # of a dead process that had this number, or of one on another machine
        with suppress(OSError):  # a file system without locks: `sweep` goes by age
            fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return fresh, fd
        os.close(fd)  # swept between its birth and its lock


def _suits_direct(data: memoryview) -> bool:
    if len(data) < DIRECT_BYTES or len(data) % PAGE_BYTES or data.readonly:
        return False
    return ctypes.addressof(ctypes.c_char.from_buffer(data)) % PAGE_BYTES == 0


def _set_direct(fd: int, *, on: bool) -> None:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    direct: int = getattr(os, "O_DIRECT", 0)  # macOS has none
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | direct if on else flags & ~direct)


def _link(fresh: Path, fd: int, target: Path) -> None:
    """Give `fresh` its name unless somebody has it: `link` fails where `rename` would replace.

    File systems without hard links (FAT, most buckets mounted by FUSE) have no such call: there, two writers within
    microseconds may both succeed. What stays is whole, and the number of the attempt fences late writers anyhow.
    """
    try:
        target.hardlink_to(fresh)
    except FileExistsError:
        if os.fstat(fd).st_nlink < 2:  # else it is ours: NFS asks again where an answer was lost
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if target.exists():
            raise FileExistsError(errno.EEXIST, "exists already", str(target)) from None
        fresh.replace(target)
        return
    fresh.unlink()


def _remove_abandoned(path: Path) -> None:
    """Remove an unfinished file whose writer is dead: its lock went with it."""
    with suppress(FileNotFoundError, PermissionError):  # gone already; or another user's, and not ours to remove
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)  # NFS locks only for writers
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            if time.time() - os.fstat(fd).st_mtime > ABANDONED_AFTER_SECONDS:
                path.unlink()
        finally:
            os.close(fd)


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
