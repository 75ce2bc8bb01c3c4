"""The fold of a ledger, and the bill that follows from it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from launcher.core.runs.events import (
    AttemptEnded,
    AttemptReady,
    AttemptRefused,
    AttemptReleased,
    AttemptRequested,
    AttemptStarted,
    CheckpointCommitted,
    CheckpointReplicated,
    EndRequested,
    Event,
    HandedOver,
    PriceChanged,
    ProgressReported,
    RunFinished,
    RunReopened,
    StopRequested,
    TrainingResumed,
)
from launcher.core.runs.state import (
    attempt_of,
    burn_usd_per_hour,
    egress_usd,
    fold,
    job_name,
    machine_usd,
    run_uri_of,
    spent_usd,
    storage_usd,
    trainer_usd_per_hour,
)
from tests.builders import a_placement, a_spec, a_state, a_submit, after, entries

REQUESTED = AttemptRequested(attempt=1, placement=a_placement(usd_per_hour="6"), why="cheapest")
STARTED = AttemptStarted(attempt=1, started_at=after(0))
RESUMED = TrainingResumed(attempt=1, step=0)


def a_commit(step: int, *, attempt: int = 1, size: int = 10**9, **fields: Any) -> CheckpointCommitted:
    plain: dict[str, Any] = {"name": f"step-{step}-a{attempt}", "bytes": size, "seconds": 5, "segment": 2}
    return CheckpointCommitted(attempt=attempt, step=step, **plain | fields)


def an_end(**fields: object) -> AttemptEnded:
    plain: dict[str, object] = {"attempt": 1, "outcome": "preempted", "detail": "gone"}
    return AttemptEnded.model_validate(plain | fields)


def test_the_first_entry_must_be_a_submit() -> None:
    with pytest.raises(ValueError, match="follows nothing"):
        fold(None, entries(StopRequested(by="ada")))


def test_a_run_is_submitted_once() -> None:
    with pytest.raises(ValueError, match="must be the first"):
        fold(None, entries(a_submit(), a_submit()))


@pytest.mark.parametrize("first_seq", [1, 3])
def test_entries_that_do_not_follow_one_another_are_refused(first_seq: int) -> None:
    state = fold(None, entries(a_submit()))

    with pytest.raises(ValueError, match=f"entry {first_seq} follows 1"):
        fold(state, entries(StopRequested(by="ada"), first_seq=first_seq))


def test_an_attempt_that_was_never_requested_is_refused() -> None:
    with pytest.raises(ValueError, match="never requested"):
        a_state(STARTED)


def test_no_entries_are_no_run() -> None:
    assert fold(None, ()) is None


@pytest.mark.parametrize("attempt", [1, 42, 999, 1000])
def test_a_jobs_name_tells_its_attempt(attempt: int) -> None:
    assert attempt_of(job_name("a-run-001", attempt)) == attempt


LIVES: dict[str, tuple[tuple[Event, ...], bool, bool]] = {
    "requested": ((REQUESTED,), True, True),
    "refused": ((REQUESTED, AttemptRefused(attempt=1, reason="quota", detail="0 of 8")), False, False),
    "started": ((REQUESTED, STARTED), True, True),
    "ended": ((REQUESTED, STARTED, an_end()), True, False),
    "released": ((REQUESTED, STARTED, an_end(), AttemptReleased(attempt=1)), False, False),
}


@pytest.mark.parametrize(("events", "is_open", "is_live"), LIVES.values(), ids=LIVES.keys())
def test_an_attempt_is_open_until_released_and_live_until_judged(
    events: tuple[Event, ...], is_open: bool, is_live: bool
) -> None:
    (attempt,) = a_state(*events).attempts

    assert (attempt.is_open, attempt.is_live) == (is_open, is_live)


def test_a_refused_attempt_costs_nothing() -> None:
    state = a_state(REQUESTED, AttemptRefused(attempt=1, reason="no_capacity", detail="none"))

    assert spent_usd(state, after(36_000)) == 0


def test_an_hour_costs_its_price() -> None:
    state = a_state(REQUESTED, STARTED)

    assert spent_usd(state, after(3600)) == Decimal(6)
    assert burn_usd_per_hour(state) == Decimal(6)


def test_every_node_is_billed() -> None:
    placement = a_placement(usd_per_hour="6", nodes=4)
    state = a_state(AttemptRequested(attempt=1, placement=placement, why="cheapest"), STARTED)

    assert spent_usd(state, after(1800)) == Decimal(12)


def test_the_bill_runs_until_the_release_not_until_the_end() -> None:
    state = a_state(REQUESTED, STARTED, an_end(), AttemptReleased(attempt=1), every_seconds=900)

    assert spent_usd(state, after(36_000)) == Decimal(6)
    assert burn_usd_per_hour(state) == 0


def test_an_ended_attempt_is_billed_while_it_is_not_released() -> None:
    state = a_state(REQUESTED, STARTED, an_end(), every_seconds=900)

    assert spent_usd(state, after(7200)) == Decimal(12)


def test_a_machine_that_vanished_is_billed_until_then_whenever_that_was_seen() -> None:
    state = a_state(REQUESTED, STARTED, an_end(gone_at=after(1200)), AttemptReleased(attempt=1), every_seconds=900)

    assert spent_usd(state, after(36_000)) == Decimal(2)


def test_each_hour_is_billed_at_the_price_stored_for_it() -> None:
    dearer = PriceChanged(attempt=1, placement=a_placement(usd_per_hour="9"))
    state = a_state(REQUESTED, STARTED, dearer, every_seconds=1200)  # from second 3600 on

    assert machine_usd(state.attempts[0], after(7200)) == Decimal(15)


def test_a_price_that_changed_after_the_machine_was_gone_bills_nothing() -> None:
    dearer = PriceChanged(attempt=1, placement=a_placement(usd_per_hour="9"))
    state = a_state(REQUESTED, STARTED, dearer, an_end(gone_at=after(1800)), every_seconds=1200)

    assert machine_usd(state.attempts[0], after(7200)) == Decimal(3)


def test_the_bill_is_exact_to_the_microsecond() -> None:
    state = a_state(REQUESTED, STARTED)

    assert machine_usd(state.attempts[0], after(0.000001)) == Decimal(6) / 3_600_000_000


def test_all_attempts_are_summed() -> None:
    again = REQUESTED.model_copy(update={"attempt": 2})
    started = AttemptStarted(attempt=2, started_at=after(7200))
    ended = (an_end(gone_at=after(1800)), AttemptReleased(attempt=1))
    state = a_state(REQUESTED, STARTED, *ended, again, started, every_seconds=1800)

    assert spent_usd(state, after(10_800)) == Decimal(9)


def test_data_that_is_read_once_is_charged_when_the_machine_starts() -> None:
    requested = REQUESTED.model_copy(update={"egress_usd_per_read": Decimal(45)})
    spec = a_spec(data={"uri": "s3://data", "region": "aws/us-east-2", "size": "500 GB"})

    assert spent_usd(a_state(a_submit(spec), requested), after(0)) == 0
    assert spent_usd(a_state(a_submit(spec), requested, STARTED), after(0)) == Decimal(45)


def test_data_that_is_read_many_times_is_charged_by_the_share_of_the_work() -> None:
    requested = REQUESTED.model_copy(update={"egress_usd_per_read": Decimal(45)})
    spec = a_spec(steps=1000, data={"uri": "s3://data", "region": "aws/us-east-2", "size": "500 GB", "reads": 4})
    resumed = TrainingResumed(attempt=1, step=500)
    progress = ProgressReported(attempt=1, step=600, segment=3)
    state = a_state(a_submit(spec), requested, STARTED, resumed, progress)

    assert spent_usd(state, after(0)) == Decimal(45) * 4 / 10


def test_checkpoints_cost_storage_from_the_first_commit_to_the_end_of_the_run() -> None:
    submit = a_submit(a_spec(checkpoint={"keep": 3}), storage_usd_per_gb_hour=Decimal("0.01"))
    running = a_state(submit, REQUESTED, STARTED, a_commit(10, size=10**10), every_seconds=1200)  # from 3600 on
    finished = replace(running, finished_at=after(10_800))

    assert storage_usd(running, after(3600)) == 0
    assert storage_usd(running, after(7200)) == Decimal("0.30")
    assert storage_usd(finished, after(99_999)) == Decimal("0.60")


def test_the_step_is_the_trainers_while_it_lives_and_the_committed_one_after() -> None:
    progress = ProgressReported(attempt=1, step=17, segment=3)
    living = a_state(REQUESTED, STARTED, RESUMED, a_commit(10), progress)
    gone = a_state(REQUESTED, STARTED, RESUMED, a_commit(10), progress, an_end(step=17))

    assert (living.step, living.committed_step) == (17, 10)
    assert (gone.step, gone.committed_step) == (10, 10)


def test_a_trainer_that_fell_back_behind_a_damaged_checkpoint_is_believed() -> None:
    again = REQUESTED.model_copy(update={"attempt": 2})
    fallen = TrainingResumed(attempt=2, step=10, resumed_from="step-10-a1", lost_steps=10)
    state = a_state(REQUESTED, STARTED, a_commit(10), a_commit(20), again, fallen)

    assert state.checkpoint is not None
    assert (state.checkpoint.step, state.checkpoint.name) == (10, "step-10-a1")


def test_a_trainer_that_found_no_checkpoint_leaves_none() -> None:
    again = REQUESTED.model_copy(update={"attempt": 2})
    state = a_state(REQUESTED, STARTED, a_commit(10), again, TrainingResumed(attempt=2, step=0))

    assert state.checkpoint is None


def test_the_first_request_to_end_counts() -> None:
    first = EndRequested(attempt=1, cause="fallback", why="slack")
    state = a_state(REQUESTED, STARTED, RESUMED, first, EndRequested(attempt=1, cause="fallback", why="slack"))

    assert state.attempts[0].end_requested_at == after(4 * 60)


def test_a_reopened_run_is_open_and_keeps_its_attempts_and_its_bill() -> None:
    ended = (REQUESTED, STARTED, an_end(outcome="failed"), AttemptReleased(attempt=1))
    finish = RunFinished(outcome="failed", detail="exit code 1")
    before = a_state(*ended, StopRequested(by="ada"), finish)
    state = a_state(*ended, StopRequested(by="ada"), finish, RunReopened(approved_usd=Decimal(500), by="ada"))

    assert before.is_finished
    assert not state.is_finished
    assert state.stop_requested_at is None
    assert state.approved_usd == Decimal(500)
    assert (state.next_attempt, state.reopened_after) == (2, 1)
    assert spent_usd(state, after(9999)) == spent_usd(before, after(9999)) > 0


def test_stored_checkpoints_cost_what_the_trainer_counted_not_what_their_sizes_add_up_to() -> None:
    submit = a_submit(storage_usd_per_gb_hour=Decimal("0.01"))
    frozen_backbone = a_commit(10, size=10**9, stored_bytes=12 * 10**8, kept=3)

    state = a_state(submit, REQUESTED, STARTED, RESUMED, frozen_backbone)

    assert storage_usd(state, state.at + timedelta(hours=10)) == Decimal("0.12")


def test_a_save_in_the_last_seconds_is_added_to_what_is_stored() -> None:
    regular = a_commit(10, stored_bytes=2 * 10**9, kept=2)
    urgent = a_commit(20, written_bytes=10**8)

    state = a_state(REQUESTED, STARTED, RESUMED, regular, urgent)

    assert state.checkpoint is not None
    assert (state.checkpoint.step, state.checkpoint.kept, state.checkpoint.stored_bytes) == (20, 3, 21 * 10**8)


def test_a_machines_own_disk_is_nothing_to_count_on() -> None:
    state = a_state(REQUESTED, STARTED, RESUMED, a_commit(10), a_commit(20, local_only=True))

    assert state.committed_step == 10
    assert (state.attempts[0].committed_step, state.attempts[0].local_step, state.step) == (10, 20, 20)


def test_a_save_to_two_places_is_one_save() -> None:
    cost = {"lost_seconds": 2.0, "durable_seconds": 3.0}
    shipped = {"lost_seconds": 2.0, "durable_seconds": 40.0}
    local = [a_commit(10, local_only=True, **cost), a_commit(20, local_only=True, **cost)]

    state = a_state(REQUESTED, STARTED, RESUMED, *local, a_commit(10, **shipped), a_commit(20, **shipped))

    attempt = state.attempts[0]
    assert (attempt.num_saves, attempt.save_seconds) == (2, 4.0)
    assert (attempt.num_durable, attempt.durable_seconds) == (2, 80.0)


def test_a_save_costs_the_training_that_was_lost_not_only_the_standing_still() -> None:
    state = a_state(REQUESTED, STARTED, RESUMED, a_commit(10), a_commit(20, seconds=0.01, lost_seconds=0.4))

    assert state.attempts[0].save_seconds == 5.4


AWAY = REQUESTED.model_copy(
    update={"run_uri": "s3://west/r", "save_usd_per_gb": Decimal("0.02"), "restore_usd_per_gb": Decimal("0.01")}
)
NEXT = AWAY.model_copy(update={"attempt": 2, "run_uri": "s3://east/r", "move_usd_per_gb": Decimal("0.02")})
ENDED = (an_end(), AttemptReleased(attempt=1))


def test_checkpoints_are_paid_for_by_the_bytes_that_were_carried() -> None:
    commits = (
        a_commit(10, size=100 * 10**9),
        a_commit(20, size=100 * 10**9, written_bytes=30 * 10**9),
        a_commit(30, size=100 * 10**9, local_only=True),
    )
    first = a_state(AWAY, STARTED, RESUMED, *commits)
    second = a_state(
        AWAY, STARTED, RESUMED, *commits, *ENDED, NEXT, TrainingResumed(attempt=2, step=20, resumed_from="step-20-a1")
    )

    assert egress_usd(first, first.attempts[0]) == Decimal("2.60")
    assert egress_usd(second, second.attempts[1]) == Decimal("1.00")
    assert spent_usd(second, second.at) == machine_usd(second.attempts[0], second.at) + Decimal("3.60")


def test_a_checkpoint_that_was_brought_along_is_paid_for_even_if_no_machine_came() -> None:
    moved = CheckpointReplicated(attempt=2, name="step-10-a1", bytes=10**9)
    refused = AttemptRefused(attempt=2, reason="no_capacity", detail="")
    state = a_state(AWAY, STARTED, a_commit(10), *ENDED, NEXT, moved, refused)

    assert egress_usd(state, state.attempts[1]) == Decimal("0.02")


def test_the_newest_checkpoint_lies_in_every_folder_that_it_was_brought_to() -> None:
    moved = CheckpointReplicated(attempt=2, name="step-10-a1", bytes=10**9)
    other = CheckpointReplicated(attempt=2, name="step-5-a1", bytes=10**9)

    def lying(*events: Event) -> tuple[str, ...]:
        state = a_state(AWAY, STARTED, a_commit(10), *ENDED, NEXT, *events)
        assert state.checkpoint is not None
        return state.checkpoint.run_uris

    assert lying() == ("s3://west/r",)
    assert lying(moved) == ("s3://west/r", "s3://east/r")
    assert lying(other) == ("s3://west/r",)
    assert lying(moved, a_commit(20, attempt=2)) == ("s3://east/r",)
    assert lying(other, TrainingResumed(attempt=2, step=5, resumed_from="step-5-a1")) == ("s3://east/r",)


def test_an_attempt_without_a_folder_of_its_own_has_that_of_the_run() -> None:
    """As in every ledger that an older launcher wrote."""
    state = a_state(REQUESTED, STARTED, a_commit(10), *ENDED, NEXT)

    assert (run_uri_of(state, 1), run_uri_of(state, 2)) == ("memory://runs/digits", "s3://east/r")
    assert state.checkpoint is not None
    assert state.checkpoint.run_uris == ("memory://runs/digits",)


BESIDE = AttemptRequested(attempt=2, placement=a_placement(usd_per_hour="20"), why="slack", relieves=1)
SET_UP = (AttemptStarted(attempt=2, started_at=after(0)), AttemptReady(attempt=2))
HANDED_OVER = HandedOver(attempt=2)


def test_an_attempt_that_waits_is_neither_the_one_that_trains_nor_the_newest() -> None:
    waiting = a_state(REQUESTED, STARTED, RESUMED, ProgressReported(attempt=1, step=17, segment=3), BESIDE, *SET_UP)

    assert waiting.trainer == waiting.attempt == waiting.attempts[0]
    assert waiting.incoming == waiting.attempts[1]
    assert waiting.step == 17
    assert waiting.next_attempt == 3


def test_an_attempt_that_was_handed_over_to_is_the_one_that_trains() -> None:
    state = a_state(REQUESTED, STARTED, RESUMED, BESIDE, *SET_UP, an_end(), HANDED_OVER)

    assert state.trainer == state.attempt == state.attempts[1]
    assert state.incoming is None


@pytest.mark.parametrize("end", [an_end(attempt=2), AttemptRefused(attempt=2, reason="no_capacity", detail="")])
def test_an_attempt_that_never_took_over_was_never_the_runs(end: Event) -> None:
    state = a_state(REQUESTED, STARTED, RESUMED, BESIDE, end)

    assert (state.attempt, state.trainer, state.incoming) == (state.attempts[0], state.attempts[0], None)


def test_two_machines_are_billed_side_by_side_and_one_of_them_trains() -> None:
    state = a_state(REQUESTED, STARTED, RESUMED, BESIDE, *SET_UP)

    assert spent_usd(state, after(3600)) == Decimal(26)
    assert (burn_usd_per_hour(state), trainer_usd_per_hour(state)) == (Decimal(26), Decimal(6))


def test_waiting_for_the_other_one_is_no_set_up() -> None:
    """Ready at minute 6, handed over to at 8, at work at 9; its machine is there since 0."""
    resumed = TrainingResumed(attempt=2, step=10)
    state = a_state(REQUESTED, STARTED, RESUMED, BESIDE, *SET_UP, an_end(), HANDED_OVER, resumed)

    assert state.attempts[0].setup_seconds == 3 * 60
    assert state.attempts[1].setup_seconds == (6 + 1) * 60
