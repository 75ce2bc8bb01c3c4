"""On an object store: what may pass is tried again, with an end; nothing half done is seen, and one writer wins."""

from __future__ import annotations

import random
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.hooks.slow_s3 import Kind, Line, Trouble
from tests.hooks.test_storage import MIB, pages, read_back
from trainer_hooks.storage import FsspecStorage
from trainer_hooks.storage.remote import Retries

pytestmark = pytest.mark.system

SOON = Retries(first_wait_seconds=0.001)
OnS3 = tuple[str, Line]


def a_storage(uri: str) -> FsspecStorage:
    return FsspecStorage(uri, retries=SOON)


# --- troubles that pass ---


@pytest.mark.parametrize(
    "trouble",
    [
        Trouble(kind="answer", status=503, code="SlowDown"),
        Trouble(kind="answer", status=500, code="InternalError"),
        Trouble(kind="answer", status=502, code="BadGateway"),
        Trouble(kind="answer", status=400, code="RequestTimeout"),
        Trouble(kind="hang up before"),
        Trouble(kind="hang up within"),
        Trouble(kind="lose the answer"),
    ],
    ids=lambda trouble: f"{trouble.kind} {trouble.code}",
)
@pytest.mark.parametrize("is_exclusive", [False, True])
def test_an_upload_survives_three_troubles_in_a_row(is_exclusive: bool, trouble: Trouble, s3_line: OnS3) -> None:
    uri, line = s3_line
    trouble.times, trouble.method = 3, "PUT"
    line.troubles = [trouble]
    storage, content = a_storage(uri), pages(MIB)

    storage.put("c/a", content, exclusive=is_exclusive)

    assert trouble.times == 0
    assert read_back(storage, "c/a", MIB) == bytes(content)
    assert storage.sizes("c") == {"a": MIB}


@pytest.mark.parametrize("kind", ["answer", "hang up before", "lose the answer", "cut the answer"])
def test_whatever_else_is_asked_is_asked_again(kind: Kind, s3_line: OnS3) -> None:
    uri, line = s3_line
    storage = a_storage(uri)
    storage.put("c/a", b"whole" * 1000)

    for act, expected in (
        (lambda: storage.read("c/a", limit_bytes=5000), b"whole" * 1000),
        (lambda: read_back(storage, "c/a", 5000), b"whole" * 1000),
        (lambda: storage.names("c"), ("a",)),
        (lambda: storage.sizes("c"), {"a": 5000}),
        (lambda: storage.delete("c/a"), None),
        (lambda: storage.sweep("c"), None),
    ):
        line.troubles = [Trouble(kind=kind, times=2)]
        assert act() == expected
        assert line.troubles[0].times == 0
    assert storage.names("c") == ()


@pytest.mark.parametrize("kind", ["answer", "hang up before", "hang up within"])
def test_a_server_that_does_not_recover_is_an_error_after_four_tries(kind: Kind, s3_line: OnS3) -> None:
    uri, line = s3_line
    line.troubles = [Trouble(kind=kind, times=1000)]

    for is_exclusive in (False, True):
        line.seen.clear()
        with pytest.raises(OSError, match=r"trouble|Connection"):
            a_storage(uri).put("c/a", pages(MIB), exclusive=is_exclusive)
        assert len(line.seen) == (4 if kind == "answer" else 8)  # aiohttp repeats a PUT once whose connection broke
    line.troubles = []

    assert a_storage(uri).names("c") == ()


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "AccessDenied", PermissionError),
        (404, "NoSuchBucket", FileNotFoundError),
        (501, "NotImplemented", OSError),
    ],
)
def test_what_cannot_pass_is_asked_once(status: int, code: str, expected: type[OSError], s3_line: OnS3) -> None:
    uri, line = s3_line
    line.troubles = [Trouble(kind="answer", times=1000, status=status, code=code)]

    with pytest.raises(expected):
        a_storage(uri).put("c/a", b"x")
    with pytest.raises(expected):
        a_storage(uri).read("c/a", limit_bytes=1)

    assert len(line.seen) == 2


