"""Folders of runs and data on a real S3 server, through a line that refuses one thing after the other."""

from __future__ import annotations

from pathlib import Path

import fsspec  # type: ignore[import-untyped]  # it ships no types
import pytest

from launcher.adapters.checks.bucket import readable_folder, writable_folder
from launcher.core.doctor.checkup import Check
from tests.hooks.slow_s3 import Line, Trouble

pytestmark = pytest.mark.enable_socket  # on loopback


def one(checks: list[Check]) -> Check:
    (check,) = checks
    return check


def everything_in(uri: str) -> list[str]:
    files, path = fsspec.core.url_to_fs(uri, use_listings_cache=False, skip_instance_cache=True)
    found: list[str] = files.find(path)
    return found


def refusing(line: Line, method: str, path: str = "", *, code: str = "AccessDenied") -> None:
    line.troubles.append(Trouble(kind="answer", times=99, method=method, path=path, status=403, code=code))


@pytest.mark.system
def test_a_bucket_that_allows_everything_is_said_with_its_region_and_left_as_it_was(s3: str) -> None:
    check = one(writable_folder(s3))

    assert check.state == "ok"
    assert "in aws/us-east-1" in check.found
    assert everything_in(s3) == []


@pytest.mark.system
@pytest.mark.parametrize(
    ("method", "path", "permission"),
    [
        ("GET", "list-type", "s3:ListBucket"),
        ("PUT", "", "s3:PutObject"),
        ("GET", "probe", "s3:GetObject"),
        ("POST", "?delete", "s3:DeleteObject"),
    ],
)
def test_the_permission_that_is_missing_is_named(
    s3_line: tuple[str, Line], method: str, path: str, permission: str
) -> None:
    uri, line = s3_line
    refusing(line, method, path)

    check = one(writable_folder(uri))

    assert (check.state, check.is_credentials) == ("failed", True)
    assert permission in check.fix, (check, line.seen)


@pytest.mark.system
def test_keys_that_the_store_does_not_know_are_a_matter_of_logging_in(s3_line: tuple[str, Line]) -> None:
    uri, line = s3_line
    refusing(line, "GET", code="InvalidAccessKeyId")
    refusing(line, "PUT", code="InvalidAccessKeyId")

    check = one(writable_folder(uri))

    assert (check.state, check.is_credentials) == ("failed", True)
    assert "log in" in check.fix


@pytest.mark.system
def test_a_machine_without_any_keys_is_told_to_log_in(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    check = one(writable_folder(s3))

    assert (check.state, check.is_credentials) == ("failed", True)
    assert "log in" in check.fix


@pytest.mark.system
def test_a_bucket_that_is_not_there_is_named(s3: str) -> None:
    check = one(writable_folder("s3://nobodys/runs"))

    assert (check.state, check.is_credentials) == ("failed", False)
    assert "create it" in check.fix


@pytest.mark.system
def test_a_store_that_lets_two_write_the_same_object_is_refused(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3fs import S3FileSystem  # type: ignore[import-untyped]  # it ships no types

    create = S3FileSystem._pipe_file

    async def unconditionally(self: S3FileSystem, path: str, data: bytes, **options: object) -> object:
        return await create(self, path, data, **(options | {"mode": "overwrite"}))

    monkeypatch.setattr(S3FileSystem, "_pipe_file", unconditionally)

    check = one(writable_folder(s3))

    assert (check.state, check.found) == ("failed", "an object that exists can be overwritten")
    assert everything_in(s3) == []


@pytest.mark.system
def test_data_is_only_listed(s3_line: tuple[str, Line]) -> None:
    uri, line = s3_line
    files, path = fsspec.core.url_to_fs(uri)
    files.pipe({f"{path}/a": bytes(1000), f"{path}/b/c": bytes(1000)})
    line.seen.clear()
    refusing(line, "PUT")

    check = one(readable_folder(uri))

    assert (check.state, check.found.startswith("2 objects, 0.0 GB, in aws/us-east-1")) == ("ok", True)
    assert {request.split()[0] for request in line.seen} == {"GET"}


@pytest.mark.system
def test_data_that_may_not_be_listed_names_the_permission(s3_line: tuple[str, Line]) -> None:
    uri, line = s3_line
    refusing(line, "GET")
    refusing(line, "HEAD")

    check = one(readable_folder(uri))

    assert (check.state, check.is_credentials) == ("failed", True)
    assert "s3:ListBucket" in check.fix


def test_a_folder_of_this_machine_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    assert one(writable_folder(str(tmp_path))).state == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_below_home_is_tried_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "runs").mkdir()

    check = one(writable_folder("~/runs"))

    assert (check.name, check.state) == (f"folder {tmp_path}/runs", "ok")
    assert check.found.startswith("objects can be listed")


def test_a_folder_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    assert one(writable_folder(str(tmp_path / "runs"))).state == "ok"
    assert one(writable_folder(f"file://{tmp_path}/runs")).state == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_found_out() -> None:
    check = one(writable_folder("/proc/sys"))

    assert check.state == "failed"
    assert check.fix


def test_an_address_that_no_library_reads_names_the_extra() -> None:
    check = one(writable_folder("warez://bucket/runs"))

    assert check.state == "failed"
    assert "spotlaunch[s3]" in check.fix
