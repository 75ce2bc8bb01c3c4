"""What stands where a number would, when there is none: never 0, never a guess."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Unknown:
    """`reason` says what is missing and what to do; the table of refusals shows it."""

    reason: str