def test_a_missing_object_costs_one_request(s3_line: OnS3) -> None:
    uri, line = s3_line

    with pytest.raises(FileNotFoundError):
        a_storage(uri).read("control/stop", limit_bytes=100)

    assert len(line.seen) == 1


def test_waits_grow_and_end() -> None:
    retries = Retries(tries=4, first_wait_seconds=1, give_up_after_seconds=30)

    waits = [retries.wait_seconds(tried, spent_seconds=0) for tried in (1, 2, 3)]

    assert all(wait is not None and 4**n / 2 <= wait <= 4**n for n, wait in enumerate(waits))
    assert retries.wait_seconds(4, spent_seconds=0) is None
    assert retries.wait_seconds(1, spent_seconds=29.6) is None


def test_no_random_number_is_taken_from_the_training(s3_line: OnS3) -> None:
    uri, line = s3_line
    line.troubles = [Trouble(kind="answer", times=2, path="/a"), Trouble(kind="hang up before", times=2, path="/b")]
    before = random.getstate()

    a_storage(uri).put("a", b"x")
    a_storage(uri).put("b", b"x")

    assert random.getstate() == before


# --- one writer wins ---


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_lost_answer_does_not_make_our_own_object_another_writers(times: int, s3_line: OnS3) -> None:
    uri, line = s3_line
    line.troubles = [Trouble(kind="lose the answer", method="PUT", times=times)]

    a_storage(uri).put("m", b"ours", exclusive=True)

    with pytest.raises(FileExistsError):
        a_storage(uri).put("m", b"ours", exclusive=True)


def test_a_lost_answer_does_not_hide_that_another_writer_was_first(s3_line: OnS3) -> None:
    uri, line = s3_line
    a_storage(uri).put("m", b"theirs", exclusive=True)
    line.troubles = [Trouble(kind="lose the answer", method="PUT"), Trouble(kind="answer", method="PUT")]

    with pytest.raises(FileExistsError):
        a_storage(uri).put("m", b"ours", exclusive=True)

    assert a_storage(uri).read("m", limit_bytes=9) == b"theirs"


def test_a_conflict_is_asked_again_until_it_is_decided(s3_line: OnS3) -> None:
    uri, line = s3_line
    conflict = {"kind": "answer", "method": "PUT", "status": 409, "code": "ConditionalRequestConflict"}
    line.troubles = [Trouble(**conflict, times=2)]  # type: ignore[arg-type]  # of one type each
    a_storage(uri).put("m", b"ours", exclusive=True)
    line.troubles = [Trouble(**conflict)]  # type: ignore[arg-type]  # of one type each

    with pytest.raises(FileExistsError):
        a_storage(uri).put("m", b"later", exclusive=True)

    assert a_storage(uri).read("m", limit_bytes=9) == b"ours"


