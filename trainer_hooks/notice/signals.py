"""SIGTERM and SIGUSR1: Kubernetes, Slurm, GCE's power-off, and whoever else ends a process politely.

The handler sets a flag and nothing else: it may run between any two bytecodes, locks included.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from trainer_hooks.notice.listener import Heard

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
PERIOD_SECONDS = 0.1

Handler = Callable[[int, FrameType | None], Any] | int | None


class Signals:
    """A source once `install` was called in the main thread; other threads cannot have handlers."""

    name = "signal"
    period_seconds = PERIOD_SECONDS

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._was_signalled = False
        self._previous: dict[signal.Signals, Handler] = {}

    def install(self) -> None:
        """In another thread than the main one this does nothing."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)

    def uninstall(self) -> None:
        """Give the signals back, unless somebody has taken them since."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, previous in self._previous.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, signal.SIG_DFL if previous is None else previous)
        self._previous = {}

    def poll(self) -> Heard | None:
        return Heard(kind="preemption", source=self.name) if self._was_signalled else None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # a forked worker: its parent saves, and needs it until then
        self._was_signalled = True
        previous = self._previous.get(signal.Signals(number))
        if callable(previous):
            previous(number, frame)


class CalmWorker:
    """`worker_init_fn` of a DataLoader: its workers let SIGTERM and SIGUSR1 pass.

    A cluster signals every process of a job. A worker killed by it would raise in the main process, in the
    middle of a step or of the save; torch puts its own handlers back in each worker, so this comes after it.
    """

    def __init__(self, then: Callable[[int], Any] | None) -> None:
        self._then = then

    def __call__(self, worker_id: int) -> None:
        for number in SIGNALS:
            signal.signal(number, _let_pass_once)
        if self._then is not None:
            self._then(worker_id)


def _let_pass_once(number: int, frame: FrameType | None) -> None:
    """The second one ends the worker: a DataLoader that shuts down must be able to."""
    signal.signal(number, signal.SIG_DFL)
