"""What `launch status RUN` and the followed run say of checkpoints."""

from __future__ import annotations

import io
from decimal import Decimal
from typing import Any

import pytest
from rich.console import Console

from launcher.core.runs.events import (
    AttemptEnded,
    AttemptReady,
    AttemptRefused,
    AttemptRequested,
    AttemptStarted,
    CheckpointCommitted,
    EndRequested,
    Event,
    HandedOver,
    RunWaits,
    TrainingResumed,
)
from launcher.core.runs.state import RunState
from launcher.render.live import sentence
from launcher.render.status import run_json, show_run
from launcher.render.words import Money, size
from tests.builders import a_placement, a_state, a_submit, after, an_offer, entries
from tests.finished import a_finished_run, a_promise

STORED = {"stored_bytes": 2_700_000_000, "kept": 3}


def a_run(commit: dict[str, Any], **submit: Any) -> RunState:
    plain: dict[str, Any] = {"step": 1000, "name": "step-1000-a1", "bytes": 10**9, "seconds": 0.1, "segment": 1}
    return a_state(
        a_submit(**submit),
        AttemptRequested(attempt=1, placement=a_placement(usd_per_hour="36"), why="test"),
        AttemptStarted(attempt=1, started_at=after(60)),
        TrainingResumed(attempt=1, step=0),
        CheckpointCommitted(attempt=1, **plain | commit),
    )


def shown(state: RunState) -> str:
    out = io.StringIO()
    show_run(Console(file=out, width=140), state, after(600), Money(), supervised=True)
    return out.getvalue()


def test_what_is_kept_is_shown_with_its_monthly_price_and_where_that_comes_from() -> None:
    price = {"storage_usd_per_gb_hour": Decimal("0.023") / 730, "storage_basis": "aws's standard class"}

    assert "3 kept, 2.70 GB, $0.06/month (aws's standard class)" in shown(a_run(STORED, **price))


def test_a_price_that_nobody_knows_is_not_shown_as_one() -> None:
    price = {"storage_usd_per_gb_hour": Decimal("0.07") / 730, "storage_basis": "unknown", "storage_assumed": True}
    state = a_run(STORED, **price)

    assert "3 kept, 2.70 GB, price unknown; $0.19/month at most known" in shown(state)
    assert run_json(state, after(600), supervised=True)["stored"]["usd_per_month"] is None


@pytest.mark.parametrize(("basis", "said"), [("on this machine's disk", "on this machine's disk"), ("", "unknown")])
def test_no_price_is_never_0_dollars(basis: str, said: str) -> None:
    text = shown(a_run(STORED, storage_basis=basis))

    line = next(line for line in text.splitlines() if "3 kept" in line)
    assert said in line
    assert "$" not in line


def test_of_an_older_trainer_only_the_newest_checkpoint_is_shown() -> None:
    state = a_run({})

    assert "Checkpoint  step 1,000" in shown(state)
    assert "kept" not in shown(state)
    assert run_json(state, after(600), supervised=True)["stored"] is None


def test_a_machine_reads_the_same_numbers() -> None:
    state = a_run(STORED, storage_usd_per_gb_hour=Decimal("0.023") / 730, storage_basis="aws's standard class")

    found = run_json(state, after(600), supervised=True)["stored"]

    assert found == {
        "checkpoints": 3,
        "bytes": 2_700_000_000,
        "usd_per_month": "0.062100",
        "basis": "aws's standard class",
    }


def test_steps_of_damaged_checkpoints_are_shown_with_their_price() -> None:
    resumed = TrainingResumed(attempt=1, step=900, resumed_from="step-900-a1", lost_steps=100)
    state = a_run({})
    (entry,) = entries(resumed, first_seq=6)

    # 100 steps of 10 s at $36/h
    text = sentence(entry, state, Money())

    assert text == "attempt 1: resumed at step 900, 100 steps ($10.00) of damaged checkpoints are lost"


@pytest.mark.parametrize(
    ("count", "text"),
    [(2_700_000_000, "2.70 GB"), (10_332_895, "10.3 MB"), (8192, "8.2 kB"), (812, "812 B"), (10**12, "1,000.00 GB")],
)
def test_a_size_has_the_unit_that_leaves_digits(count: int, text: str) -> None:
    assert size(count) == text


def told(state: RunState) -> str:
    out = io.StringIO()
    show_run(Console(file=out, width=400), state, after(9000), Money(), supervised=True)
    return next(line for line in out.getvalue().splitlines() if line.startswith(" Estimate"))


def test_a_finished_run_says_what_was_promised_what_it_came_to_and_why() -> None:
    state = a_finished_run((0, 60, "preempted"), (60, 300, "completed"), promise=a_promise(usd="7"), step_seconds=11.2)

    assert told(state) == (
        " Estimate  was $7.00 ($6.30 – $7.70) · came to $6.00 (−14.3 %, outside the 80 % range): idle time: +$1.50 · "
        "0.6 more preemptions than expected (1, not 0.4), restarts of 10 min instead of 3 min: +$1.00 · "
        "step time +12 %: +$0.60 · other −$4.10"
    )


