"""`launch report --estimates`: promises against what became of them, and what the next ones learn from that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.core.runs.state import RunState
from tests.cli.conftest import Launch
from tests.finished import a_finished_run

TRAIN = """\
name: poems
run: echo trained
gpus: {CPU: 1}
providers: [local]
workload: {steps: 3600, step_seconds: {CPU: 1}, setup_seconds: 1}
tags: {team: nlp}
"""
OWN = "own: [{name: box, gpu: CPU, gpus: 1, usd_per_hour: 100}]\n"


def known(monkeypatch: pytest.MonkeyPatch, *states: RunState) -> None:
    monkeypatch.setattr("launcher.wiring.Wiring.states", lambda _: states)


def of_nlp(count: int, **fields: Any) -> list[RunState]:
    return [a_finished_run(tags={"team": "nlp"}, step_seconds=11.0, **fields) for _ in range(count)]


def test_without_a_flag_it_says_what_there_is(launch: Launch) -> None:
    done = launch("report")

    assert done.code == 2
    assert "error[L132]" in done.err
    assert "fix: launch report --estimates" in done.err


def test_without_runs_it_says_so(launch: Launch) -> None:
    done = launch("report", "--estimates")

    assert done.code == 0
    assert "no run is scored yet" in done.out


def test_a_team_that_nobody_is_of_is_an_error_that_names_the_others(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(monkeypatch, *of_nlp(1))

    done = launch("report", "--estimates", "--team", "npl")

    assert done.code == 2
    assert "error[L133]: no run is of team npl  --team" in done.err
    assert "fix: write one of nlp" in done.err


def test_the_table_has_a_line_for_each_team_and_source_and_one_for_each_run(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(monkeypatch, *of_nlp(6), a_finished_run(tags={"team": "vision"}), *of_nlp(1, outcome="cancelled"))

    lines = launch("report", "--estimates").out.splitlines()

    (nlp,) = (line for line in lines if line.startswith("nlp"))
    assert "−53.8 % ± 0.0" in nlp
    assert "0 of 6, 0 %" in nlp
    assert "recalibrated by 6 runs of team nlp: +6.6 %" in nlp
    (vision,) = (line for line in lines if line.startswith("vision"))
    assert "%" not in vision.partition("recalibrated")[0]
    assert "0 of 1" in vision
    assert sum("outside" in line for line in lines) == 7
    assert lines[-1] == " finished, not scored: 1 × it ended cancelled"


def test_one_team_alone_may_be_asked_for(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, *of_nlp(6), a_finished_run(tags={"team": "vision"}))

    found = json.loads(launch("report", "--estimates", "--team", "vision", "-o", "json").out)

    assert [run["team"] for run in found["runs"]] == [group["team"] for group in found["groups"]] == ["vision"]


def test_a_machine_reads_the_same_and_no_rate_of_few_runs(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, *of_nlp(6), a_finished_run(tags={"team": "vision"}), *of_nlp(1, outcome="cancelled"))

    found = json.loads(launch("report", "--estimates", "-o", "json").out)

    assert (found["schema"], found["currency"], found["promised_coverage"]) == (
        "launch/report-estimates/v1",
        "USD",
        0.8,
    )
    nlp, vision = found["groups"]
    assert nlp["cost"]["bias"] == pytest.approx(3 / 6.5 - 1)
    assert nlp["recalibration"]["num_runs"] == 6
    assert (vision["cost"]["num_runs"], vision["cost"]["bias"], vision["cost"]["coverage"]) == (1, None, None)
    run = found["runs"][0]
    assert (run["promised_usd"]["p50"], run["cost_usd"], run["is_cost_inside"]) == ("6.50", "3.00", False)
    assert {"cause": "step time", "words": "step time +10 %", "usd": "0.50"} in run["drift"]
    assert found["unscored"] == [{"run_id": "digits-20260105-ab12", "reason": "it ended cancelled"}]


def test_simulated_runs_stand_apart(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, *of_nlp(1), *of_nlp(1, simulated=True, time_scale=60.0))

    out = launch("report", "--estimates").out

    assert "declared (simulated × 60)" in out
    assert "digits-20260105-ab12 (simulated)" in out


def test_the_next_plan_of_the_team_says_by_what_it_is_recalibrated(
    launch: Launch, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "pricing.yaml").write_text(OWN)
    (folder / "train.yaml").write_text(TRAIN)
    raw = json.loads(launch("plan", "train.yaml", "-o", "json").out)
    known(monkeypatch, *of_nlp(7))

    shown, later = launch("plan", "train.yaml").out, json.loads(launch("plan", "train.yaml", "-o", "json").out)

    assert "basis: declared: workload.step_seconds, 1×CPU; recalibrated by 7 runs of team nlp: +6.9 %" in shown
    before, after = (float(made["ranked"][0]["parts"]["steps"]) for made in (raw, later))
    assert after / before == pytest.approx(1.1**0.7, rel=0.01)


def test_a_submitted_run_keeps_what_its_promise_rests_on(
    launch: Launch, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.api.supervise", lambda *_, **__: None)
    (folder / "pricing.yaml").write_text(OWN)
    (folder / "train.yaml").write_text(TRAIN)

    launch("train.yaml", "--approve", "200", "--detach")

    (run,) = json.loads(launch("status", "-o", "json").out)["runs"]
    step, expected = run["estimate"]["step"], run["estimate"]["expected"]
    assert (step["gpu"], step["source"], step["seconds"], step["factor80"]) == ("CPU", "declared", 1.0, 1.05)
    assert (step["shift"], step["width"]) == (1.0, 1.0)
    assert (expected["preemptions"], expected["restart_hours"], expected["fallback_hours"]) == (0.0, 0.0, 0.0)
    total = sum(round(100 * float(usd)) for usd in expected["parts_usd"].values())
    assert total == round(100 * float(run["estimate"]["cost_usd"]["p50"]))
