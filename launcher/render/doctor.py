"""What `launch doctor` found, a line for each check and its fix on the next one; and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from launcher.core.doctor.checkup import Check, State, exit_code

SCHEMA = "launch/doctor/v1"
_STYLES: dict[State, str] = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}
_WIDTH = max(len(state) for state in _STYLES)


def show_checks(console: Console, checks: Sequence[Check]) -> None:
    """In the order in which they were asked; the words alone say what the colours say."""
    names = min(32, max((len(check.name) for check in checks), default=0))
    for check in checks:
        line = Text(f" {check.state:{_WIDTH}}", style=_STYLES[check.state])
        line.append(f"  {check.name:{names}}  {check.found}", style="default")
        console.print(line, highlight=False, soft_wrap=True)
        if check.fix:
            console.print(Text(f" {'':{_WIDTH}}  fix: {check.fix}"), highlight=False, soft_wrap=True)
    console.print(f" {summary(checks)}", highlight=False, soft_wrap=True)


def summary(checks: Sequence[Check]) -> str:
    """`12 ok, 1 warning, 2 failed, 1 skipped`."""
    counts = Counter(check.state for check in checks)
    return ", ".join(
        f"{counts[state]} {state}{'s' if state == 'warning' and counts[state] > 1 else ''}"
        for state in _STYLES
        if counts[state]
    )


def doctor_json(checks: Sequence[Check]) -> dict[str, Any]:
    """`launch/doctor/v1`."""
    counts = Counter(check.state for check in checks)
    return {
        "schema": SCHEMA,
        "exit_code": exit_code(checks),
        "counts": {state: counts[state] for state in _STYLES},
        "checks": [
            {
                "name": check.name,
                "state": check.state,
                "found": check.found,
                "fix": check.fix or None,
                "is_credentials": check.is_credentials,
            }
            for check in checks
        ],
    }
