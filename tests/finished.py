"""Runs that have come to their end, and the promises that they began with."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from launcher.core.offers import Placement
from launcher.core.runs.events import (
    AttemptEnded,
    AttemptReleased,
    AttemptRequested,
    AttemptStarted,
    Event,
    Expected,
    Promise,
    PromisedStep,
    Quantiles,
    RunFinished,
    TrainingResumed,
    UsdQuantiles,
)
from launcher.core.runs.state import RunState
from tests.builders import a_placement, a_spec, a_state, a_submit, after

SPACING_SECONDS = 600.0  # between two entries
EXPECTED = Expected(
    preemptions=0.4,
    restart_hours=0.05,
    usd_per_hour=Decimal(6),
    parts_usd={"steps": Decimal("5.00"), "setup": Decimal("1.00"), "idle": Decimal("0.50")},
)


def a_promise(*, usd: str = "6.50", **fields: Any) -> Promise:
    """10 s a step on an H100, as declared; the range is a tenth to either side."""
    p50 = Decimal(usd)
    plain: dict[str, Any] = {
        "hours": Quantiles(p10=0.5, p50=1, p90=2),
        "cost_usd": UsdQuantiles(p10=p50 * Decimal("0.9"), p50=p50, p90=p50 * Decimal("1.1")),
        "basis": "declared",
        "step": PromisedStep(gpu="H100", source="declared", seconds=10.0, factor80=1.05),
        "expected": EXPECTED,
    }
    return Promise(**plain | fields)


def a_life(
    number: int,
    first: int,
    last: int,
    outcome: str,
    *,
    before: int,
    placement: Placement | None = None,
    step_seconds: float | None = 10.0,
) -> Sequence[Event]:
    """Five entries, ten minutes apart; the machine is billed for forty minutes. `before`: entries of the run so far."""
    return (
        AttemptRequested(attempt=number, placement=placement or a_placement(), why="test"),
        AttemptStarted(attempt=number, started_at=after((before + 1) * SPACING_SECONDS)),
        TrainingResumed(attempt=number, step=first, resumed_from=f"step-{first}" if first else None),
        AttemptEnded(attempt=number, outcome=outcome, detail="", step=last, step_seconds=step_seconds),  # type: ignore[arg-type]
        AttemptReleased(attempt=number),
    )


def a_finished_run(
    *lives: tuple[int, int, str],
    tags: dict[str, str] | None = None,
    promise: Promise | None = None,
    placements: Sequence[Placement] = (),
    step_seconds: float | None = 10.0,
    outcome: str = "succeeded",
    last_words: Sequence[Event] = (),
    **submit: Any,
) -> RunState:
    """A run of 300 steps; each life is `(first step, last step, how it ended)`. One life costs $3 at $6 an hour."""
    events: list[Event] = [a_submit(a_spec(steps=300, tags=tags or {}), promise=promise or a_promise(), **submit)]
    for number, (first, last, how) in enumerate(lives or ((0, 300, "completed"),), start=1):
        placement = placements[number - 1] if placements else None
        events += a_life(number, first, last, how, before=len(events), placement=placement, step_seconds=step_seconds)
    ending = RunFinished(outcome=outcome, detail="")  # type: ignore[arg-type]
    return a_state(*events, *last_words, ending, every_seconds=SPACING_SECONDS)
