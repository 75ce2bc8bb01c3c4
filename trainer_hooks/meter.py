"""What the attempt costs, and the line that says so: `step 9,412 · $0.0427/step · $439.71 so far`.

    spent = spent before + price · (now − start)

The clock is monotonic: a wall clock that jumps must not change a bill.
"""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from trainer_hooks.protocol import CAP_SECONDS

LINE_EVERY_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """`usd_per_hour` is of the whole placement; `None`: unknown, then no dollars are shown and no cap holds."""

    usd_per_hour: Decimal | None
    spent_usd: Decimal  # by the run, before the meter starts
    cap_usd: Decimal | None


class Meter:
    """Counts from the start of the process, since that is about when the machine began to be billed.

    Of an attempt that took over it counts from the go, up to which the launcher says what was spent.
    """

    def __init__(self, price: Price, *, started: float) -> None:
        """`started` is an instant of `time.monotonic`."""
        self.price = price
        self.started = started

    def spent_usd(self, now: float) -> Decimal | None:
        """By the run until `now`; `None` without a price."""
        if self.price.usd_per_hour is None:
            return None
        hours = Decimal(str(max(0.0, now - self.started))) / 3600
        return self.price.spent_usd + self.price.usd_per_hour * hours

    def stop_at(self, save_seconds: float) -> float:
        """The monotonic instant from which the cap would be crossed by saving and stopping; infinite without one."""
        price = self.price
        if price.cap_usd is None or price.usd_per_hour is None:
            return math.inf
        left_usd = price.cap_usd - price.spent_usd
        if price.usd_per_hour <= 0:
            return math.inf if left_usd > 0 else -math.inf
        return self.started + float(left_usd / price.usd_per_hour * 3600) - save_seconds - CAP_SECONDS

    def line(self, step: int, *, step_seconds: float | None, now: float) -> str:
        """One line for a human; without a price only step and speed."""
        spent = self.spent_usd(now)
        if spent is None or self.price.usd_per_hour is None:
            speed = f" · {1 / step_seconds:.3g} steps/s" if step_seconds else ""
            return f"step {step:,}{speed}"
        each = f" · {_usd_per_step(self.price.usd_per_hour, step_seconds)}/step" if step_seconds else ""
        return f"step {step:,}{each} · ${spent:,.2f} so far"


def _usd_per_step(usd_per_hour: Decimal, step_seconds: float) -> str:
    """Three digits that count, never fewer than two places: `$0.0427`, `$12.50`, `$0.00000312`."""
    usd = float(usd_per_hour) * step_seconds / 3600
    if usd <= 0:
        return "$0.00"
    return f"${usd:,.{max(2, 2 - math.floor(math.log10(usd)))}f}"


class Display(Protocol):
    every_seconds: float

    def show(self, line: str, *, step: int) -> None: ...

    def close(self) -> None: ...


def open_display(*, step: int, total_steps: int | None) -> Display:
    """A bar where somebody looks at a terminal and tqdm is installed, else plain lines."""
    if sys.stderr is not None and sys.stderr.isatty():
        try:
            from tqdm import tqdm  # type: ignore[import-untyped]  # it ships no types
        except ImportError:
            return PlainLines()
        return _Bar(tqdm(total=total_steps, initial=step, unit="step", dynamic_ncols=True))
    return PlainLines()


class NoDisplay:
    """Between loops, and on every rank but the first."""

    every_seconds = math.inf

    def show(self, line: str, *, step: int) -> None:
        """Nobody looks."""

    def close(self) -> None:
        """Nothing is open."""


class PlainLines:
    """To stderr: stdout belongs to the script."""

    every_seconds = LINE_EVERY_SECONDS

    def show(self, line: str, *, step: int) -> None:
        say(line)

    def close(self) -> None:
        """Nothing is open."""


class _Bar:
    every_seconds = 0.5

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def show(self, line: str, *, step: int) -> None:
        self._bar.update(step - self._bar.n)
        self._bar.set_description_str(line, refresh=True)

    def close(self) -> None:
        self._bar.close()


def say(line: str) -> None:
    """One line to the user's stderr; a closed one is nobody's loss."""
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):
        return


def process_started() -> float:
    """When this process began, as an instant of `time.monotonic`; now, where the system does not tell.

    Field 22 of /proc/self/stat is in clock ticks since boot (proc_pid_stat(5)).
    """
    now = time.monotonic()
    try:
        # the second field is the program's name in parentheses, and may hold blanks
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return now - max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
    except (OSError, ValueError, IndexError, AttributeError):
        return now
