"""A run folder in an object store, through fsspec.

Every object is one single PUT: the engine's are at most 16 MiB (a manifest may be larger), far below any provider's
limit for one, and several at once fill a connection as well as the parts of one would. So nothing can be half done:
an object is there or not, no upload has to be completed or aborted, and one condition (`If-None-Match: *` on S3 and
Azure, `ifGenerationMatch=0` on GCS) makes a PUT exclusive.
"""

from __future__ import annotations

import errno
import random
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from trainer_hooks.storage.port import Buffer, path_parts

_S3 = ("s3", "s3a")
_CONDITIONAL = (*_S3, "gs", "gcs", "abfs", "abfss", "az", "memory")
"""Where `pipe_file(…, mode="create")` is exclusive: s3fs, gcsfs, adlfs of 2024.12 or newer (their sources, 2026-11)."""
_TOKEN = "put"  # noqa: S105  # the name of a field of an object's metadata
_LIBRARY_PIECE_BYTES = 50 << 20  # s3fs and gcsfs cut what is larger, unless told otherwise

_dice = random.Random()  # noqa: S311  # never the global generator: its draws belong to the training


@dataclass(frozen=True, slots=True)
class Retries:
    """Of what may pass. No try begins when `give_up_after_seconds` are over; each has the library's own time limit."""

    tries: int = 4
    first_wait_seconds: float = 0.5  # then 2, then 8; each shortened by up to a half, so that ranks spread
    give_up_after_seconds: float = 30.0

    def wait_seconds(self, tried: int, *, spent_seconds: float) -> float | None:
        """How long to wait after `tried` failures; `None`: no longer."""
        wait = self.first_wait_seconds * 4 ** (tried - 1) * _dice.uniform(0.5, 1.0)
        return wait if tried < self.tries and spent_seconds + wait < self.give_up_after_seconds else None


RETRIES = Retries()


