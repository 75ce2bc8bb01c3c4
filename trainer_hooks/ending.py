"""How the process ends, for a script that neither closes its session nor uses it in a `with`."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from types import TracebackType

from trainer_hooks.protocol import EndReason


class Ending:
    """Calls `on_end` once: `failed` after an exception that nobody caught, else `completed`.

    A `SystemExit` cannot be seen from here; its code can, by the launcher. A forked worker's end is not ours,
    though it runs what was registered before the fork.
    """

    def __init__(self, on_end: Callable[[EndReason], None]) -> None:
        self._on_end: Callable[[EndReason], None] | None = on_end
        self._pid = os.getpid()
        self._previous = sys.excepthook

    def watch(self) -> None:
        self._previous = sys.excepthook
        sys.excepthook = self._on_exception
        # Python's own atexit runs after the executors are shut down that storage libraries need for a write.
        register: Callable[[Callable[[], None]], object] = getattr(threading, "_register_atexit", atexit.register)
        register(self._at_exit)

    def forget(self) -> None:
        """Let go of `on_end`, and of all it holds: a registration at exit cannot be taken back."""
        self._on_end = None
        if sys.excepthook == self._on_exception:
            sys.excepthook = self._previous

    def _on_exception(self, kind: type[BaseException], value: BaseException, at: TracebackType | None) -> None:
        try:
            self._tell("failed")
        finally:
            self._previous(kind, value, at)

    def _at_exit(self) -> None:
        self._tell("completed")

    def _tell(self, reason: EndReason) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None and os.getpid() == self._pid:
            on_end(reason)
