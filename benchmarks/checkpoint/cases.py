"""Beside the saves themselves: what a save writes when little has changed, how long a resume reads, and a bucket."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.checkpoint.measure import save_and_train
from benchmarks.checkpoint.methods import BLOCK_BYTES, DISK_THREADS, Method, aligned_blocks
from benchmarks.checkpoint.ours import Ours
from benchmarks.checkpoint.training import Training
from trainer_hooks import Session

BUCKET = "benchmark"
CONNECTIONS = 16


def changed_little(methods: Sequence[Method], size_gb: float, folder: Path) -> list[list[str]]:
    """Rows: bytes in new files of the second save of a frozen model with adapters, beside those that a step changed."""
    rows = []
    training = Training(size_gb, is_adapted=True)
    for method in methods:
        with TemporaryDirectory(dir=folder) as run:
            method.open(training, Path(run))
            save_and_train(method, training)
            before = _files(Path(run))
            save_and_train(method, training)
            written = sum(size for key, size in _files(Path(run)).items() if key not in before)
            method.close()
        rows.append([method.name, f"{written / 1e6:.1f}", f"{training.changing_bytes / 1e6:.1f}"])
        rows[-1].append(f"{written / training.changing_bytes:.2f}")
    return rows


def resume(ours: Ours, training: Training, folder: Path, *, repeats: int) -> dict[str, list[float]]:
    """Seconds, from a cold page cache: the same files read raw, read and verified, and put into the live objects."""
    with TemporaryDirectory(dir=folder) as run:
        ours.open(training, Path(run))
        save_and_train(ours, training)
        ours.close()
        files, blocks = [path for path in Path(run).rglob("*") if path.is_file()], aligned_blocks()
        live = {"model": training.model, "optimizer": training.optimizer}
        ways: Mapping[str, Callable[[], object]] = {
            "raw direct read": lambda: _read_raw(files, blocks),
            "Session: read and verify": lambda: _resume(run, {name: _Takes() for name in live}),
            "Session: into the live objects": lambda: _resume(run, live),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                _forget_cached(files)
                began = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - began)
    return seconds


def upload(ours: Ours, training: Training, *, repeats: int) -> dict[str, list[float]]:
    """Seconds of a save into a bucket and of a multipart upload of as many bytes, to one and the same server."""
    with _bucket(), asyncio.Runner() as runner:
        ours.open_at(training, f"s3://{BUCKET}/run")
        _save_and_wait(ours)
        seconds: dict[str, list[float]] = {"raw multipart upload": [], "Session, until durable": []}
        for _ in range(repeats):
            training.step()
            seconds["Session, until durable"].append(_save_and_wait(ours))
            seconds["raw multipart upload"].append(runner.run(_upload_raw(training.state_bytes)))
        ours.close()
    return seconds


class _Takes:
    """Stands for a model or an optimizer, and keeps what it is given."""

    def __init__(self) -> None:
        self._state: Mapping[str, Any] = {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._state = state

    def state_dict(self) -> Mapping[str, Any]:
        return self._state


def _resume(run: str, objects: Mapping[str, Any]) -> None:
    session = Session(run_uri=run, **objects)
    if session.resumed_from is None:
        raise RuntimeError(f"nothing was resumed from {run}")
    session.close()


def _files(folder: Path) -> dict[tuple[str, int, int], int]:
    found = [(path, path.stat()) for path in folder.rglob("*") if path.is_file()]
    return {(str(path), at.st_ino, at.st_mtime_ns): at.st_size for path, at in found}


def _forget_cached(files: Iterable[Path]) -> None:
    for path in files:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def _read_raw(files: Iterable[Path], blocks: Sequence[memoryview]) -> None:
    stretches = [(path, start) for path in files for start in range(0, path.stat().st_size, BLOCK_BYTES)]

    def read(number: int) -> None:
        for path, start in stretches[number::DISK_THREADS]:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
            os.preadv(fd, [blocks[number]], start)
            os.close(fd)

    with ThreadPoolExecutor(DISK_THREADS) as pool:
        list(pool.map(read, range(DISK_THREADS)))


def _save_and_wait(ours: Ours) -> float:
    """Without training on: the server needs the processors."""
    pending = ours.save()
    while not pending.is_durable():
        time.sleep(0.01)
    return pending.durable_seconds


async def _upload_raw(size_bytes: int) -> float:
    from aiobotocore.config import AioConfig  # type: ignore[import-untyped]  # it ships no types
    from aiobotocore.session import get_session  # type: ignore[import-untyped]  # nor here

    body, gate = os.urandom(BLOCK_BYTES), asyncio.Semaphore(CONNECTIONS)
    config = AioConfig(max_pool_connections=CONNECTIONS)
    async with get_session().create_client("s3", config=config) as client:
        where = {"Bucket": BUCKET, "Key": "raw"}
        began = time.perf_counter()
        upload_id = (await client.create_multipart_upload(**where))["UploadId"]

        async def put(number: int) -> dict[str, Any]:
            async with gate:
                rest = body[: size_bytes - (number - 1) * BLOCK_BYTES]
                done = await client.upload_part(**where, UploadId=upload_id, PartNumber=number, Body=rest)
            return {"PartNumber": number, "ETag": done["ETag"]}

        parts = await asyncio.gather(*(put(n + 1) for n in range(-(-size_bytes // BLOCK_BYTES))))
        await client.complete_multipart_upload(**where, UploadId=upload_id, MultipartUpload={"Parts": parts})
        seconds = time.perf_counter() - began
        await client.delete_object(**where)
    return seconds


@contextmanager
def _bucket() -> Iterator[None]:
    """An empty one, in a server process of moto's."""
    import boto3  # type: ignore[import-untyped]  # it ships no types

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            while socket.socket().connect_ex(("127.0.0.1", port)):
                if server.poll() is not None:
                    raise RuntimeError("moto's server did not start; pip install -r benchmarks/requirements.txt")
                time.sleep(0.1)
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield
        finally:
            server.terminate()
