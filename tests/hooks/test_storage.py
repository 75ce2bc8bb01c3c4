"""Every storage keeps the promises that checkpoints are built on; so does the fake."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from tests.hooks.storages import Dying, Full, MemoryStorage, Throttled
from tests.sim import SimClock
from trainer_hooks.storage import Buffer, FsspecStorage, LocalStorage, Storage, open_storage

MIB = 1 << 20
SHARED_MEMORY = Path("/dev/shm")


def on_disk(request: pytest.FixtureRequest) -> Iterator[Storage]:
    yield LocalStorage(request.getfixturevalue("tmp_path") / "run")


def in_shared_memory(request: pytest.FixtureRequest) -> Iterator[Storage]:
    if not os.access(SHARED_MEMORY, os.W_OK):
        pytest.skip("no tmpfs here")
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as folder:
        yield LocalStorage(Path(folder) / "run")


def in_fsspecs_memory(request: pytest.FixtureRequest) -> Iterator[Storage]:
    yield FsspecStorage(f"memory://{uuid.uuid4().hex}/run")


def on_s3(request: pytest.FixtureRequest) -> Iterator[Storage]:
    yield FsspecStorage(request.getfixturevalue("s3"))


def faked(request: pytest.FixtureRequest) -> Iterator[Storage]:
    yield MemoryStorage()


def faked_for_deaths(request: pytest.FixtureRequest) -> Iterator[Storage]:
    yield Dying(MemoryStorage())


def faked_for_a_full_disk(request: pytest.FixtureRequest) -> Iterator[Storage]:
    yield Full(MemoryStorage(), is_full=False)


KINDS: dict[str, Callable[[pytest.FixtureRequest], Iterator[Storage]]] = {
    "disk": on_disk,
    "tmpfs": in_shared_memory,
    "memory": in_fsspecs_memory,
    "s3": on_s3,
    "fake": faked,
    "dying": faked_for_deaths,
    "full": faked_for_a_full_disk,
}


@pytest.fixture(params=[pytest.param(kind, marks=[pytest.mark.system] * (kind == "s3")) for kind in KINDS])
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    yield from KINDS[request.param](request)


def pages(size: int, *, byte: bytes = b"x") -> memoryview:
    """As the engine's buffers: page-aligned, writable."""
    memory = mmap.mmap(-1, size)
    memory[:] = byte * size
    return memoryview(memory)


def read_back(storage: Storage, path: str, size: int) -> bytes:
    target = bytearray(size)
    storage.read_into(path, memoryview(target))
    return bytes(target)


def test_what_was_put_is_read_and_the_last_put_counts(storage: Storage) -> None:
    storage.put("a/b/c.txt", b"one")
    storage.put("a/b/c.txt", b"two")
    storage.sync("a/b")

    assert storage.read("a/b/c.txt", limit_bytes=3) == b"two"
    assert read_back(storage, "a/b/c.txt", 3) == b"two"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytearray(b"some"),
        memoryview(b"some of this")[5:],
        memoryview(bytearray(8)).cast("Q"),
        pages(4096),
        pages(2 * MIB),
        pages(2 * MIB)[: MIB + 1],
        pages(2 * MIB)[1:],
        pages(2 * MIB).toreadonly(),
    ],
    ids=["empty", "bytearray", "slice", "words", "page", "pages", "odd end", "odd start", "readonly"],
)
def test_any_buffer_arrives_whole(data: Buffer, storage: Storage) -> None:
    expected = bytes(data)

    storage.put("a/b", data)

    assert read_back(storage, "a/b", len(expected)) == expected
    assert storage.read("a/b", limit_bytes=len(expected)) == expected


def test_a_put_does_not_hold_on_to_the_buffer(storage: Storage) -> None:
    data = pages(2 * MIB)

    storage.put("a", data)
    data[:3] = b"new"

    assert read_back(storage, "a", 2 * MIB)[:3] == b"xxx"


def test_names_and_sizes_are_of_what_lies_directly_in_a_folder(storage: Storage) -> None:
    for path, content in {"a/x": b"1", "a/b/y": b"12", "a/empty": b"", "ab": b"123"}.items():
        storage.put(path, content)

    assert storage.names("a") == ("b", "empty", "x")
    assert storage.sizes("a") == {"x": 1, "empty": 0}
    assert storage.names("nowhere") == storage.names("ab") == ()
    assert storage.sizes("nowhere") == storage.sizes("ab") == {}


def test_an_exclusive_put_never_replaces(storage: Storage) -> None:
    storage.put("a/m", b"first", exclusive=True)

    for content in (b"other", b"first"):
        with pytest.raises(FileExistsError):
            storage.put("a/m", content, exclusive=True)

    assert storage.read("a/m", limit_bytes=9) == b"first"
    assert storage.names("a") == ("m",)


def test_a_name_is_free_again_once_it_was_deleted(storage: Storage) -> None:
    storage.put("m", b"first", exclusive=True)
    storage.delete("m")

    storage.put("m", b"second", exclusive=True)

    assert storage.read("m", limit_bytes=9) == b"second"


def test_many_objects_are_removed_at_once_and_those_that_are_not_there_pass(storage: Storage) -> None:
    for name in ("a", "b", "c"):
        storage.put(f"chunks/{name}", b"x")
    storage.put("other/a", b"x")

    storage.remove("chunks", ["a", "never there", "c"])
    storage.remove("chunks", [])
    storage.remove("no such folder", ["a"])

    assert storage.names("chunks") == ("b",)
    assert storage.names("other") == ("a",)


