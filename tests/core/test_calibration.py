"""How good promises were, and what later estimates learn from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from random import Random
from statistics import mean

import pytest

from launcher.core.estimates.calibration import (
    FEW_RUNS,
    FEWEST_RUNS,
    UNRECORDED,
    Score,
    correction,
    corrections,
    groups,
    review,
    score,
)
from launcher.core.estimates.workload import Correction, StepTime, corrected
from launcher.core.runs.events import PromisedStep, Quantiles, RunReopened, StopRequested, UsdQuantiles
from launcher.core.runs.state import RunState
from launcher.core.unknown import Unknown
from tests.builders import T0, a_spec
from tests.finished import a_finished_run, a_promise

Z80 = 1.2816


def a_score(
    *,
    ln_step: float = 0.0,
    ln_market: float = 0.0,
    market: float = 0.0,
    step: StepTime | None = None,
    team: str | None = "nlp",
    **fields: object,
) -> Score:
    """A run whose steps took exp(`ln_step`) × what was said; `market`: the promised deviation beside theirs."""
    step = step or StepTime(seconds=10.0, factor80=1.05, source="declared", kind="declared")
    shift, width = (step.correction.shift, step.correction.width) if step.correction else (1.0, 1.0)
    ends = math.exp(math.hypot(math.log(step.factor80), Z80 * market))
    plain: dict[str, object] = {
        "run_id": "digits",
        "team": team,
        "source": step.kind,
        "simulated": False,
        "time_scale": 1.0,
        "finished_at": T0,
        "promised_usd": UsdQuantiles(p10=Decimal(100 / ends), p50=Decimal(100), p90=Decimal(100 * ends)),
        "promised_hours": Quantiles(p10=1, p50=2, p90=3),
        "cost_usd": Decimal(100 * math.exp(ln_step + ln_market) / shift),
        "hours": 2.0,
        "step": PromisedStep(
            gpu="H100", source=step.kind, seconds=step.seconds, factor80=step.factor80, shift=shift, width=width
        ),
        "step_ratio": math.exp(ln_step) / shift,
    }
    return Score(**plain | fields)  # type: ignore[arg-type]


def learnt(scores: Sequence[Score], team: str | None = "nlp") -> Correction:
    found = correction(scores, source="declared", team=team)
    assert found is not None
    return found


def test_a_run_that_went_as_planned_is_scored() -> None:
    found = score(a_finished_run(tags={"team": "nlp"}, step_seconds=11.0))

    assert isinstance(found, Score)
    assert (found.team, found.source, found.simulated) == ("nlp", "declared", False)
    assert found.cost_usd == Decimal("3.00")
    assert found.cost_ratio == pytest.approx(3.00 / 6.50)
    assert not found.is_cost_inside
    assert found.hours == pytest.approx(1.0)
    assert found.hours_ratio == pytest.approx(1.0)
    assert found.is_hours_inside
    assert found.step_ratio == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (a_finished_run(outcome="cancelled"), "it ended cancelled"),
        (a_finished_run(outcome="out_of_budget"), "it ended out of budget"),
        (a_finished_run(outcome="failed"), "it ended failed"),
        (a_finished_run(last_words=[StopRequested(by="ada")]), "it was asked to stop"),
        (
            a_finished_run(last_words=[RunReopened(approved_usd=Decimal(200), by="ada")]),
            "it was reopened with another approval",
        ),
        (replace(a_finished_run(), approved_usd=Decimal(200)), "it was reopened with another approval"),
        (replace(a_finished_run(), outcome=None), "it has not ended"),
    ],
)
def test_a_run_that_somebody_changed_or_ended_says_nothing_of_its_estimate(state: RunState, reason: str) -> None:
    assert score(state) == Unknown(reason)


def test_the_promise_of_an_older_launcher_is_scored_and_teaches_nothing() -> None:
    old = a_finished_run(promise=a_promise(step=None, expected=None))

    found = score(old)

    assert isinstance(found, Score)
    assert (found.source, found.step_ratio) == (UNRECORDED, None)
    assert corrections(a_spec(), [old] * 10) == {}


def test_where_nothing_is_measured_the_step_time_stays_unknown() -> None:
    found = score(a_finished_run(step_seconds=None))

    assert isinstance(found, Score)
    assert found.step_ratio is None


def test_a_team_and_a_source_have_their_own_figures() -> None:
    ten_up = [a_score(ln_step=math.log(1.1), team="nlp")] * 3
    twenty_down = [a_score(ln_step=math.log(0.8), team="nlp")] * 3
    vision = [a_score(team="vision"), a_score(team=None)]

    found = {(g.team, g.source): g for g in groups([*ten_up, *twenty_down, *vision])}

    nlp = found["nlp", "declared"].cost
    assert nlp is not None
    assert (nlp.num_runs, nlp.num_inside) == (6, 0)
    assert nlp.bias == pytest.approx(-0.05)
    assert nlp.mape == pytest.approx(0.15)
    assert nlp.bias_error == pytest.approx(0.15 * math.sqrt(6 / 5) / math.sqrt(6))
    assert {(team, g.num_runs) for (team, _), g in found.items()} == {("nlp", 6), ("vision", 1), (None, 1)}


def test_rates_of_few_runs_are_not_sure() -> None:
    few, enough = (groups([a_score()] * count)[0].cost for count in (FEW_RUNS - 1, FEW_RUNS))

    assert few is not None
    assert enough is not None
    assert (few.is_enough, enough.is_enough) == (False, True)


def test_what_cost_nothing_has_no_ratio() -> None:
    free = UsdQuantiles(p10=Decimal(0), p50=Decimal(0), p90=Decimal(0))

    found = groups([a_score(promised_usd=free, cost_usd=Decimal(0))])[0]

    assert found.cost is None
    assert found.hours is not None


def test_simulated_runs_are_scored_apart_and_teach_only_simulated_ones() -> None:
    slow = {"simulated": True, "time_scale": 60.0, "tags": {"team": "nlp"}, "step_seconds": 13.0}
    states = [a_finished_run(**slow) for _ in range(6)]  # type: ignore[arg-type]
    simulated = a_spec(tags={"team": "nlp"}, market={"seed": 1, "time_scale": 60})

    found = review([*states, a_finished_run(tags={"team": "nlp"})], team=None)

    assert [(g.simulated, g.num_runs) for g in found.groups] == [(False, 1), (True, 6)]
    assert corrections(a_spec(tags={"team": "nlp"}), states) == {}
    assert corrections(simulated, states)["declared"].shift == pytest.approx(1.3 ** (6 / 9))


def test_a_review_says_of_every_finished_run_what_it_said_or_why_it_says_nothing() -> None:
    states = [
        a_finished_run(tags={"team": "nlp"}),
        a_finished_run(tags={"team": "nlp"}, outcome="cancelled"),
        a_finished_run(tags={"team": "vision"}),
        replace(a_finished_run(), outcome=None),
    ]

    found = review(states, team="nlp")

    assert [s.team for s, _ in found.runs] == ["nlp"]
    assert list(found.unscored.values()) == ["it ended cancelled"]
    assert [g.team for g in found.groups] == ["nlp"]


def test_fewer_than_three_runs_teach_nothing() -> None:
    assert correction([a_score(ln_step=0.5)] * (FEWEST_RUNS - 1), source="declared", team="nlp") is None
    assert correction([], source="declared", team=None) is None


def test_runs_of_a_few_minutes_teach_nothing() -> None:
    short = a_score(ln_step=0.3, promised_hours=Quantiles(p10=0.1, p50=0.2, p90=0.3))

    assert correction([short] * 10, source="declared", team="nlp") is None


def test_a_team_with_few_runs_learns_from_all_teams() -> None:
    others = [a_score(ln_step=0.1, team="vision")] * 8
    few, enough = ([a_score(ln_step=-0.1, team="nlp")] * count for count in (FEW_RUNS - 1, FEW_RUNS))

    assert learnt([*few, *others]).team is None
    assert learnt([*few, *others]).shift > 1
    assert learnt([*enough, *others]).team == "nlp"
    assert learnt([*enough, *others]).shift < 1


def test_a_source_learns_nothing_from_another() -> None:
    assert correction([a_score(ln_step=0.3)] * 9, source="catalogue", team="nlp") is None


def test_few_runs_move_the_estimate_little_and_many_nearly_all_the_way() -> None:
    shifts = [learnt([a_score(ln_step=0.1)] * count).shift for count in (3, 7, 27)]

    assert shifts == pytest.approx([math.exp(0.1 * share) for share in (3 / 6, 7 / 10, 27 / 30)])


def test_a_step_time_in_the_wrong_unit_does_not_move_the_others() -> None:
    found = learnt([*[a_score()] * 6, a_score(ln_step=math.log(1000))])

    assert found.shift == 1.0
    assert 1.05**found.width < 1.5


def test_a_recalibrated_estimate_that_comes_true_stays_as_it_is() -> None:
    """Runs are measured against their source: against the corrected promise they would show no error, and undo it."""
    before = learnt([a_score(ln_step=0.1)] * 30)
    step = corrected(StepTime(seconds=10.0, factor80=1.05, source="declared", kind="declared"), before)

    again = learnt([a_score(ln_step=0.1, step=step)] * 30)

    assert step.seconds == pytest.approx(10 * before.shift)
    assert again.shift == pytest.approx(before.shift)
    assert again.width == pytest.approx(before.width)


def test_a_market_that_is_as_wild_as_promised_does_not_widen_the_step_time() -> None:
    luck = Random(5)
    wild = [a_score(ln_step=luck.gauss(0, 0.038), ln_market=luck.gauss(0, 0.2), market=0.25) for _ in range(30)]
    wilder = [replace(s, cost_usd=s.cost_usd * Decimal("0.5" if n % 2 else "2")) for n, s in enumerate(wild)]

    assert learnt(wild).width < 1
    assert learnt(wilder).width > 3


def test_a_range_that_was_too_wide_becomes_narrower() -> None:
    step = StepTime(seconds=10.0, factor80=3.0, source="FLOPs", kind="flops")
    scores = [a_score(ln_step=0.1 * (-1) ** n, step=step) for n in range(20)]

    widths = [correction(scores[:count], source="flops", team="nlp").width for count in (4, 8, 20)]  # type: ignore[union-attr]

    assert all(later < earlier for earlier, later in pairwise([1.0, *widths]))


WORLDS = {  # how far steps are off in the middle and around it, and the market in truth and as promised
    "as promised": (0.0, 0.038, 0.0, 0.0),
    "optimistic and scattered": (0.06, 0.08, 0.0, 0.0),
    "far too optimistic": (0.2, 0.05, 0.0, 0.0),
    "pessimistic": (-0.15, 0.04, 0.0, 0.0),
    "optimistic on a market that is wilder than promised": (0.1, 0.08, 0.2, 0.12),
}


def held_out(world: tuple[float, float, float, float], num_past: int, luck: Random) -> list[Score]:
    """Sixty runs that follow on `num_past`, each of which was estimated with what those before it had taught."""
    bias, deviation, market, promised = world
    past: list[Score] = []

    def a_run() -> Score:
        declared = StepTime(seconds=10.0, factor80=1.05, source="declared", kind="declared")
        step = corrected(declared, correction(past, source="declared", team="nlp"))
        return a_score(ln_step=luck.gauss(bias, deviation), ln_market=luck.gauss(0, market), market=promised, step=step)

    for _ in range(num_past):
        past.append(a_run())
    return [a_run() for _ in range(60)]


@pytest.mark.parametrize("name", WORLDS)
def test_after_twenty_runs_the_ranges_cover_three_quarters_to_nine_tenths_of_the_next_ones(name: str) -> None:
    luck = Random(11)

    raw, later = ([s for _ in range(60) for s in held_out(WORLDS[name], count, luck)] for count in (0, 20))

    coverage = mean(s.is_cost_inside for s in later)
    before, bias = (abs(mean((s.cost_ratio or 0) - 1 for s in scores)) for scores in (raw, later))
    assert 0.75 <= coverage <= 0.9
    assert bias < max(0.01, 0.5 * before)


@pytest.mark.parametrize("name", ["optimistic and scattered", "far too optimistic", "pessimistic"])
def test_five_runs_already_make_a_wrong_source_better(name: str) -> None:
    luck = Random(12)

    raw, later = ([s for _ in range(60) for s in held_out(WORLDS[name], count, luck)] for count in (0, 5))

    assert mean(s.is_cost_inside for s in later) > mean(s.is_cost_inside for s in raw) + 0.2
    assert abs(mean((s.cost_ratio or 0) - 1 for s in later)) < 0.7 * abs(mean((s.cost_ratio or 0) - 1 for s in raw))
