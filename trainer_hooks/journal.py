"""What the launcher learns of this attempt: records, written as immutable segments by a thread of its own.

A failing storage never stops the training: it is logged once, and the same segment is tried again later.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime

from trainer_hooks.protocol import Record, encode, journal_folder, segment_name
from trainer_hooks.storage import Storage

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
LAST_RETRY_SECONDS = 1.0
LAST_TRIES = 3
"""While somebody waits for a flush: a run folder that is down must not hold up an exit."""
MAX_WAITING_LINES = 10_000
"""More than a day of heartbeats; beyond that the oldest go."""


class Journal:
    """One attempt's. Without a storage (any rank but 0) it swallows everything."""

    def __init__(self, storage: Storage | None, *, attempt: int) -> None:
        self._storage = storage
        self._folder = journal_folder(attempt)
        self._segment: int | None = None  # the number of the next one; unknown until the folder was read
        self._lines: deque[str] = deque(maxlen=MAX_WAITING_LINES)
        self._unwritten: bytes | None = None  # content of `_segment` that a failed write may have left behind
        self._changed = threading.Condition()
        self._is_closed = False
        self._failed_tries = 0
        self._flushes = 0  # that are waiting
        self._has_complained = False
        self._thread: threading.Thread | None = None

    def claim(self) -> None:
        """Show that this attempt exists before it reads a checkpoint: an older one still alive then stops saving.

        The claim is a segment 0 without lines, which no reader counts.
        """
        if self._storage is None:
            return
        try:
            self._put(self._storage, 0, b"")
        except OSError as error:
            self._complain(error)

    def append(self, record: Record) -> None:
        """Hand over a record; its instant is now. Never raises, never waits for the storage."""
        if self._storage is None:
            return
        line = encode(record, at=datetime.fromtimestamp(time.time(), UTC))
        with self._changed:
            self._lines.append(line)
            if self._thread is None and not self._is_closed:
                self._thread = threading.Thread(target=self._work, name="spotlaunch-journal", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, *, timeout_seconds: float) -> None:
        """Wait until everything handed over is written, or could not be, or the time is over."""
        with self._changed:
            give_up_at = self._failed_tries + LAST_TRIES
            self._flushes += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_drained() or self._failed_tries >= give_up_at, timeout_seconds)
            self._flushes -= 1

    def close(self, *, timeout_seconds: float) -> None:
        """Flush, and end the thread. May be repeated."""
        self.flush(timeout_seconds=timeout_seconds)
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _is_drained(self) -> bool:
        return not self._lines and self._unwritten is None

    def _work(self) -> None:
        storage = self._storage
        while storage is not None:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or not self._is_drained())
                if self._is_closed:
                    return
                content = self._take()
            is_written = self._write(storage, content)
            with self._changed:
                if is_written:
                    self._unwritten = None
                else:
                    self._failed_tries += 1
                self._changed.notify_all()
                if not is_written:
                    self._changed.wait(LAST_RETRY_SECONDS if self._flushes else RETRY_SECONDS)

    def _take(self) -> bytes:
        """What the next segment holds. One that failed is tried again as it was: perhaps somebody has read it."""
        if self._unwritten is None:
            self._unwritten = "".join(f"{line}\n" for line in self._lines).encode()
            self._lines.clear()
        return self._unwritten

    def _write(self, storage: Storage, content: bytes) -> bool:
        try:
            if self._segment is None:
                self._segment = 1 + _highest_segment(storage.names(self._folder))
            self._put(storage, self._segment, content)
        except Exception as error:  # the top of a thread
            self._complain(error)
            return False
        self._segment += 1
        return True

    def _put(self, storage: Storage, segment: int, content: bytes) -> None:
        storage.put(f"{self._folder}/{segment_name(segment)}", content)
        storage.sync(self._folder)

    def _complain(self, error: Exception) -> None:
        if not self._has_complained:
            self._has_complained = True
            with suppress(Exception):  # a logger's handler is the user's
                log.warning("the journal could not be written; training goes on", extra={"error": str(error)})


def _highest_segment(names: tuple[str, ...]) -> int:
    found = (re.fullmatch(r"(\d{8,})\.jsonl", name) for name in names)
    return max((int(match[1]) for match in found if match), default=0)
