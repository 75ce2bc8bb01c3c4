"""Buckets, asked where they are and how much is in them: through s3fs, gcsfs and adlfs.

A thread of its own asks, so that no library and no dead line can make anybody wait for longer than the time that was
granted. Answers are kept for a day, one file each.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from launcher.adapters.system_clock import SystemClock
from launcher.core.gravity import Found, store_of
from launcher.core.prices.traffic import home_region, homes
from launcher.core.spec import RunSpec
from launcher.core.unknown import Unknown
from launcher.errors import InputError, Problem
from launcher.ports import DataProbe, Progress

KEPT = timedelta(days=1)
_FOUND = TypeAdapter(Found)
_DECLARE = "or declare it: region: aws/us-east-2, size: 500 GB"
# Whose S3 a server is, by the end of its name; any other is taken at its word as AWS, and the basis names it.
_SERVERS = {
    "r2.cloudflarestorage.com": "cloudflare-r2",
    "nebius.cloud": "nebius",
    "cwobject.com": "coreweave",
}
_OLD_REGIONS = {None: "us-east-1", "": "us-east-1", "EU": "eu-west-1"}  # GetBucketLocation, Amazon S3 API reference


class FsspecProbe:
    """`folder` keeps the answers."""

    def __init__(self, folder: Path, *, clock: SystemClock) -> None:
        self._folder = folder
        self._clock = clock

    def probe(self, uri: str, *, seconds: float, progress: Progress) -> Found:
        """Raises: InputError: there is no such bucket, or it cannot be asked; what to declare instead."""
        kept, granted = self._kept(uri)
        if kept is not None and (kept.is_complete or (granted or 0.0) >= seconds):
            return kept
        found = look_into(uri, lists=True, seconds=seconds, clock=self._clock, progress=progress)
        self._keep(uri, found, seconds=seconds)
        return found

    def region(self, uri: str, *, seconds: float) -> Found:
        """Raises: InputError: as `probe`."""
        kept, _ = self._kept(uri)
        if kept is not None:
            return kept
        found = look_into(uri, lists=False, seconds=seconds, clock=self._clock)
        self._keep(uri, found, seconds=0.0)
        return found

    def _path(self, uri: str) -> Path:
        """Behind another endpoint, the same address is another bucket."""
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        return self._folder / f"{sha256(f'{uri} {endpoint}'.encode()).hexdigest()[:32]}.json"

    def _kept(self, uri: str) -> tuple[Found | None, float | None]:
        """An answer that is not too old, and the time that its listing was granted. A broken file is no answer."""
        try:
            content = json.loads(self._path(uri).read_text(encoding="utf-8"))
            found, granted = _FOUND.validate_python(content["found"]), float(content["seconds"])
        except (OSError, ValueError, TypeError, KeyError, ValidationError):
            return None, None
        is_fresh = timedelta(0) <= self._clock.now() - found.at < KEPT
        return (found, granted) if is_fresh else (None, None)

    def _keep(self, uri: str, found: Found, *, seconds: float) -> None:
        content = {"uri": uri, "seconds": seconds, "found": _FOUND.dump_python(found, mode="json")}
        path = self._path(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        fresh.replace(path)


def look_into(
    uri: str, *, lists: bool, seconds: float, clock: SystemClock, progress: Progress = lambda *_: None
) -> Found:
    """What it says now of its region, and if it `lists`, of its objects. Raises: InputError: as `FsspecProbe.probe`."""
    question = _Question(uri, lists=lists)
    question.wait(seconds, progress)
    if question.error is not None:
        raise _input_error(uri, question.error) from question.error
    if not question.is_answered and not question.num_objects:
        message = f"{uri} did not answer within {seconds:g} s"
        raise InputError([Problem("L116", message, fix=f"check the line and the endpoint, {_DECLARE}")])
    if lists and question.is_answered and not question.num_objects:
        raise InputError([Problem("L114", f"nothing lies below {uri}", fix=f"check the address, {_DECLARE}")])
    return Found(
        region=question.region,
        gb=question.bytes / 1e9,
        is_complete=lists and question.is_answered,
        num_objects=question.num_objects,
        basis=question.basis,
        at=clock.now(),
    )


def ask_buckets(spec: RunSpec, probe: DataProbe, *, seconds: float, progress: Progress) -> RunSpec:
    """`spec` with what its buckets say of themselves where the user says nothing.

    Raises: InputError: one of them cannot be asked, or does not say where it is.
    """
    data = spec.data
    if data is not None and data.found is None and store_of(data.uri) is not None:
        if data.size is None:
            found = probe.probe(data.uri, seconds=seconds, progress=progress)
            data = data.model_copy(update={"found": found})
        elif data.region is None:
            data = data.model_copy(update={"found": probe.region(data.uri, seconds=seconds)})
        if data.source is None:
            raise _nowhere(data.uri, data.found, "data.region")
    regions = dict(spec.checkpoint.regions)
    for home in homes(spec):
        if isinstance(home_region(spec, home), Unknown):
            said = probe.region(home, seconds=seconds)
            if said.region is None:
                raise _nowhere(home, said, "checkpoint.region")
            regions[home] = said.region
    checkpoint = spec.checkpoint.model_copy(update={"regions": regions})
    return spec.model_copy(update={"data": data, "checkpoint": checkpoint})


def _nowhere(uri: str, found: Found | None, key: str) -> InputError:
    message = f"where {uri} lies is not known: {found.basis if found else ''}"
    return InputError([Problem("L117", message, fix=f"write {key}: aws/us-east-2, say")])


class _Question:
    """What is known so far; a thread adds to it."""

    def __init__(self, uri: str, *, lists: bool) -> None:
        self.region: str | None = None
        self.basis = "its library does not say where it is"
        self.bytes = 0
        self.num_objects = 0
        self.is_answered = False
        self.error: Exception | None = None
        self._uri = uri
        self._lists = lists
        self._is_over = False
        self._changed = threading.Condition()

    def wait(self, seconds: float, progress: Progress) -> None:
        """Until it is answered or `seconds` are over."""
        until = time.monotonic() + seconds
        threading.Thread(target=self._ask, name="spotlaunch-probe", daemon=True).start()
        with self._changed:
            while not self.is_answered and self.error is None and (left := until - time.monotonic()) > 0:
                self._changed.wait(min(left, 0.2))
                if self.num_objects:
                    progress(self._uri, self.bytes / 1e9, self.num_objects)
            self._is_over = True

    def _ask(self) -> None:
        try:
            bucket = _bucket(self._uri)
            region, basis = bucket.region()
            with self._changed:
                self.region, self.basis = region, basis
            for sizes in bucket.pages() if self._lists else ():
                with self._changed:
                    if self._is_over:
                        return
                    self.bytes += sum(sizes)
                    self.num_objects += len(sizes)
                    self._changed.notify_all()
            with self._changed:
                self.is_answered = not self._is_over
        except Exception as error:  # the top of a thread, and each library has errors of its own
            with self._changed:
                self.error = None if self._is_over else error
        finally:
            with self._changed:
                self._changed.notify_all()


class _Bucket:
    """Any fsspec file system: it is listed folder by folder, and does not say where it is."""

    def __init__(self, files: Any, path: str) -> None:
        self.files = files
        self.path = path.rstrip("/")

    def region(self) -> tuple[str | None, str]:
        return None, f"{type(self.files).__name__} does not say where it is"

    def pages(self) -> Iterator[list[int]]:
        """Sizes of the objects, so many at a time."""
        folders = [self.path]
        while folders:
            entries = self.files.ls(folders.pop(), detail=True)
            folders += [entry["name"] for entry in entries if entry["type"] == "directory"]
            yield [int(entry["size"] or 0) for entry in entries if entry["type"] == "file"]

    @property
    def _parts(self) -> tuple[str, str]:
        bucket, _, key = self.path.partition("/")
        return bucket, key

    def _is_below(self, key: str) -> bool:
        """A prefix `a/b` also lists what lies in `a/bc`."""
        prefix = self._parts[1]
        return not prefix or key == prefix or key.startswith(f"{prefix}/")


class _S3Bucket(_Bucket):
    def region(self) -> tuple[str | None, str]:
        bucket, _ = self._parts
        try:
            answer = self.files.call_s3("get_bucket_location", Bucket=bucket).get("LocationConstraint")
            asked = "GetBucketLocation"
        except PermissionError:
            answer, asked = self._region_of_head(bucket), "HeadBucket"
            if answer is None:
                return None, "neither GetBucketLocation nor HeadBucket is allowed"
        host = urlsplit(self.files.s3.meta.endpoint_url).hostname or ""
        provider = next((name for end, name in _SERVERS.items() if host.endswith(end)), "aws")
        place = _OLD_REGIONS.get(answer, answer) if provider == "aws" else answer or "auto"
        is_named = provider != "aws" or host.endswith(("amazonaws.com", "amazonaws.com.cn"))
        return f"{provider}/{place}", asked if is_named else f"{asked} at {host}"

    def pages(self) -> Iterator[list[int]]:
        bucket, prefix = self._parts
        after: dict[str, str] = {}
        while True:
            page = self.files.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **after)
            yield [int(entry["Size"]) for entry in page.get("Contents", []) if self._is_below(entry["Key"])]
            if not page.get("IsTruncated"):
                return
            after = {"ContinuationToken": page["NextContinuationToken"]}

    def _region_of_head(self, bucket: str) -> str | None:
        """S3 names the region even to those who may not enter."""
        try:
            answer = self.files.call_s3("head_bucket", Bucket=bucket)
        except PermissionError as error:
            answer = getattr(error.__cause__, "response", {})
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        found: str | None = headers.get("x-amz-bucket-region")
        return found


class _GcsBucket(_Bucket):
    def region(self) -> tuple[str | None, str]:
        """A bucket in several regions names their continent: `gcp/us`."""
        try:
            answer = self.files.call("GET", "b/{}", self._parts[0], json_out=True)
        except PermissionError:
            return None, "its metadata may not be read"
        return f"gcp/{str(answer['location']).lower()}", "the bucket's metadata"

    def pages(self) -> Iterator[list[int]]:
        bucket, prefix = self._parts
        after: dict[str, str] = {}
        fields = "nextPageToken,items(name,size)"
        while True:
            page = self.files.call("GET", "b/{}/o", bucket, prefix=prefix, fields=fields, json_out=True, **after)
            yield [int(entry["size"]) for entry in page.get("items", []) if self._is_below(entry["name"])]
            if not page.get("nextPageToken"):
                return
            after = {"pageToken": page["nextPageToken"]}


_BUCKETS: dict[str, Callable[[Any, str], _Bucket]] = {"aws": _S3Bucket, "gcp": _GcsBucket, "azure": _Bucket}


def _bucket(uri: str) -> _Bucket:
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]  # it ships no types

    files, path = url_to_fs(uri, use_listings_cache=False, skip_instance_cache=True)
    return _BUCKETS.get(store_of(uri) or "", _Bucket)(files, str(path))


def _input_error(uri: str, error: Exception) -> InputError:
    """By class and by name: a library that is not used is not imported."""
    names = {base.__name__ for base in type(error).__mro__}
    if isinstance(error, ImportError):
        fix = f"install the extra for it: spotlaunch[s3], [gcs] or [azure], {_DECLARE}"
        return InputError([Problem("L110", f"no library reads {uri}: {error}", fix=fix)])
    if isinstance(error, FileNotFoundError):
        return InputError([Problem("L114", f"{uri} is not there", fix=f"check the address, {_DECLARE}")])
    # adlfs says ValueError where it has no account
    if isinstance(error, PermissionError | ValueError) or names & {"NoCredentialsError", "CredentialRetrievalError"}:
        fix = f"check the credentials of this machine, {_DECLARE}"
        return InputError([Problem("L115", f"{uri} may not be read from here: {error}", fix=fix)])
    why = str(error) or type(error).__name__
    return InputError([Problem("L116", f"{uri} did not answer: {why}", fix=f"check the line, {_DECLARE}")])
