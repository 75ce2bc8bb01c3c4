"""Where a run folder lies: on a POSIX file system, or in anything that fsspec can reach."""

from __future__ import annotations

from pathlib import Path

from trainer_hooks.storage.local import LocalStorage
from trainer_hooks.storage.port import Buffer, Storage
from trainer_hooks.storage.remote import FsspecStorage

__all__ = ["Buffer", "FsspecStorage", "LocalStorage", "Storage", "open_storage"]


def open_storage(uri: str) -> Storage:
    """The folder at a path or an fsspec URI. It need not exist.

    Raises: ImportError, ValueError: no installed library reads such a URI.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return LocalStorage(Path(uri))
    return LocalStorage(Path(rest)) if scheme == "file" else FsspecStorage(uri)
