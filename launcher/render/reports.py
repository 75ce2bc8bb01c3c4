"""What `launch report` says: estimates against what became of them, as tables and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from rich.console import Console

from launcher.core.estimates.calibration import FEW_RUNS, Accuracy, Group, Review, Score
from launcher.core.estimates.drift import Cause
from launcher.core.estimates.workload import Correction
from launcher.render.tables import Column, Row, table
from launcher.render.words import Money, simulated

ESTIMATES_SCHEMA = "launch/report-estimates/v1"
MOST_CAUSES = 3  # that a sentence names; the others are in the JSON


def show_estimates(console: Console, review: Review, money: Money) -> None:
    """A line for each team and source, one for each run, and what is not in them."""
    if review.groups:
        console.print(table(console, _group_columns(), [_group_row(group) for group in review.groups]))
        console.print(
            " off: mean of actual / p50 − 1, ± its standard error · error: mean of its size\n"
            f" inside: the 80 % range · –: fewer than {FEW_RUNS} runs are no measure\n",
            highlight=False,
        )
        console.print(table(console, _run_columns(), [_run_row(*run, money) for run in review.runs]))
    else:
        console.print("no run is scored yet: one that went to its success as it was planned is")
    if review.unscored:
        reasons = Counter(review.unscored.values()).most_common()
        console.print(
            f" finished, not scored: {' · '.join(f'{count} × {reason}' for reason, count in reasons)}", highlight=False
        )
    if money.note:
        console.print(f" {money.note}", highlight=False)


def estimates_json(review: Review) -> dict[str, Any]:
    """`launch/report-estimates/v1`: ratios as numbers (0.06: 6 % above the p50), money as decimal strings."""
    return {
        "schema": ESTIMATES_SCHEMA,
        "currency": "USD",
        "promised_coverage": 0.8,
        "groups": [_group_json(group) for group in review.groups],
        "runs": [_run_json(score, causes) for score, causes in review.runs],
        "unscored": [{"run_id": run_id, "reason": reason} for run_id, reason in review.unscored.items()],
    }


def verdict(score: Score, money: Money) -> str:
    """`came to $27.10 (+8.4 %, inside the 80 % range)`."""
    off = "" if score.cost_ratio is None else f"{_percent(score.cost_ratio - 1)}, "
    return f"came to {money.exact(score.cost_usd)} ({off}{_inside(score.is_cost_inside)} the 80 % range)"


def drift_words(causes: Sequence[Cause], money: Money) -> str:
    """The largest causes with their dollars; what the others explain is counted among "other"."""
    named = [cause for cause in causes if cause.name != "other"]
    shown, rest = named[:MOST_CAUSES], [*named[MOST_CAUSES:], *(c for c in causes if c.name == "other")]
    other = sum((cause.usd for cause in rest if cause.usd is not None), Decimal(0))
    words = [c.words if c.usd is None else f"{c.words}: {_signed(c.usd, money)}" for c in shown]
    return " · ".join([*words, f"other {_signed(other, money)}"] if other else words) or "as promised"


def drift_json(causes: Iterable[Cause]) -> list[dict[str, Any]]:
    return [{"cause": c.name, "words": c.words, "usd": None if c.usd is None else str(c.usd)} for c in causes]


def _group_columns() -> Sequence[Column]:
    return (
        Column("team"),
        Column("step time from"),
        Column("runs", "right"),
        Column("cost off", "right"),
        Column("error", "right", drop=3),
        Column("inside", "right"),
        Column("time off", "right", drop=2),
        Column("error", "right", drop=4),
        Column("inside", "right", drop=2),
        Column("next estimates", drop=1, folds=True),
    )


def _group_row(group: Group) -> Row:
    source = group.source + (f" (simulated × {group.time_scale:g})" if group.simulated else "")
    cells = (
        group.team or "–",
        source,
        str(group.num_runs),
        *_accuracy_cells(group.cost),
        *_accuracy_cells(group.hours),
        group.correction.words if group.correction else "as their source says",
    )
    return cells, ""


def _accuracy_cells(found: Accuracy | None) -> tuple[str, str, str]:
    if found is None:
        return "–", "–", "–"
    inside = f"{found.num_inside} of {found.num_runs}"
    if not found.is_enough or found.bias_error is None:
        return "–", "–", inside
    bias = f"{_percent(found.bias)} ± {100 * found.bias_error:.1f}"
    return bias, f"{100 * found.mape:.1f} %", f"{inside}, {100 * found.num_inside / found.num_runs:.0f} %"


def _run_columns() -> Sequence[Column]:
    return (
        Column("run"),
        Column("promised", "right"),
        Column("80 % range", "right", drop=1),
        Column("came to", "right"),
        Column("off", "right"),
        Column("", drop=2),
        Column("why", folds=True),
    )


def _run_row(score: Score, causes: Sequence[Cause], money: Money) -> Row:
    promised = score.promised_usd
    cells = (
        score.run_id + simulated(score.simulated),
        money.about(promised.p50),
        f"{money.about(promised.p10)} – {money.about(promised.p90)}",
        money.exact(score.cost_usd),
        "–" if score.cost_ratio is None else _percent(score.cost_ratio - 1),
        _inside(score.is_cost_inside),
        drift_words(causes, money),
    )
    return cells, ""


def _group_json(group: Group) -> dict[str, Any]:
    return {
        "team": group.team,
        "source": group.source,
        "simulated": group.simulated,
        "time_scale": group.time_scale,
        "num_runs": group.num_runs,
        "cost": _accuracy_json(group.cost),
        "hours": _accuracy_json(group.hours),
        "recalibration": _correction_json(group.correction),
    }


def _accuracy_json(found: Accuracy | None) -> dict[str, Any] | None:
    """Rates of few runs are `null`: nobody should plot them as if they were sure."""
    if found is None:
        return None
    return {
        "num_runs": found.num_runs,
        "num_inside": found.num_inside,
        "bias": found.bias if found.is_enough else None,
        "bias_standard_error": found.bias_error if found.is_enough else None,
        "mape": found.mape if found.is_enough else None,
        "coverage": found.num_inside / found.num_runs if found.is_enough else None,
    }


def _correction_json(found: Correction | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"shift": found.shift, "width": found.width, "num_runs": found.num_runs, "team": found.team}


def _run_json(score: Score, causes: Sequence[Cause]) -> dict[str, Any]:
    hours = score.promised_hours
    return {
        "run_id": score.run_id,
        "team": score.team,
        "source": score.source,
        "simulated": score.simulated,
        "finished_at": score.finished_at.isoformat(),
        "promised_usd": score.promised_usd.model_dump(mode="json"),
        "cost_usd": str(score.cost_usd),
        "cost_ratio": score.cost_ratio,
        "is_cost_inside": score.is_cost_inside,
        "promised_hours": hours.model_dump(mode="json"),
        "hours": score.hours,
        "hours_ratio": score.hours_ratio,
        "is_hours_inside": score.is_hours_inside,
        "step_ratio": score.step_ratio,
        "drift": drift_json(causes),
    }


def _inside(is_inside: bool) -> str:
    return "inside" if is_inside else "outside"


def _percent(error: float) -> str:
    return f"{100 * error:+.1f} %".replace("-", "−")


def _signed(usd: Decimal, money: Money) -> str:
    return f"{'+' if usd > 0 else ''}{money.exact(usd)}"
