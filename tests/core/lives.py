"""Attempts as the ledger tells of them, for tests of what they saw: a refusal, or a life from one hour to another."""

from __future__ import annotations

from typing import Any

from launcher.core.offers import Placement
from launcher.core.runs.events import (
    AttemptEnded,
    AttemptRefused,
    AttemptReleased,
    AttemptRequested,
    AttemptStarted,
    Event,
    TrainingResumed,
)
from tests.builders import a_placement, after, an_offer
from tests.core.futures import on_demand

A, B, FIRM = a_placement(an_offer(zone="a")), a_placement(an_offer(zone="b")), on_demand().placement
HOUR = 3600.0


def refused(number: int, placement: Placement = A) -> list[Event]:
    """Two entries."""
    return [
        AttemptRequested(attempt=number, placement=placement, why="cheapest"),
        AttemptRefused(attempt=number, reason="no_capacity", detail="full"),
    ]


def lived(number: int, since: float, until: float, outcome: Any, placement: Placement = A, **end: Any) -> list[Event]:
    """Five entries; from one hour to another."""
    return [
        AttemptRequested(attempt=number, placement=placement, why="cheapest spot"),
        AttemptStarted(attempt=number, started_at=after(since * HOUR)),
        TrainingResumed(attempt=number, step=end.pop("first", 0)),
        AttemptEnded(attempt=number, outcome=outcome, detail="", gone_at=after(until * HOUR), **end),
        AttemptReleased(attempt=number),
    ]
