"""What the safe point has to react to: threads leave flags here, the safe point reads them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from enum import IntEnum

from trainer_hooks.control import Control, period_seconds
from trainer_hooks.meter import say
from trainer_hooks.notice.listener import Heard, Listener
from trainer_hooks.notice.signals import Signals
from trainer_hooks.notice.sources import open_sources
from trainer_hooks.protocol import EndReason
from trainer_hooks.settings import Settings
from trainer_hooks.storage import Storage

log = logging.getLogger(__name__)


class Verdict(IntEnum):
    """In order of urgency: of several ranks, the highest holds for all."""

    GO_ON = 0
    SAVE = 1
    OUT_OF_BUDGET = 2
    STOPPED = 3
    PREEMPTED = 4
    UNSAVED = 5  # too many saves in a row have failed
    SUPERSEDED = 6  # a newer attempt has the word

    @property
    def end(self) -> EndReason | None:
        match self:
            case Verdict.GO_ON | Verdict.SAVE | Verdict.SUPERSEDED:
                return None
            case Verdict.UNSAVED:
                return "failed"
            case Verdict.OUT_OF_BUDGET:
                return "out_of_budget"
            case Verdict.STOPPED:
                return "stopped"
            case Verdict.PREEMPTED:
                return "preempted"


WHY: Mapping[Verdict, str] = {
    Verdict.STOPPED: "stopped as asked",
    Verdict.OUT_OF_BUDGET: "stopped at the cap",
}


class Attention:
    """Listens for notices on every rank, and on the first for requests of the launcher."""

    def __init__(self, settings: Settings, *, environ: Mapping[str, str], on_notice: Callable[[Heard], None]) -> None:
        sources = open_sources(settings.notice, notice_seconds=settings.notice_seconds, environ=environ)
        self._signals = [source for source in sources if isinstance(source, Signals)]
        self._listener = Listener(sources, self._hear)
        self._on_notice = on_notice
        self._notice_seconds = settings.notice_seconds  # what this place is known to give
        self._control: Control | None = None
        self._urgent = Verdict.GO_ON
        self._gone_at: float | None = None  # of `time.monotonic`, as the notice said

    @property
    def seconds_left(self) -> float | None:
        """Until the machine is taken; `None` where no notice has said it."""
        return None if self._gone_at is None else max(0.0, self._gone_at - time.monotonic())

    @property
    def takes_signals(self) -> bool:
        return bool(self._signals)

    def start(self, storage: Storage | None, *, attempt: int) -> None:
        """Without a storage, control files are another rank's business."""
        for signals in self._signals:
            signals.install()
        self._listener.start()
        if storage is not None:
            self._control = Control(storage, attempt=attempt, on_stop=self._stop, on_checkpoint=self.ask_for_save)
            self._control.start(period_seconds=period_seconds(storage))

    def stop(self) -> None:
        """End the threads. Signals stay caught: a second one must not turn a clean exit into a killed process."""
        self._listener.stop()
        if self._control is not None:
            self._control.stop()

    def release_signals(self) -> None:
        for signals in self._signals:
            signals.uninstall()

    def ask_for_save(self) -> None:
        self._raise_to(Verdict.SAVE)

    def take(self) -> Verdict:
        """What there is to react to. A wish for a save is granted by this; an end stays asked for."""
        urgent = self._urgent
        if urgent is Verdict.SAVE:
            self._urgent = Verdict.GO_ON
        return urgent

    def _stop(self) -> None:
        self._raise_to(Verdict.STOPPED)

    def _hear(self, heard: Heard) -> None:
        if heard.kind == "rebalance":
            say("spotlaunch: the machine is at risk of being taken (rebalance recommendation); saving early")
            self.ask_for_save()
            return
        seconds = self._notice_seconds if heard.seconds_left is None else heard.seconds_left
        if seconds is not None:
            self._gone_at = time.monotonic() + seconds
        self._raise_to(Verdict.PREEMPTED)
        self._on_notice(heard)

    def _raise_to(self, verdict: Verdict) -> None:
        # Two threads at once may lose the lesser of two ends, or a save to an end: the end saves, too.
        self._urgent = max(self._urgent, verdict)
