"""Lengths of time in words."""

from __future__ import annotations


def span(seconds: float) -> str:
    """Two units: `14 h 05 m`, `3 m 20 s`, `2 d 4 h`."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    minutes, rest = divmod(total, 60)
    if minutes < 60:
        return f"{minutes} m {rest:02d} s"
    hours, minutes = divmod(round(total / 60), 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} m"
    return f"{hours // 24} d {hours % 24} h"
