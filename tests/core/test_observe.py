"""From what machine and trainer show to the events of the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from launcher.core.offers import Capacity
from launcher.core.runs.events import (
    AttemptEnded,
    AttemptReady,
    AttemptRequested,
    AttemptStarted,
    CheckpointCommitted,
    Event,
    HandedOver,
    NoticeReceived,
    ProgressReported,
    TrainingResumed,
)
from launcher.core.runs.journal import (
    EndReason,
    JournalLine,
    TrainerCommitted,
    TrainerEnded,
    TrainerNoticed,
    TrainerStarted,
    TrainerStepped,
)
from launcher.core.runs.machine import Phase
from launcher.core.runs.observe import REPORT_SECONDS, Patience, observe
from launcher.core.runs.state import Attempt
from tests.builders import a_placement, a_state, after, an_offer

RUNNING = Phase(kind="running", started_at=after(60))
GONE = Phase(kind="gone", started_at=after(60), gone_at=after(900))
STARTED = TrainerStarted(at=after(120), segment=1, step=0)
NOTICED = TrainerNoticed(at=after(300), segment=3, source="ec2", seconds_left=119)


def requested(capacity: Capacity = Capacity.SPOT) -> AttemptRequested:
    return AttemptRequested(attempt=1, placement=a_placement(an_offer(capacity=capacity)), why="cheapest")


def an_attempt(*more: Event, capacity: Capacity = Capacity.SPOT) -> Attempt:
    """Requested at second 60, its machine seen at 120; then `more`, one a minute."""
    return a_state(requested(capacity), AttemptStarted(attempt=1, started_at=after(60)), *more).attempts[0]


def stepped(step: int, *, at: float, segment: int = 2) -> TrainerStepped:
    return TrainerStepped(at=after(at), segment=segment, step=step, step_seconds=10.0, metrics={"loss": 0.5})


def committed(step: int, *, at: float, segment: int = 2, **fields: Any) -> TrainerCommitted:
    plain: dict[str, Any] = {"step": step, "name": f"step-{step}-a1", "bytes": 10**9, "seconds": 5}
    return TrainerCommitted(at=after(at), segment=segment, **plain | fields)


def ended(reason: EndReason, *, step: int = 30) -> TrainerEnded:
    return TrainerEnded(at=after(400), segment=4, reason=reason, step=step, step_seconds=9.5)


def seen(attempt: Attempt, phase: Phase, *lines: JournalLine, at: float = 1000, **fields: float) -> Sequence[Event]:
    patience = Patience(**{"silence_seconds": 6000.0, "start_seconds": 1e9, "cut_off_seconds": 6000.0} | fields)
    return observe(attempt, phase, lines, now=after(at), patience=patience)


def verdict(attempt: Attempt, phase: Phase, *lines: JournalLine, **fields: Any) -> AttemptEnded:
    last = seen(attempt, phase, *lines, **fields)[-1]
    assert isinstance(last, AttemptEnded)
    return last


def test_no_machine_yet_is_no_news() -> None:
    unconfirmed = a_state(requested()).attempts[0]

    assert seen(unconfirmed, Phase(kind="absent")) == ()


def test_a_machine_is_billed_since_the_backends_instant_not_since_it_was_seen() -> None:
    unconfirmed = a_state(requested()).attempts[0]

    events = seen(unconfirmed, Phase(kind="starting", started_at=after(200)))

    assert events == (AttemptStarted(attempt=1, started_at=after(200)),)


@pytest.mark.parametrize(("told", "expected"), [(None, 1000), (10, 60), (5000, 1000)], ids=["none", "early", "late"])
def test_a_bill_begins_neither_before_the_request_nor_in_the_future(told: float | None, expected: float) -> None:
    unconfirmed = a_state(requested()).attempts[0]
    started_at = None if told is None else after(told)

    assert seen(unconfirmed, Phase(kind="starting", started_at=started_at)) == (
        AttemptStarted(attempt=1, started_at=after(expected)),
    )


def test_a_life_that_nobody_saw_is_told_in_the_order_in_which_it_happened() -> None:
    unconfirmed = a_state(requested()).attempts[0]
    lines = (STARTED, stepped(9, at=240), committed(10, at=250), NOTICED, committed(12, at=310), ended("preempted"))

    events = seen(unconfirmed, GONE, *lines)

    assert [type(event) for event in events] == [
        AttemptStarted,
        TrainingResumed,
        CheckpointCommitted,
        NoticeReceived,
        CheckpointCommitted,
        ProgressReported,
        AttemptEnded,
    ]
    end = events[-1]
    assert isinstance(end, AttemptEnded)
    assert (end.outcome, end.step, end.gone_at) == ("preempted", 30, after(900))


def test_a_step_on_the_local_disk_is_told_again_when_the_run_folder_has_it() -> None:
    lines = [STARTED, *(committed(step, at=250, local_only=local) for step, local in ((10, True), (20, True)))]
    early = seen(an_attempt(), RUNNING, *lines, at=300)
    shipped = [committed(10, at=260), committed(10, at=261), committed(20, at=270)]

    late = seen(an_attempt(*early), RUNNING, *lines, *shipped, at=310)

    assert [(e.step, e.local_only) for e in early if isinstance(e, CheckpointCommitted)] == [(10, True), (20, True)]
    assert [(e.step, e.local_only) for e in late if isinstance(e, CheckpointCommitted)] == [(10, False), (20, False)]


def test_what_a_save_cost_goes_to_the_ledger() -> None:
    costs = {"lost_seconds": 0.5, "durable_seconds": 9.0, "written_bytes": 7, "stored_bytes": 3 * 10**9, "kept": 3}

    *_, event = seen(an_attempt(), RUNNING, STARTED, committed(10, at=250, **costs), at=300)

    assert isinstance(event, CheckpointCommitted)
    assert {name: getattr(event, name) for name in costs} == costs


def test_what_is_known_is_not_told_again() -> None:
    lines = (STARTED, NOTICED, committed(10, at=250), stepped(11, at=260))
    first = seen(an_attempt(), RUNNING, *lines, at=300)
    known = an_attempt(*first)

    assert len(first) == 4
    assert seen(known, RUNNING, *lines, at=301) == ()


def test_a_commit_is_told_at_once_and_progress_every_few_minutes() -> None:
    heard = an_attempt(TrainingResumed(attempt=1, step=0))  # heard of at second 180
    lines = (stepped(20, at=200), committed(15, at=210))

    soon = seen(heard, RUNNING, *lines, at=240)
    later = seen(heard, RUNNING, *lines, at=180 + REPORT_SECONDS)

    assert [type(event) for event in soon] == [CheckpointCommitted]
    assert [type(event) for event in later] == [CheckpointCommitted, ProgressReported]


def test_a_step_that_is_known_is_no_progress() -> None:
    progress = ProgressReported(attempt=1, step=20, segment=2)

    assert seen(an_attempt(progress), RUNNING, stepped(20, at=200), at=5000) == ()


FIRST_WORDS = (STARTED, stepped(20, at=350))
EXITS: dict[str, tuple[int | None, EndReason | None, bool, str]] = {
    "completed": (0, "completed", False, "completed"),
    "completed, code unknown": (None, "completed", False, "completed"),
    "completed, then the command failed": (1, "completed", False, "failed"),
    "saved on the notice": (75, "preempted", False, "preempted"),
    "saved when asked": (75, "stopped", False, "stopped"),
    "at the cap": (75, "out_of_budget", False, "stopped"),
    "raised": (1, "failed", False, "failed"),
    "raised, code lost": (None, "failed", False, "failed"),
    "silent 0": (0, None, False, "completed"),
    "silent 75": (75, None, False, "preempted"),
    "silent 1": (1, None, False, "failed"),
    "silent 128": (128, None, False, "failed"),
    "SIGKILL": (-9, None, False, "lost"),
    "SIGKILL by a shell": (137, None, False, "lost"),
    "SIGKILL after the notice": (-9, None, True, "preempted"),
    "SIGTERM": (143, None, False, "lost"),
    "code unknown": (None, None, False, "lost"),
}


@pytest.mark.parametrize(("code", "reason", "noticed", "outcome"), EXITS.values(), ids=EXITS.keys())
def test_the_last_word_decides_and_the_exit_code_where_there_is_none(
    code: int | None, reason: EndReason | None, noticed: bool, outcome: str
) -> None:
    attempt = an_attempt(NoticeReceived(attempt=1, source="ec2")) if noticed else an_attempt()
    words = (*FIRST_WORDS, ended(reason)) if reason else FIRST_WORDS

    assert verdict(attempt, Phase(kind="exited", exit_code=code, started_at=after(60)), *words).outcome == outcome


def test_a_notice_and_the_kill_after_it_may_be_seen_at_once() -> None:
    phase = Phase(kind="exited", exit_code=-9, started_at=after(60))

    assert verdict(an_attempt(), phase, STARTED, NOTICED).outcome == "preempted"


VANISHED: dict[str, tuple[Capacity, EndReason | None, str]] = {
    "spot": (Capacity.SPOT, None, "preempted"),
    "on demand": (Capacity.ON_DEMAND, None, "lost"),
    "reserved": (Capacity.RESERVED, None, "lost"),
    "saved": (Capacity.SPOT, "preempted", "preempted"),
    "asked": (Capacity.SPOT, "stopped", "stopped"),
    "at the cap": (Capacity.ON_DEMAND, "out_of_budget", "stopped"),
    "failed before": (Capacity.SPOT, "failed", "failed"),
    "complete, but the command had not ended": (Capacity.SPOT, "completed", "preempted"),
}


@pytest.mark.parametrize(("capacity", "reason", "outcome"), VANISHED.values(), ids=VANISHED.keys())
def test_a_machine_that_vanished_was_preempted_unless_its_trainer_said_otherwise(
    capacity: Capacity, reason: EndReason | None, outcome: str
) -> None:
    words = (*FIRST_WORDS, ended(reason)) if reason else FIRST_WORDS

    assert verdict(an_attempt(capacity=capacity), GONE, *words).outcome == outcome


@pytest.mark.parametrize(
    ("reason", "cause"), [("out_of_budget", "cap"), ("stopped", "stop_requested"), ("preempted", None)]
)
def test_a_trainer_that_ended_itself_says_for_what_cause(reason: EndReason, cause: str | None) -> None:
    phase = Phase(kind="exited", exit_code=75, started_at=after(60))

    assert verdict(an_attempt(), phase, *FIRST_WORDS, ended(reason)).cause == cause


def test_a_machine_that_is_not_there_any_more_is_lost() -> None:
    assert verdict(an_attempt(), Phase(kind="absent")).outcome == "lost"


def test_a_bill_does_not_end_in_the_future() -> None:
    assert verdict(an_attempt(), GONE, at=800).gone_at == after(800)


def test_an_end_keeps_the_last_step_and_pace() -> None:
    end = verdict(an_attempt(), GONE, *FIRST_WORDS)

    assert (end.step, end.step_seconds, end.metrics) == (20, 10.0, {"loss": 0.5})


@pytest.mark.parametrize(("at", "is_lost"), [(350 + 599, False), (350 + 600, True)])
def test_a_trainer_that_spoke_and_fell_silent_is_lost(at: float, is_lost: bool) -> None:
    events = seen(an_attempt(), RUNNING, *FIRST_WORDS, at=at, silence_seconds=600.0)

    assert isinstance(events[-1], AttemptEnded) == is_lost


def test_a_script_that_never_speaks_is_not_silent() -> None:
    assert seen(an_attempt(), RUNNING, at=10**6, silence_seconds=600.0) == ()


def test_a_machine_that_starts_slowly_is_not_silent() -> None:
    heard = an_attempt(TrainingResumed(attempt=1, step=0))

    assert seen(heard, Phase(kind="starting", started_at=after(60)), at=10**6, silence_seconds=600.0) == ()


@pytest.mark.parametrize(("code", "outcome"), [(0, "completed"), (1, "failed"), (137, "lost")])
def test_a_machine_that_left_after_its_command_had_ended_is_judged_by_the_command(code: int, outcome: str) -> None:
    idle = Phase(kind="gone", exit_code=code, started_at=after(60), gone_at=after(700))

    end = verdict(an_attempt(), idle, *FIRST_WORDS, ended("completed"))

    assert (end.outcome, end.gone_at) == (outcome, after(700))


@pytest.mark.parametrize(("at", "is_lost"), [(60 + 3599, False), (60 + 3600, True)])
def test_a_machine_that_never_comes_up_is_lost_in_the_end(at: float, is_lost: bool) -> None:
    events = seen(an_attempt(), Phase(kind="starting", started_at=after(60)), at=at, start_seconds=3600.0)

    assert [event.kind for event in events] == ["attempt_ended"] * is_lost


def test_saying_75_for_ever_on_a_machine_that_stays_is_counted_as_lost() -> None:
    stays = a_state(requested(capacity=Capacity.ON_DEMAND), AttemptStarted(attempt=1, started_at=after(60))).attempts[0]

    assert verdict(stays, Phase(kind="exited", exit_code=75, started_at=after(60))).outcome == "lost"


@pytest.mark.parametrize("reason", ["completed", "preempted", "stopped", "failed"])
def test_a_command_may_still_end_after_the_trainers_last_word(reason: EndReason) -> None:
    events = seen(an_attempt(), RUNNING, *FIRST_WORDS, ended(reason), at=500, silence_seconds=600.0)

    assert not any(isinstance(event, AttemptEnded) for event in events)


@pytest.mark.parametrize(
    ("reason", "outcome"), [("preempted", "preempted"), ("stopped", "stopped"), ("failed", "failed")]
)
def test_a_command_that_hangs_after_its_last_word_is_judged_by_it(reason: EndReason, outcome: str) -> None:
    assert verdict(an_attempt(), RUNNING, *FIRST_WORDS, ended(reason), silence_seconds=600.0).outcome == outcome


def test_a_command_may_work_on_quietly_behind_a_complete_training() -> None:
    events = seen(an_attempt(), RUNNING, *FIRST_WORDS, ended("completed"), at=10**6, silence_seconds=600.0)

    assert not any(isinstance(event, AttemptEnded) for event in events)


UNREACHABLE = Phase(kind="unreachable", started_at=after(60))


def test_a_trainer_that_still_speaks_lives_on_a_machine_that_does_not_answer() -> None:
    news = seen(an_attempt(), UNREACHABLE, STARTED, stepped(9, at=950), at=1000, cut_off_seconds=60)

    assert not any(isinstance(event, AttemptEnded) for event in news)


@pytest.mark.parametrize(("capacity", "outcome"), [(Capacity.SPOT, "preempted"), (Capacity.ON_DEMAND, "lost")])
def test_a_trainer_that_went_silent_with_its_machine_is_gone(capacity: Capacity, outcome: str) -> None:
    attempt = an_attempt(capacity=capacity)

    assert verdict(attempt, UNREACHABLE, STARTED, stepped(9, at=900), at=1000, cut_off_seconds=60).outcome == outcome


def test_a_script_that_never_spoke_goes_with_its_machine() -> None:
    assert verdict(an_attempt(), UNREACHABLE, at=1000, cut_off_seconds=60).outcome == "preempted"


def test_a_trainer_that_saved_and_left_an_unreachable_machine_is_not_waited_for() -> None:
    last = verdict(an_attempt(), UNREACHABLE, STARTED, NOTICED, ended("preempted"), at=401, cut_off_seconds=60)

    assert (last.outcome, last.detail) == ("preempted", "saved on the notice")


def test_silence_after_a_notice_is_the_end_sooner_than_silence_at_any_other_time() -> None:
    running = Phase(kind="running", started_at=after(60))
    lines = (STARTED, stepped(9, at=900), TrainerNoticed(at=after(910), segment=3, source="ec2", seconds_left=120.0))
    noticed = an_attempt(NoticeReceived(attempt=1, source="ec2", seconds_left=120.0))

    last = verdict(noticed, running, *lines, at=1000, cut_off_seconds=60)

    assert last.outcome == "preempted"
    assert "after the notice" in last.detail
    assert not any(isinstance(e, AttemptEnded) for e in seen(an_attempt(), running, *lines[:2], at=1000))


@pytest.mark.parametrize(("nodes", "outcome"), [(1, "failed"), (2, "preempted")])
def test_nodes_that_failed_because_another_one_was_taken_have_not_failed(nodes: int, outcome: str) -> None:
    intent = AttemptRequested(attempt=1, placement=a_placement(an_offer(), nodes=nodes), why="cheapest")
    attempt = a_state(intent, AttemptStarted(attempt=1, started_at=after(60))).attempts[0]

    assert verdict(attempt, GONE, STARTED, stepped(9, at=350), ended("failed")).outcome == outcome


def an_incoming(*more: Event, capacity: Capacity = Capacity.SPOT) -> Attempt:
    asked = AttemptRequested(attempt=2, placement=a_placement(an_offer(capacity=capacity)), why="", relieves=1)
    started = AttemptStarted(attempt=2, started_at=after(60))
    return a_state(requested(), AttemptStarted(attempt=1, started_at=after(60)), asked, started, *more).attempts[1]


def test_an_attempt_that_waits_says_so_once() -> None:
    patience = Patience(silence_seconds=6000.0, start_seconds=1e9, cut_off_seconds=6000.0)

    def told(attempt: Attempt) -> Sequence[Event]:
        return observe(attempt, RUNNING, (), now=after(1000), patience=patience, is_ready=True)

    assert told(an_incoming()) == (AttemptReady(attempt=2),)
    assert told(an_incoming(AttemptReady(attempt=2))) == ()


@pytest.mark.parametrize("code", [0, 75])
def test_an_attempt_that_only_waited_is_neither_complete_nor_preempted(code: int) -> None:
    exited = Phase(kind="exited", exit_code=code, started_at=after(60))

    assert verdict(an_incoming(AttemptReady(attempt=2)), exited).outcome == "lost"
    handed_over = an_incoming(AttemptReady(attempt=2), HandedOver(attempt=2))
    assert verdict(handed_over, exited).outcome == ("completed" if code == 0 else "preempted")


EXITS: dict[str, tuple[Phase, tuple[JournalLine, ...], bool]] = {
    "its command has ended": (Phase(kind="exited", exit_code=1, started_at=after(60)), (), True),
    "its machine is gone": (GONE, (), True),
    "it said its last word": (RUNNING, (ended("stopped"),), True),
    "it fell silent": (RUNNING, (), False),
    "its machine does not answer": (Phase(kind="unreachable", started_at=after(60)), (), False),
}


@pytest.mark.parametrize(("phase", "lines", "has_exited"), EXITS.values(), ids=EXITS.keys())
def test_a_training_is_known_to_be_over_when(phase: Phase, lines: tuple[JournalLine, ...], has_exited: bool) -> None:
    """What is only silent may go on until its machine is released."""
    end = verdict(an_attempt(), phase, STARTED, *lines, at=9000, silence_seconds=600.0, cut_off_seconds=120.0)

    assert end.has_exited == has_exited
