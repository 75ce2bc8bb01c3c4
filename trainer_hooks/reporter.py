"""What the attempt says of itself: heartbeats to the journal, the cost line to the user, its last record."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping

from trainer_hooks.journal import Journal
from trainer_hooks.meter import Display, Meter, NoDisplay, open_display
from trainer_hooks.protocol import Ended, EndReason, Step

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 15.0
FLUSH_SECONDS = 10.0
"""At the end: of 30 seconds' notice, after the save."""


class Reporter:
    """One per session; `is_shown` on the first rank only. `saving` says what is being written now, if anything is."""

    def __init__(self, journal: Journal, meter: Meter, *, saving: Callable[[], str], is_shown: bool) -> None:
        self._journal = journal
        self._meter = meter
        self._saving = saving
        self._is_shown = is_shown
        self._display: Display = NoDisplay()
        self._metrics: dict[str, object] = {}
        self.outcomes: dict[str, float] = {}
        self._heartbeat_at = -math.inf
        self._show_at = -math.inf
        self.due_at = -math.inf
        """The monotonic instant from which `report` has something to say."""

    def log(self, values: Mapping[str, object]) -> None:
        """Keep the newest; a tensor is read when it is reported, so that logging does not wait for a GPU."""
        for name, value in values.items():
            detach = getattr(value, "detach", None)  # a loss holds on to its graph
            self._metrics[name] = detach() if callable(detach) else value

    def open(self, *, step: int, total_steps: int | None) -> None:
        """A loop begins that will end at step `total_steps`, if that is known."""
        if self._is_shown:
            self._display = open_display(step=step, total_steps=total_steps)

    def close(self, step: int, step_seconds: float | None) -> None:
        """A loop ended."""
        self._show(step, step_seconds, time.monotonic())
        self._display.close()
        self._display = NoDisplay()

    def report(self, step: int, step_seconds: float | None, now: float) -> None:
        """Whatever is due."""
        if now >= self._heartbeat_at:
            self._heartbeat_at = now + HEARTBEAT_SECONDS
            self._journal.append(Step(step=step, step_seconds=step_seconds, metrics=self.metrics()))
        if now >= self._show_at:
            self._show(step, step_seconds, now)
        self.due_at = min(self._heartbeat_at, self._show_at)

    def end(self, reason: EndReason, step: int, step_seconds: float | None) -> None:
        self._display.close()
        record = Ended(reason=reason, step=step, step_seconds=step_seconds, metrics=self.metrics())
        self._journal.append(record)
        self._journal.close(timeout_seconds=FLUSH_SECONDS)

    def metrics(self) -> dict[str, float]:
        """The newest values that are finite numbers (JSON has no others), the outcomes over the rest."""
        found: dict[str, float] = {}
        for name, value in (self._metrics | self.outcomes).items():
            try:
                number = float(value)  # type: ignore[arg-type]  # what the user logged, perhaps no number
            except (TypeError, ValueError, RuntimeError):
                log.debug("metric left out", extra={"metric": name})
                continue
            if math.isfinite(number):
                found[name] = number
        return found

    def _show(self, step: int, step_seconds: float | None, now: float) -> None:
        self._show_at = now + self._display.every_seconds
        parts = (self._meter.line(step, step_seconds=step_seconds, now=now), self._saving())
        self._display.show(" · ".join(filter(None, parts)), step=step)
