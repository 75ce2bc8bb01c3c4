"""Threads that ask each source for a notice, and the flags they leave for the safe point."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

log = logging.getLogger(__name__)

MIN_PERIOD_SECONDS = 0.1
MAX_PERIOD_SECONDS = 5.0  # "check every 5 seconds": EC2 user guide on spot interruption notices, read 2025-11
ASKS_PER_NOTICE = 24  # so that EC2's 120 seconds come out at 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """`preemption`: the machine will be taken. `rebalance`: it is at risk, nothing is decided."""

    kind: Literal["preemption", "rebalance"]
    source: str
    seconds_left: float | None = None  # as the source stated it


class Source(Protocol):
    """Where notices come from. `period_seconds` is the wait between two polls."""

    name: str
    period_seconds: float

    def poll(self) -> Heard | None:
        """What there is to hear now; may wait for it. Raises whatever went wrong: it is asked again."""
        ...


class Listener:
    """One daemon thread per source; each kind of news of a source is passed on once."""

    def __init__(self, sources: Sequence[Source], on_heard: Callable[[Heard], None]) -> None:
        self._sources = tuple(sources)
        self._on_heard = on_heard
        self._stopped = threading.Event()

    def start(self) -> None:
        for source in self._sources:
            name = f"spotlaunch-notice-{source.name}"
            threading.Thread(target=self._listen, args=(source,), name=name, daemon=True).start()

    def stop(self) -> None:
        """The threads end after the poll they are in; nothing more is passed on."""
        self._stopped.set()

    def _listen(self, source: Source) -> None:
        passed_on: set[str] = set()
        has_complained = False
        while not self._stopped.is_set():
            try:
                heard = source.poll()
                if heard is not None and heard.kind not in passed_on and not self._stopped.is_set():
                    passed_on.add(heard.kind)
                    self._on_heard(heard)
            except Exception as error:  # the top of a thread
                if not has_complained:
                    has_complained = True
                    log.warning("notice source fails", extra={"source": source.name, "error": repr(error)})
            self._stopped.wait(source.period_seconds)


def period_seconds(notice_seconds: float | None) -> float:
    """How often to ask a source that gives `notice_seconds` of warning."""
    if notice_seconds is None:
        return MAX_PERIOD_SECONDS
    return min(max(notice_seconds / ASKS_PER_NOTICE, MIN_PERIOD_SECONDS), MAX_PERIOD_SECONDS)
