"""How numbers are written: estimates to 3 digits with ≈, metered money to the cent, spans in two units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal

from launcher.errors import InputError, LaunchError, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """Dollars as shown: in another currency at a dated rate."""

    currency: str = "USD"
    usd_per_unit: Decimal = Decimal(1)
    rate_as_of: date | None = None

    @property
    def sign(self) -> str:
        return {"USD": "$", "EUR": "€", "GBP": "£"}.get(self.currency, f"{self.currency} ")

    def exact(self, usd: Decimal) -> str:
        """To the cent, as metered."""
        value = usd / self.usd_per_unit
        return f"{'−' if value < 0 else ''}{self.sign}{abs(value):,.2f}"

    def about(self, usd: Decimal) -> str:
        """To three significant digits, as estimated."""
        value = usd / self.usd_per_unit
        return f"{self.sign}{significant(value)}" if value >= Decimal("0.01") or not value else f"< {self.sign}0.01"

    def fine(self, usd: Decimal) -> str:
        """To three significant digits below a cent: a step may cost very little."""
        value = usd / self.usd_per_unit
        return f"{self.sign}{value:.3g}" if value < Decimal("0.01") else f"{self.sign}{value:.4f}"

    @property
    def note(self) -> str:
        if self.rate_as_of is None:
            return ""
        return f"{self.currency} at ${self.usd_per_unit} of {self.rate_as_of}"


def simulated(is_simulated: bool) -> str:
    """Stands behind an amount that nobody will ever pay."""
    return " (simulated)" if is_simulated else ""


def significant(value: Decimal) -> str:
    """Three digits, thousands separated, cents where they are among them: 847, 12.30, 4,180."""
    if value == 0:
        return "0"
    rounded = Decimal(f"{value:.2e}")
    return f"{rounded:,.{2 if rounded < 100 else 0}f}"


def size(count: int) -> str:
    """In a unit that leaves two digits or more: `2.70 GB`, `10.3 MB`, `8.2 kB`, `812 B`."""
    if count >= 1e8:
        return f"{count / 1e9:,.2f} GB"
    if count >= 1e5:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e3:.1f} kB" if count >= 1e3 else f"{count} B"


def rough_span(hours: float) -> str:
    """For estimates: `14 hours`, `1.5 hours`, `25 minutes`, `40 seconds`, `3.2 days`."""
    if hours < 1 / 30:
        return f"{max(1, round(hours * 3600))} seconds"
    if hours < 1:
        return f"{round(hours * 60)} minutes"
    if hours < 10:
        return f"{hours:.1f} hours"
    return f"{hours:.0f} hours" if hours < 72 else f"{hours / 24:.1f} days"


def clock_time(at: datetime) -> str:
    return f"{at:%a %d %b %H:%M} UTC"


def problem(found: Problem) -> str:
    """The one shape of an error: what, where, and how to mend it."""
    head = f"error[{found.code}]: {found.message}"
    where = f"  {found.where}" if found.where else ""
    fix = f"\n  fix: {found.fix}" if found.fix else ""
    return f"{head}{where}{fix}"


def failure(error: LaunchError) -> str:
    """An error as a person reads it, its exit code at the end."""
    problems: Sequence[Problem] = error.problems if isinstance(error, InputError) else ()
    body = "\n".join(problem(p) for p in problems) if problems else f"error: {error}"
    return f"{body}\n  exit {error.exit_code}"
