"""What the hooks ask of a run folder: immutable objects under relative paths, with `/` between their parts."""

from __future__ import annotations

import errno
from collections.abc import Collection
from typing import Protocol

Buffer = bytes | bytearray | memoryview


class Storage(Protocol):
    """One run folder. Every method may be called from several threads at once; every failure is an `OSError`."""

    @property
    def parallel(self) -> int:
        """How many calls at once pay off."""
        ...

    def put(self, path: str, data: Buffer, *, exclusive: bool = False) -> None:
        """A new object, whole or not there at all, in place of an older one; its bytes are durable on return.

        Its name is durable only after `sync` of its folder: many objects share the cost of one. An `exclusive` one
        is durable, name and all, on return. Raises: FileExistsError: there is one already, and it is `exclusive`.
        """
        ...

    def sync(self, folder: str) -> None:
        """Names put into `folder` are durable on return."""
        ...

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        """Raises: FileNotFoundError. OSError(EFBIG): it is larger than the limit. OSError(ELOOP): a symbolic link."""
        ...

    def read_into(self, path: str, target: memoryview) -> None:
        """The whole object. Raises: FileNotFoundError. OSError(EINVAL): it is not of exactly `target`'s size."""
        ...

    def names(self, folder: str) -> tuple[str, ...]:
        """What lies directly in `folder`, sorted; nothing if there is no such folder."""
        ...

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of each object directly in `folder`, by name, with one listing."""
        ...

    def delete(self, path: str) -> None:
        """Remove an object, or a folder with all that is in it; what is not there is fine."""
        ...

    def remove(self, folder: str, names: Collection[str]) -> None:
        """Remove objects that lie directly in `folder`, many at once; what is not there is fine.

        Unlike `delete`'s, its effect need not be durable: what a power loss brings back is removed another time.
        """
        ...

    def sweep(self, folder: str) -> None:
        """Remove what crashes have left of puts into `folder` that never ended. Puts under way are not touched."""
        ...


def path_parts(path: str) -> list[str]:
    """Raises: OSError(EINVAL): `path` might lead out of the run folder."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise OSError(errno.EINVAL, "is not a path in a run folder", path)
    return parts