# moto, and the memory of fsspec, look first and put then: of threads that do so at once, several may win.
@pytest.mark.parametrize("storage", ["disk", "tmpfs", "fake", "dying", "full"], indirect=True)
def test_of_many_exclusive_puts_at_once_one_wins(storage: Storage) -> None:
    for name in map(str, range(20)):
        start = threading.Barrier(8)

        def attempt(number: int, name: str = name, start: threading.Barrier = start) -> bool:
            start.wait()
            try:
                storage.put(name, b"%d" % number, exclusive=True)
            except FileExistsError:
                return False
            return True

        with ThreadPoolExecutor(8) as threads:
            won = [number for number, has_won in enumerate(threads.map(attempt, range(8))) if has_won]

        assert [int(storage.read(name, limit_bytes=1))] == won


def test_who_reads_while_others_replace_sees_one_whole_object(storage: Storage) -> None:
    contents = [bytes([number]) * 50_000 for number in range(3)]
    storage.put("a", contents[0])
    is_over = threading.Event()

    def replace(content: bytes) -> None:
        while not is_over.is_set():
            storage.put("a", content)

    with ThreadPoolExecutor(2) as threads:
        writers = [threads.submit(replace, content) for content in contents[1:]]
        seen = {read_back(storage, "a", 50_000) for _ in range(30)}
        is_over.set()

    assert seen <= set(contents)
    assert [writer.result() for writer in writers] == [None, None]


def test_puts_of_many_threads_all_arrive(storage: Storage) -> None:
    with ThreadPoolExecutor(16) as threads:
        done = [threads.submit(storage.put, f"c/{number}", pages(MIB, byte=b"%x" % number)) for number in range(16)]

    assert all(one.result() is None for one in done)
    assert [read_back(storage, f"c/{number}", MIB)[-1:] for number in range(16)] == [b"%x" % n for n in range(16)]


def test_what_is_not_there_is_file_not_found(storage: Storage) -> None:
    storage.put("a/b", b"x")

    for path in ("a/none", "none/none"):
        with pytest.raises(FileNotFoundError):
            storage.read(path, limit_bytes=9)
        with pytest.raises(FileNotFoundError):
            storage.read_into(path, memoryview(bytearray(9)))


def test_what_is_larger_than_expected_is_not_read(storage: Storage) -> None:
    storage.put("a", b"12345")

    with pytest.raises(OSError, match=rf"Errno {errno.EFBIG}\b"):
        storage.read("a", limit_bytes=4)


@pytest.mark.parametrize("size", [0, 4, 6, MIB])
def test_an_object_of_another_size_is_not_read_into_a_buffer(size: int, storage: Storage) -> None:
    storage.put("a", b"12345")

    with pytest.raises(OSError, match=rf"Errno {errno.EINVAL}\b.* bytes, {size:,} are expected"):
        storage.read_into("a", memoryview(bytearray(size)))


def test_deleting_takes_folders_and_may_be_repeated(storage: Storage) -> None:
    for path in ("a/x", "a/b/y", "ab", "c"):
        storage.put(path, b"")

    for path in ("a", "a", "c", "never"):
        storage.delete(path)

    assert storage.names("a") == ()
    with pytest.raises(FileNotFoundError):
        storage.read("c", limit_bytes=1)
    assert storage.read("ab", limit_bytes=1) == b""


def test_a_sweep_keeps_what_is_finished(storage: Storage) -> None:
    storage.put("a/x", b"1")
    storage.put("a/b/y", b"2")

    for folder in ("a", "nowhere"):
        storage.sweep(folder)

    assert storage.names("a") == ("b", "x")


def test_a_folder_where_nothing_was_put_is_in_sync(storage: Storage) -> None:
    storage.sync("nowhere")

    assert storage.names("nowhere") == ()


@pytest.mark.parametrize("path", ["../out", "a/../../out", "/etc/passwd", "a//b", ".", "", "a/"])
def test_a_path_cannot_leave_the_run_folder(path: str, storage: Storage) -> None:
    acts: list[Callable[[], object]] = [
        lambda: storage.put(path, b"x"),
        lambda: storage.put(path, b"x", exclusive=True),
        lambda: storage.sync(path),
        lambda: storage.read(path, limit_bytes=1),
        lambda: storage.read_into(path, memoryview(bytearray(1))),
        lambda: storage.names(path),
        lambda: storage.sizes(path),
        lambda: storage.delete(path),
    ]

    for act in acts:
        with pytest.raises(OSError, match="not a path"):
            act()


def test_uris_choose_the_storage(tmp_path: Path) -> None:
    assert isinstance(open_storage(str(tmp_path)), LocalStorage)
    assert isinstance(open_storage(f"file://{tmp_path}"), LocalStorage)
    assert isinstance(open_storage("memory://x/y"), FsspecStorage)
    with pytest.raises(ValueError, match="nonsense"):
        open_storage("nonsense://x")


def test_a_throttled_storage_takes_the_time_that_its_bytes_need() -> None:
    clock = SimClock()
    begun_at = clock.now()
    storage = Throttled(MemoryStorage(), bytes_per_second=100, clock=clock)

    storage.put("a", bytes(150))
    storage.read_into("a", memoryview(bytearray(150)))
    storage.read("a", limit_bytes=150)

    assert clock.now() - begun_at == timedelta(seconds=4.5)
