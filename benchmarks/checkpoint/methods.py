"""What a way to save has to offer to be measured, and the two floors under all of them."""

from __future__ import annotations

import importlib.util
import mmap
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks.checkpoint.training import Training

BLOCK_BYTES = 16 << 20
PAGE_BYTES = 4096
DISK_THREADS = 2
"""More do not help one disk, and the machines that this runs on have two cores."""


class Pending:
    """A save under way. `reported_blocked_seconds`: what the library itself says that it held up the training."""

    def __init__(self) -> None:
        self.asked_at = time.perf_counter()
        self.durable_seconds = 0.0
        self.reported_blocked_seconds = 0.0
        self._error: BaseException | None = None
        self._is_done = threading.Event()

    def settle(self, wait: Callable[[], object], folder: Path | None = None) -> None:
        """Durable when `wait` comes back and what is in `folder` is fsynced, which many peers leave to luck."""
        try:
            wait()
            for path in [*folder.rglob("*"), folder, folder.parent] if folder else []:
                fsync(path)
        except BaseException as error:  # raised where the benchmark waits, not in a thread of somebody's
            self._error = error
        self.durable_seconds = self.durable_seconds or time.perf_counter() - self.asked_at
        self._is_done.set()

    def is_durable(self) -> bool:
        """Raises: what the save failed with."""
        if self._error is not None:
            raise self._error
        return self._is_done.is_set()


class Method:
    """One way to save, used as its documentation says. The next save comes when the last one is durable.

    `needs` are importable packages. Where `fsyncs` is false the benchmark does it, on the clock.
    """

    name: str
    needs: tuple[str, ...] = ()
    fsyncs = False

    def open(self, training: Training, folder: Path) -> None:
        self.training, self.folder = training, folder
        self._number = 0

    def advance(self) -> None:
        """What this method does between two steps."""

    def save(self) -> Pending:
        """Between two steps; comes back when the next one may begin."""
        raise NotImplementedError

    def tidy(self) -> None:
        """Remove what was saved, where the method itself does not."""
        for path in self.folder.iterdir():
            shutil.rmtree(path)

    def close(self) -> None:
        """Free what `open` and the saves took."""

    def is_installed(self) -> bool:
        return all(importlib.util.find_spec(package) for package in self.needs)

    def fresh_folder(self) -> Path:
        self._number += 1
        folder = self.folder / f"save-{self._number}"
        folder.mkdir()
        return folder


class Blocking(Method):
    def save(self) -> Pending:
        pending, folder = Pending(), self.fresh_folder()
        pending.settle(lambda: self.write(folder), folder)
        return pending

    def write(self, folder: Path) -> None:
        raise NotImplementedError


class Memcpy(Method):
    """A copy of the state into memory that exists: pinned memory, from a GPU."""

    name = "floor: memcpy"
    fsyncs = True  # nothing is to be

    def open(self, training: Training, folder: Path) -> None:
        super().open(training, folder)
        tensors = training.tensors().values()
        self._copies = [torch.empty_like(one, device="cpu", pin_memory=training.is_cuda) for one in tensors]

    def save(self) -> Pending:
        pending = Pending()
        pending.settle(self._copy)
        return pending

    def close(self) -> None:
        del self._copies

    def _copy(self) -> None:
        for copy, tensor in zip(self._copies, self.training.tensors().values(), strict=True):
            copy.copy_(tensor, non_blocking=True)
        if self.training.is_cuda:
            torch.cuda.synchronize()


class RawWrite(Blocking):
    """As many bytes as the state has, by direct I/O, from memory that is aligned and exists."""

    name = "floor: raw direct write"
    fsyncs = True

    def open(self, training: Training, folder: Path) -> None:
        super().open(training, folder)
        self._blocks = aligned_blocks()

    def write(self, folder: Path) -> None:
        share = -(-self.training.state_bytes // DISK_THREADS // PAGE_BYTES) * PAGE_BYTES
        with ThreadPoolExecutor(DISK_THREADS) as pool:
            for job in [pool.submit(_write, folder / f"{n}", share, block) for n, block in enumerate(self._blocks)]:
                job.result()


def aligned_blocks() -> list[memoryview]:
    """One per thread. Random: a disk that compresses must not look faster than it is."""
    blocks = [memoryview(mmap.mmap(-1, BLOCK_BYTES)) for _ in range(DISK_THREADS)]
    for block in blocks:
        block[:] = os.urandom(BLOCK_BYTES)
    return blocks


def fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write(path: Path, size_bytes: int, block: memoryview) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o666)
    try:
        left = size_bytes
        while left:
            left -= os.write(fd, block[: min(left, BLOCK_BYTES)])
        os.fsync(fd)
    finally:
        os.close(fd)