def test_a_run_that_was_stopped_is_not_measured_against_its_promise() -> None:
    stopped = a_finished_run(outcome="cancelled")

    assert told(stopped).endswith(" · not scored: it ended cancelled")
    assert run_json(stopped, after(9000), supervised=True)["drift"] is None


def test_a_running_run_says_nothing_of_its_promise_yet() -> None:
    assert "came to" not in shown(a_run({}))
    assert "not scored" not in shown(a_run({}))


ASKED = AttemptRequested(
    attempt=2, placement=a_placement(an_offer(zone="b"), usd_per_hour="20"), why="1.2 h of slack", relieves=1
)
THERE = AttemptStarted(attempt=2, started_at=after(240))
READY = AttemptReady(attempt=2)
ENDING = EndRequested(attempt=1, cause="handed_over", why="attempt 2 at aws b takes over")
DONE = AttemptEnded(attempt=1, outcome="stopped", detail="saved and ended when asked", has_exited=True)


def beside(*more: Event) -> RunState:
    """A run that trains, and what became of the second machine so far."""
    first = AttemptRequested(attempt=1, placement=a_placement(usd_per_hour="36"), why="test")
    start = AttemptStarted(attempt=1, started_at=after(60))
    return a_state(first, start, TrainingResumed(attempt=1, step=0), ASKED, *more)


SECOND: dict[str, tuple[list[Event], str, str | None]] = {
    "asked for": ([], "running", "attempt 2 on aws b, $20.00/h, is asked for, to take over"),
    "set up": ([THERE], "running", "attempt 2 on aws b, $20.00/h, is being started beside it"),
    "ready": ([THERE, READY], "running", "attempt 2 on aws b, $20.00/h, waits to take over"),
    "waited for": ([THERE, READY, ENDING], "handing over", "attempt 2 on aws b, $20.00/h, waits to take over"),
    "at work": ([THERE, READY, DONE, HandedOver(attempt=2), TrainingResumed(attempt=2, step=5)], "running", None),
}


@pytest.mark.parametrize(("more", "word", "line"), SECOND.values(), ids=SECOND.keys())
def test_a_second_machine_is_said_to_be(more: list[Event], word: str, line: str | None) -> None:
    state = beside(*more)

    said = [text.strip() for text in shown(state).splitlines() if "Second machine" in text]
    assert said == ([f"Second machine  {line}"] if line else [])
    assert run_json(state, after(600), supervised=True)["state"] == word


def test_a_machine_reads_which_attempt_waits_for_which() -> None:
    found = run_json(beside(THERE, READY), after(600), supervised=True)

    assert found["incoming"] == 2
    assert [a["relieves"] for a in found["attempts"]] == [None, 1]
    assert [a["ready_at"] for a in found["attempts"]] == [None, after(360).isoformat()]
    assert [a["handed_over_at"] for a in found["attempts"]] == [None, None]


def test_a_followed_run_tells_the_handover_step_by_step() -> None:
    events = [ASKED, READY, HandedOver(attempt=2)]

    said = [sentence(entry, beside(THERE), Money()) for entry in entries(*events, first_seq=9)]

    assert said == [
        "attempt 2: aws b 8×H100 spot beside attempt 1 — 1.2 h of slack",
        "attempt 2: set up, waits to take over from attempt 1",
        "attempt 2: takes over from attempt 1",
    ]


def decision(state: RunState) -> list[str]:
    return [text.strip() for text in shown(state).splitlines() if text.startswith(" Decision")]


def test_the_newest_decision_is_shown_with_its_reason() -> None:
    refused = AttemptRefused(attempt=2, reason="no_capacity", detail="none")
    waits = a_state(RunWaits(why="no place has capacity"), RunWaits(why="spot is expected back in time"))

    assert decision(beside()) == ["Decision  attempt 2: 1.2 h of slack"]
    assert decision(beside(refused)) == ["Decision  attempt 1: test"]
    assert decision(waits) == ["Decision  to wait, since Mon 05 Jan 12:01 UTC: spot is expected back in time"]
    assert decision(a_finished_run()) == []


def test_a_machine_reads_since_when_and_what_for_a_run_waits() -> None:
    waits = a_state(RunWaits(why="no place has capacity"))

    found = [run_json(state, after(600), supervised=True)["pause"] for state in (waits, beside())]

    assert found == [{"since": after(60).isoformat(), "why": "no place has capacity"}, None]
    (told,) = (sentence(entry, waits, Money()) for entry in entries(RunWaits(why="no place has capacity")))
    assert told == "waits — no place has capacity"