class FsspecStorage:
    """A folder in an object store. Its calls of many threads share fsspec's one event loop, and do overlap."""

    parallel = 16  # hides the wait for answers; what it costs to sign and send is one thread's, the event loop's

    def __init__(self, uri: str, *, retries: Retries = RETRIES) -> None:
        from fsspec.core import split_protocol, url_to_fs  # type: ignore[import-untyped]  # it ships no types

        with _without_draws():
            # A cached listing would hide what another process has written since; and an instance shared with the
            # training's own code must not get our settings.
            self._files, path = url_to_fs(uri, use_listings_cache=False, skip_instance_cache=True)
        self._root = str(path).rstrip("/")
        self._protocol = split_protocol(uri)[0]
        self._retries = retries
        if self._protocol in _S3:
            _leave_retrying_to_us(self._files, connections=2 * self.parallel)

    def put(self, path: str, data: Buffer, *, exclusive: bool = False) -> None:
        where = self._where(path)
        content = bytes(data)  # botocore takes no memoryview; 16 MiB are copied in 4 ms
        if exclusive:
            self._create(path, content)
        else:
            self._retrying(path, self._files.pipe_file, where, content, **self._in_one_piece(content))

    def sync(self, folder: str) -> None:
        path_parts(folder)  # a name is as durable as its object

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        content = self._fetch(path, limit_bytes + 1)
        if len(content) > limit_bytes:
            raise OSError(errno.EFBIG, f"has more bytes than the {limit_bytes:,} expected", path)
        return content

    def read_into(self, path: str, target: memoryview) -> None:
        whole = target.cast("B")
        content = self._fetch(path, len(whole) + 1)
        if len(content) != len(whole):
            found = f"{len(content):,}" if len(content) < len(whole) else "more"
            raise OSError(errno.EINVAL, f"has {found} bytes, {len(whole):,} are expected", path)
        whole[:] = content

    def names(self, folder: str) -> tuple[str, ...]:
        return tuple(sorted(name for name, _ in self._entries(folder)))

    def sizes(self, folder: str) -> dict[str, int]:
        return {name: int(entry["size"]) for name, entry in self._entries(folder) if entry["type"] == "file"}

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._retrying(path, self._files.rm, self._where(path), recursive=True)

    def remove(self, folder: str, names: Collection[str]) -> None:
        """S3 takes a thousand names in one request, and bills none of them."""
        if not names:
            return
        try:
            self._retrying(folder, self._files.rm, [self._where(f"{folder}/{name}") for name in names])
        except FileNotFoundError:  # not every library lets it pass
            for name in names:
                self.delete(f"{folder}/{name}")

    def sweep(self, folder: str) -> None:
        """Ours leave nothing. On S3, uploads in parts that other tools began below `folder` cost money: abort them."""
        if self._protocol not in _S3:
            return
        bucket, prefix, _ = self._files.split_path(f"{self._where(folder)}/")
        with suppress(PermissionError, NotImplementedError):  # who may write need not be allowed to list
            for upload in self._uploads(folder, bucket, prefix):
                abort = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                with suppress(FileNotFoundError):
                    self._retrying(folder, self._files.call_s3, "abort_multipart_upload", **abort)

    def _where(self, path: str) -> str:
        return "/".join([self._root, *path_parts(path)])

    def _create(self, path: str, content: bytes) -> None:
        where = self._where(path)
        token = uuid.uuid4().hex
        options: dict[str, Any] = {"mode": "create"} if self._protocol in _CONDITIONAL else {}
        options |= {"Metadata": {_TOKEN: token}} if self._protocol in _S3 else {}

        def attempt() -> None:
            # Without a condition, two writers within one round trip may both succeed.
            if "mode" not in options and self._files.exists(where):
                raise FileExistsError(errno.EEXIST, "exists already", path)
            try:
                self._files.pipe_file(where, content, **options, **self._in_one_piece(content))
            except Exception as error:
                if isinstance(error, FileExistsError) or _status(error) == 412:
                    raise FileExistsError(errno.EEXIST, "exists already", path) from error
                raise

        try:
            self._retrying(path, attempt)
        except FileExistsError:
            if not self._is_ours(path, content, token):
                raise

    def _is_ours(self, path: str, content: bytes, token: str) -> bool:
        """Whether what "exists already" is our own object.

        A PUT whose answer was lost is sent again, by us or by a library that does not say so (aiohttp repeats one on
        a broken connection), and is then refused because of itself. On S3 a token tells; elsewhere the content does.
        """
        with suppress(FileNotFoundError):  # theirs, and deleted since
            if self._protocol in _S3:
                found: dict[str, str] = self._retrying(path, self._files.metadata, self._where(path))
                return found.get(_TOKEN) == token
            return self._protocol != "memory" and self._fetch(path, len(content) + 1) == content
        return False

    def _in_one_piece(self, content: bytes) -> dict[str, int]:
        cuts = self._protocol in (*_S3, "gs", "gcs") and len(content) >= _LIBRARY_PIECE_BYTES
        return {"chunksize": len(content) + 1} if cuts else {}

    def _fetch(self, path: str, most_bytes: int) -> bytes:
        """The first bytes of an object. A range needs no question for the size before it."""
        where = self._where(path)

        def attempt() -> bytes:
            try:
                return bytes(self._files.cat_file(where, start=0, end=most_bytes))
            except Exception as error:
                if _status(error) == 416:  # an empty object has no first byte
                    return b""
                raise

        content: bytes = self._retrying(path, attempt)
        return content

    def _entries(self, folder: str) -> list[tuple[str, dict[str, Any]]]:
        where = self._where(folder)

        def attempt() -> list[dict[str, Any]]:
            self._files.invalidate_cache(where)
            return list(self._files.ls(where, detail=True))

        try:
            found: list[dict[str, Any]] = self._retrying(folder, attempt)
        except (FileNotFoundError, NotADirectoryError):
            return []
        # Asked for an object, or a folder's own marker, a listing answers with that.
        inside = [(str(entry["name"]).rstrip("/"), entry) for entry in found]
        return [(name.rpartition("/")[2], entry) for name, entry in inside if name != where]

    def _uploads(self, folder: str, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
        after: dict[str, str] = {}
        while True:
            ask = {"Bucket": bucket, "Prefix": prefix, **after}
            page = self._retrying(folder, self._files.call_s3, "list_multipart_uploads", **ask)
            # not every server that speaks S3 minds the prefix
            yield from (upload for upload in page.get("Uploads", []) if upload["Key"].startswith(prefix))
            if not page.get("IsTruncated"):
                return
            after = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def _retrying(self, path: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        started, tried = time.monotonic(), 0
        while True:
            tried += 1
            try:
                with _translated(path):
                    return call(*args, **kwargs)
            except OSError as error:
                wait = self._retries.wait_seconds(tried, spent_seconds=time.monotonic() - started)
                if wait is None or not _may_pass(error):
                    raise
            time.sleep(wait)


@contextmanager
def _without_draws() -> Iterator[None]:
    """Give the training its global generator back as it was: what s3fs imports draws from it (rich does, 2026-11)."""
    before = random.getstate()
    try:
        yield
    finally:
        random.setstate(before)


def _leave_retrying_to_us(files: Any, *, connections: int) -> None:
    """s3fs and botocore would each repeat a request 5 times, for half an hour together with our own tries.

    botocore's waits also draw from the global random generator, which belongs to the training.
    """
    files.retries = 1
    files.config_kwargs = {
        "max_pool_connections": connections,  # botocore's 10 would queue the others
        **(files.config_kwargs or {}),
        "retries": {"total_max_attempts": 1},
    }


@contextmanager
def _translated(path: str) -> Iterator[None]:
    """Libraries of clouds raise errors of their own; the hooks know a failed storage as `OSError`."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", path) from error


_PASSING_CODES = ("ConditionalRequestConflict", "OperationAborted", "RequestTimeout", "SlowDown")
"""Of S3 answers whose status alone does not say that another try may succeed."""

_PASSING_CLASSES = frozenset(
    {
        *("ConnectionError", "TimeoutError"),  # built in, of requests, and of botocore
        *("HTTPClientError", "IncompleteRead", "IncompleteReadError"),  # botocore
        *("ClientConnectionError", "ClientPayloadError"),  # aiohttp
        *("ServiceRequestError", "ServiceResponseError"),  # azure.core
    }
)
"""By name, with all that derive from them: a library that is not used is not imported."""


def _may_pass(error: OSError) -> bool:
    """Whether the same request may succeed a little later."""
    if any(base.__name__ in _PASSING_CLASSES for one in _causes(error) for base in type(one).__mro__):
        return True
    status = _status(error) or 0
    return status in (408, 429) or (status >= 500 and status != 501) or _code(error) in _PASSING_CODES


def _status(error: BaseException) -> int | None:
    """The HTTP status that a library keeps in its error, or in the cause of it."""
    for one in _causes(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            found = getattr(one, "status_code", getattr(one, "status", getattr(one, "code", None)))
        if isinstance(found, int):
            return found
    return None


def _code(error: BaseException) -> str | None:
    responses = (getattr(one, "response", None) for one in _causes(error))
    return next((found.get("Error", {}).get("Code") for found in responses if isinstance(found, dict)), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
