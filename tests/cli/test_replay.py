"""`launch replay`: of a plan, of a run, of a trace."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from launcher import api
from launcher.adapters.trace_file import load_trace
from launcher.cli.common import wiring
from launcher.core.replays.rivals import OURS, POLICIES
from launcher.core.runs.events import AttemptEnded, AttemptReleased, AttemptRequested, AttemptStarted, RunFinished
from launcher.core.runs.events import TrainingResumed as Resumed
from tests.cli.conftest import Launch

REPOSITORY = Path(__file__).parents[2]
H100 = str(REPOSITORY / "configs" / "single-h100-spot.yaml")
DEMO = str(REPOSITORY / "configs" / "local-demo.yaml")
TRACE = str(REPOSITORY / "examples" / "replay" / "fortnight.csv")


def replayed(launch: Launch, *arguments: str) -> Any:
    done = launch("replay", *arguments, "-o", "json")
    assert (done.code, done.err) == (0, "")
    return json.loads(done.out)


def test_a_plan_is_replayed_under_all_policies_without_leaving_anything_behind(launch: Launch, folder: Path) -> None:
    found = replayed(launch, H100, "--futures", "5")

    assert [p["policy"] for p in found["policies"]] == list(POLICIES)
    assert (found["name"], found["simulated"], found["deadline_hours"]) == ("llama8b-sft", False, 36.0)
    assert list(folder.parent.rglob("ledger.db*")) == []
    assert list(folder.iterdir()) == []


def test_the_same_seed_gives_the_same_and_another_one_does_not(launch: Launch) -> None:
    of_seed = [replayed(launch, DEMO, "--futures", "9", "--seed", seed)["policies"] for seed in ("1", "1", "2")]

    assert of_seed[0] == of_seed[1] != of_seed[2]


def test_a_simulated_market_is_said_to_be_one(launch: Launch) -> None:
    done = launch("replay", DEMO, "--futures", "3", "--policy", "on-demand")

    assert done.code == 0
    assert "char-gpt (simulated)  3 futures" in done.out
    assert "greedy" not in done.out


def test_the_example_of_a_trace_is_played_from_many_starts(launch: Launch) -> None:
    found = replayed(launch, H100, "--trace", TRACE, "--starts", "6", "--policy", "greedy")

    assert found["num_futures"] == 6
    assert "fortnight.csv" in found["weather"]
    assert [p["policy"] for p in found["policies"]] == [OURS, "greedy"]
    assert any(p["preemptions"] > 0 for p in found["policies"])


def test_a_picture_is_written_where_it_is_asked_for(launch: Launch, folder: Path) -> None:
    done = launch("replay", DEMO, "--futures", "3", "--svg", "out.svg", "--currency", "USD")

    assert done.code == 0
    picture = ElementTree.parse(folder / "out.svg").getroot()  # our own
    (about,) = picture.iter("{http://www.w3.org/2000/svg}desc")
    assert len((about.text or "").splitlines()) == len(POLICIES)
    assert launch("replay", DEMO, "--futures", "3", "--svg", "no/such/out.svg").code == 1


def test_decisions_are_explained(launch: Launch) -> None:
    out = launch("replay", DEMO, "--futures", "3", "--explain").out

    assert "spotlaunch, in the future of its median cost" in out
    assert "why" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((DEMO, "--policy", "gredy"), 2, "error[L161]: no policy gredy"),
        ((DEMO, "--trace", "none.csv"), 2, "error[L160]: cannot be read"),
        (("nobody-1",), 102, "no run nobody-1"),
        (("none.yaml",), 2, "error[L100]: no such file"),
        ((DEMO, "--currency", "XXX"), 2, "error[L121]"),
    ],
)
def test_bad_input_is_one_clear_error(launch: Launch, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = launch("replay", *arguments)

    assert done.code == code
    assert message in done.err
    assert done.out == ""


@pytest.fixture
def run(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of half an hour: a machine that was taken after ten minutes, and another one at the same place."""
    monkeypatch.setattr("launcher.api.supervise", lambda *_, **__: None)
    assert launch(DEMO, "--approve", "200", "--detach").code == 0
    wired = wiring()
    (state,) = wired.states()
    spot = next(e for e in api.draft(wired, Path(DEMO)).plan.ranked if e.placement.offer.capacity.value == "spot")
    placement, since = spot.placement, state.submitted_at
    events = [
        (0, AttemptRequested(attempt=1, placement=placement, why="cheapest spot")),
        (1, AttemptStarted(attempt=1, started_at=since + timedelta(minutes=1))),
        (4, Resumed(attempt=1, step=0)),
        (10, AttemptEnded(attempt=1, outcome="preempted", detail="", step=60, step_seconds=6.0)),
        (10, AttemptReleased(attempt=1)),
        (12, AttemptRequested(attempt=2, placement=placement, why="spot again")),
        (12, AttemptStarted(attempt=2, started_at=since + timedelta(minutes=12))),
        (16, Resumed(attempt=2, step=50)),
        (42, AttemptEnded(attempt=2, outcome="completed", detail="", step=300, step_seconds=6.0)),
        (43, AttemptReleased(attempt=2)),
        (43, RunFinished(outcome="succeeded", detail="")),
    ]
    for minutes, event in events:
        wired.ledger.append(state.run_id, [event], after_seq=state.seq, at=since + timedelta(minutes=minutes))
        state = wired.state(state.run_id)
    return state.run_id


def test_a_run_is_replayed_beside_what_it_really_cost(launch: Launch, run: str) -> None:
    found = replayed(launch, run, "--futures", "9")

    actual = found["actual"]
    spent = json.loads(launch("status", run, "-o", "json").out)["spent_usd"]
    assert actual["cost_usd"] == f"{float(spent):.2f}"
    assert (actual["is_finished"], actual["preemptions"], actual["hours"]) == (
        True,
        1,
        pytest.approx(43 / 60, abs=1e-3),
    )
    assert (found["name"], found["deadline_hours"]) == (run, pytest.approx(6.0, abs=1e-3))  # the clock's own seconds
    assert "0.7 place-hours known from its ledger" in found["weather"]
    assert all(p["preemptions"] >= 1 for p in found["policies"] if p["policy"] == "spot-only")


def test_a_runs_own_sentences_are_told_beside_those_of_the_replay(launch: Launch, run: str) -> None:
    out = launch("replay", run[:9], "--futures", "3", "--explain").out

    assert "as it was" in out
    assert "spot again" in out


def test_the_converter_of_the_docs_writes_a_record_that_can_be_read(tmp_path: Path) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "replay.md").read_text(), re.DOTALL)
    public = tmp_path / "us-west-2a_v100_1.json"
    public.write_text(json.dumps({"metadata": {"gap_seconds": 1800}, "data": [1, 1, 0, 2]}))

    done = subprocess.run([sys.executable, "-c", script, str(public)], capture_output=True, text=True, check=True)
    (tmp_path / "t.csv").write_text(done.stdout)

    assert load_trace(tmp_path / "t.csv").records == {"us-west-2a": (True, (1.0, 1.5, 2.0))}
