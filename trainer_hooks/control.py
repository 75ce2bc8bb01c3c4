"""Requests of the launcher: files that appear in the run folder, watched by a thread."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable

from trainer_hooks.protocol import CONTROL_CHECKPOINT, CONTROL_STOP
from trainer_hooks.storage import LocalStorage, Storage

log = logging.getLogger(__name__)

LOCAL_PERIOD_SECONDS = 0.5
REMOTE_PERIOD_SECONDS = 5.0
"""Each look at the control files is two requests, which an object store bills."""

_LIMIT_BYTES = 1 << 16


class Control:
    """Says `on_stop` and `on_checkpoint` from its own thread, once for each request."""

    def __init__(
        self, storage: Storage, *, attempt: int, on_stop: Callable[[], None], on_checkpoint: Callable[[], None]
    ) -> None:
        self._storage = storage
        self._attempt = attempt
        self._on_stop = on_stop
        self._on_checkpoint = on_checkpoint
        self._stopped = threading.Event()
        self._seen_checkpoint: bytes | None = None
        self._obeyed_stop = False

    def start(self, *, period_seconds: float) -> None:
        """Requests for a checkpoint made before now are served by whatever was resumed from."""
        try:
            self._seen_checkpoint = content(self._storage, CONTROL_CHECKPOINT)
        except OSError as error:
            log.warning("control files cannot be read", extra={"error": str(error)})
        args = (period_seconds,)
        threading.Thread(target=self._watch, args=args, name="spotlaunch-control", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def poll(self) -> None:
        """Raises: OSError: the storage did not answer."""
        stop = content(self._storage, CONTROL_STOP)
        if stop is not None and not self._obeyed_stop and is_for(stop, self._attempt):
            self._obeyed_stop = True
            self._on_stop()
        checkpoint = content(self._storage, CONTROL_CHECKPOINT)
        if checkpoint is not None and checkpoint != self._seen_checkpoint:
            self._seen_checkpoint = checkpoint
            self._on_checkpoint()

    def _watch(self, period_seconds: float) -> None:
        has_complained = False
        while not self._stopped.is_set():
            try:
                self.poll()
            except Exception as error:  # the top of a thread
                if not has_complained:
                    has_complained = True
                    log.warning("control files cannot be read", extra={"error": str(error)})
            self._stopped.wait(period_seconds)


def period_seconds(storage: Storage) -> float:
    """Between two looks at the control files."""
    return LOCAL_PERIOD_SECONDS if isinstance(storage, LocalStorage) else REMOTE_PERIOD_SECONDS


def content(storage: Storage, path: str) -> bytes | None:
    """Of a control file, `None` where there is none. Raises: OSError: the storage did not answer."""
    try:
        return storage.read(path, limit_bytes=_LIMIT_BYTES)
    except FileNotFoundError:
        return None


def is_for(stop: bytes, attempt: int) -> bool:
    """Whether a stop request means this attempt: it names it, or names none. A stale one names an older one."""
    try:
        wanted = json.loads(stop)["attempt"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return True
    return wanted == attempt if isinstance(wanted, int) else True