class Elsewhere:
    """A library that knows no exclusive write, or asks again by itself."""

    def __init__(self, *, holds: bytes | None = None, lost: bool = False) -> None:
        self.content = holds
        self._lost = lost

    def exists(self, where: str) -> bool:
        return self.content is not None

    def pipe_file(self, where: str, content: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        is_taken = self.content is not None
        if not (mode == "create" and is_taken):
            self.content = content
        if mode == "create" and (is_taken or self._lost):
            raise FileExistsError(where)

    def cat_file(self, where: str, start: int, end: int) -> bytes:
        assert self.content is not None
        return self.content[start:end]


def elsewhere(protocol: str, library: Elsewhere) -> FsspecStorage:
    storage = FsspecStorage(f"memory://{uuid.uuid4().hex}")
    storage._protocol, storage._files = protocol, library
    return storage


def test_where_no_write_is_conditional_it_is_looked_before() -> None:
    library = Elsewhere(holds=b"theirs")

    with pytest.raises(FileExistsError):
        elsewhere("sftp", library).put("m", b"ours", exclusive=True)

    assert library.content == b"theirs"


def test_a_library_that_asks_again_by_itself_may_have_met_our_own_object() -> None:
    elsewhere("gs", Elsewhere(lost=True)).put("m", b"ours", exclusive=True)

    with pytest.raises(FileExistsError):
        elsewhere("gs", Elsewhere(holds=b"theirs")).put("m", b"ours", exclusive=True)


# --- many at once, large, left over ---


def test_sixteen_calls_of_sixteen_threads_are_on_their_way_at_once(s3_line: OnS3) -> None:
    uri, line = s3_line
    storage = a_storage(uri)
    line.troubles = [Trouble(kind="meet", times=16, method="PUT"), Trouble(kind="meet", times=16, method="GET")]

    with ThreadPoolExecutor(storage.parallel) as threads:
        list(threads.map(lambda number: storage.put(f"c/{number}", b"%d" % number), range(16)))
        found = list(threads.map(lambda number: storage.read(f"c/{number}", limit_bytes=2), range(16)))

    assert found == [b"%d" % number for number in range(16)]
    assert not any(trouble.meeting.broken for trouble in line.troubles)


def test_an_object_of_any_size_is_one_request(s3_line: OnS3) -> None:
    uri, line = s3_line
    size = 101 * MIB  # from 100 MiB on, s3fs would send parts

    a_storage(uri).put("k/manifest", pages(size), exclusive=True)

    assert len(line.seen) == 1
    assert a_storage(uri).sizes("k") == {"manifest": size}


def test_uploads_in_parts_that_others_left_are_aborted_below_the_folder_only(s3: str) -> None:
    storage = a_storage(s3)
    bucket, prefix = s3.removeprefix("s3://").split("/")
    keys = [f"{prefix}/c/a", f"{prefix}/c/d/b", f"{prefix}/cc/a", f"{prefix}-other/c/a"]
    for key in keys:
        storage._files.call_s3("create_multipart_upload", Bucket=bucket, Key=key)

    storage.sweep("c")

    left = storage._files.call_s3("list_multipart_uploads", Bucket=bucket)["Uploads"]
    assert [upload["Key"] for upload in left if upload["Key"] in keys] == keys[2:]


class NoPrefixes:
    """A server that lists one upload a page, and those of the whole bucket, whatever is asked."""

    def __init__(self, *keys: str) -> None:
        self.keys = list(keys)
        self.aborted: list[str] = []

    def split_path(self, where: str) -> tuple[str, str, None]:
        bucket, _, key = where.partition("/")
        return bucket, key, None

    def call_s3(self, method: str, *, KeyMarker: str = "", Key: str = "", **asked: Any) -> dict[str, Any]:  # noqa: N803  # as S3 has them
        if method == "abort_multipart_upload":
            self.aborted.append(Key)
            return {}
        number = self.keys.index(KeyMarker) + 1 if KeyMarker else 0
        key = self.keys[number]
        page = {"Uploads": [{"Key": key, "UploadId": "u"}], "NextKeyMarker": key, "NextUploadIdMarker": "u"}
        return page | {"IsTruncated": number + 1 < len(self.keys)}


def test_a_sweep_of_many_pages_aborts_no_upload_of_another_folder() -> None:
    server = NoPrefixes("run/c/a", "other/c/a", "run/c/b", "run/cc/a")
    storage = FsspecStorage("memory://x")
    storage._protocol, storage._files, storage._root = "s3", server, "bucket/run"

    storage.sweep("c")

    assert server.aborted == ["run/c/a", "run/c/b"]


def test_who_may_not_list_uploads_does_not_sweep(s3_line: OnS3) -> None:
    uri, line = s3_line
    line.troubles = [Trouble(kind="answer", times=1000, status=403, code="AccessDenied")]

    a_storage(uri).sweep("c")

    assert len(line.seen) == 1


def test_errors_of_a_library_are_os_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = FsspecStorage(f"memory://{uuid.uuid4().hex}")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise KeyError("an error of some library")

    for call in ("pipe_file", "cat_file", "ls", "rm"):
        monkeypatch.setattr(storage._files, call, fail)

    for act in (
        lambda: storage.put("a", b"x"),
        lambda: storage.put("a", b"x", exclusive=True),
        lambda: storage.read("a", limit_bytes=1),
        lambda: storage.read_into("a", memoryview(bytearray(1))),
        lambda: storage.names("a"),
        lambda: storage.sizes("a"),
        lambda: storage.delete("a"),
    ):
        with pytest.raises(OSError, match="KeyError"):
            act()
