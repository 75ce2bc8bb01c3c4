"""Folders of runs and data, tried with the very calls that trainer and launcher will make."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from launcher.adapters.fsspec_probe import look_into
from launcher.adapters.system_clock import SystemClock
from launcher.core.doctor.checkup import Check, wants_credentials
from launcher.core.gravity import Found, store_of
from launcher.errors import InputError
from trainer_hooks.storage import Storage, open_storage

_LISTING_SECONDS = 5.0
_PROBE = b"spotlaunch doctor"

# What a user has to be allowed, by step: IAM actions of S3 and of Cloud Storage, and the one role that Azure needs.
_ALLOW = {
    "aws": {
        "list": "s3:ListBucket on the bucket",
        "create": "s3:PutObject on its objects",
        "read": "s3:GetObject on its objects",
        "delete": "s3:DeleteObject on its objects",
    },
    "gcp": {
        step: f"storage.objects.{step if step != 'read' else 'get'}" for step in ("list", "create", "read", "delete")
    },
    "azure": dict.fromkeys(("list", "create", "read", "delete"), "the role Storage Blob Data Contributor"),
}
_SIGNERS = ("NoCredentials", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "DefaultCredentials")


def writable_folder(uri: str) -> list[Check]:
    """Of a folder of runs: an object is listed, created, read, not overwritten, and deleted; nothing stays behind."""
    uri = uri.removeprefix("file://")
    uri = uri if "://" in uri else str(Path(uri).expanduser())
    name = f"bucket {uri}" if "://" in uri else f"folder {uri}"
    if "://" not in uri and not Path(uri).exists():
        return [_no_folder_yet(name, Path(uri))]
    try:
        storage = open_storage(uri)
    except (ImportError, ValueError) as error:
        fix = "install the extra for it: spotlaunch[s3], [gcs] or [azure]"
        return [Check(name=name, state="failed", found=f"no library reads it: {error}", fix=fix)]
    place = f".doctor-{uuid.uuid4().hex[:12]}"
    try:
        for step in _steps(storage, place):  # noqa: B007  # the last one is wanted behind the loop
            pass
    except _Overwritten:
        fix = "two attempts could damage each other's checkpoints: use a store that knows If-None-Match"
        return [Check(name=name, state="failed", found="an object that exists can be overwritten", fix=fix)]
    except OSError as error:
        return [_refused(name, uri, step=step, error=error)]
    finally:
        with suppress(OSError):
            storage.delete(place)
    done = "objects can be listed, created once, read and deleted"
    return [Check(name=name, state="ok", found=f"{done}{_region(uri)}")]


def readable_folder(uri: str) -> list[Check]:
    """Of training data: it is there and can be listed, as far as the time allows."""
    try:
        found = look_into(uri, lists=True, seconds=_LISTING_SECONDS, clock=SystemClock())
    except InputError as error:
        (problem,) = error.problems
        needs = _ALLOW.get(store_of(uri) or "", {})
        fix = f"allow {needs['list']} and {needs['read']}" if problem.code == "L115" and needs else problem.fix
        is_credentials = problem.code == "L115"
        return [
            Check(name=f"data {uri}", state="failed", found=problem.message, fix=fix, is_credentials=is_credentials)
        ]
    size = f"{'' if found.is_complete else 'at least '}{found.num_objects:,} objects, {found.gb:,.1f} GB"
    return [Check(name=f"data {uri}", state="ok", found=size + _where(found))]


class _Overwritten(Exception):
    """A second writer of the same name was not refused."""


def _steps(storage: Storage, place: str) -> Iterator[str]:
    """Each name is yielded before its step is taken: the last one is the one that failed."""
    yield "list"
    storage.names(place)
    yield "create"
    storage.put(f"{place}/probe", _PROBE, exclusive=True)
    yield "read"
    if storage.read(f"{place}/probe", limit_bytes=1000) != _PROBE:
        raise OSError(errno.EIO, "what was read is not what was written")
    yield "create"
    with suppress(FileExistsError):
        storage.put(f"{place}/probe", b"another writer", exclusive=True)
        raise _Overwritten
    yield "delete"
    storage.delete(place)
    if storage.names(place):
        raise OSError(errno.EPERM, "the object is still there after its removal")


def _refused(name: str, uri: str, *, step: str, error: OSError) -> Check:
    words = " ".join(str(error).split())[:200]
    if any(signer in mark for mark in (words, *_marks(error)) for signer in _SIGNERS):
        fix = "log in to the store on this machine, e.g. `aws configure`, `gcloud auth application-default login`"
        return Check(name=name, state="failed", found=f"no valid credentials: {words}", fix=fix, is_credentials=True)
    if isinstance(error, FileNotFoundError):
        return Check(name=name, state="failed", found=f"is not there: {words}", fix="create it, or correct the address")
    if isinstance(error, PermissionError):
        need = _ALLOW.get(store_of(uri) or "", {}).get(step, f"this user to {step} files there")
        left = f"; {uri}/.doctor-… was left behind" if step == "delete" else ""
        return Check(
            name=name, state="failed", found=f"may not {step}: {words}", fix=f"allow {need}{left}", is_credentials=True
        )
    fix = "check the line, the endpoint and the address"
    is_credentials = wants_credentials(words)
    return Check(name=name, state="failed", found=f"cannot {step}: {words}", fix=fix, is_credentials=is_credentials)


def _marks(error: BaseException | None) -> Iterator[str]:
    """Names and codes of the libraries' own errors behind it."""
    while error is not None:
        yield type(error).__name__
        response = getattr(error, "response", None)
        yield str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
        error = error.__cause__


def _no_folder_yet(name: str, folder: Path) -> Check:
    above = next(path for path in folder.absolute().parents if path.exists())
    if os.access(above, os.W_OK | os.X_OK):
        return Check(name=name, state="ok", found="is not there yet; the first run makes it")
    fix = f"make it, or let this user write to {above}"
    return Check(name=name, state="failed", found=f"is not there, and cannot be made in {above}", fix=fix)


def _region(uri: str) -> str:
    """Where the bucket says that it is, for the line's end."""
    if store_of(uri) is None:
        return ""
    with suppress(InputError):
        return _where(look_into(uri, lists=False, seconds=_LISTING_SECONDS, clock=SystemClock()))
    return ", region unknown"


def _where(found: Found) -> str:
    return f", in {found.region} ({found.basis})" if found.region else f", region unknown: {found.basis}"
