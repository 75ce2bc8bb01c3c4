"""On a notice the newest state is saved that surely fits, and never at the price of what is there."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_hooks.checkpoint.emergency import HOPE_FACTOR, SAFE_SHARE, Action, InFlight, Plan, Situation, decide

GB = 10**9


def a_situation(**changes: Any) -> Situation:
    """100 MB/s to the bucket, 1 GB/s to the local disk, 1 s for a commit; nothing in flight."""
    usual: dict[str, Any] = {
        "step": 1000,
        "saved_step": 900,
        "seconds_left": 120.0,
        "new_bytes": GB,
        "remote_speed": 1e8,
        "local_speed": 1e9,
    }
    return Situation(**usual | changes)


def in_flight(bytes_left: int, step: int = 950) -> InFlight:
    return InFlight(step=step, bytes_left=bytes_left)


@pytest.mark.parametrize(
    ("seconds_left", "new_bytes", "expected"),
    [
        # a new save takes 1 s and 10 s a GB
        (120, GB // 10, Plan.NEW),
        (120, 9 * GB, Plan.NEW),
        (120, 11 * GB, Plan.NEW),  # 111 s: not surely, but perhaps
        (120, 20 * GB, Plan.NEW),  # the store may be faster now that nobody trains
        (120, 100 * GB, Plan.NOTHING),
        (30, GB // 10, Plan.NEW),
        (30, 2 * GB, Plan.NEW),
        (30, 10 * GB, Plan.NOTHING),
        (15, GB // 10, Plan.NEW),
        (15, GB, Plan.NEW),
        (15, 10 * GB, Plan.NOTHING),
        (5, GB // 10, Plan.NEW),
        (5, 2 * GB, Plan.NOTHING),
        (0, 0, Plan.NOTHING),
        (0, GB, Plan.NOTHING),
    ],
)
def test_with_nothing_in_flight(seconds_left: float, new_bytes: int, expected: Plan) -> None:
    assert decide(a_situation(seconds_left=seconds_left, new_bytes=new_bytes)).plan is expected


@pytest.mark.parametrize(
    ("seconds_left", "bytes_left", "new_bytes", "expected"),
    [
        (120, GB, 5 * GB, Plan.FINISH_THEN_NEW),  # 11 + 51 s
        (120, 6 * GB, 5 * GB, Plan.NEW),  # 112 s for both are too many, the present state needs 51
        (120, GB, 50 * GB, Plan.FINISH),
        (30, GB // 2, GB // 2, Plan.FINISH_THEN_NEW),
        (30, GB, 2 * GB, Plan.NEW),
        (30, GB, 5 * GB, Plan.FINISH),
        (15, GB // 10, GB // 10, Plan.FINISH_THEN_NEW),
        (15, GB // 2, 5 * GB, Plan.FINISH),
        (5, GB // 100, GB // 100, Plan.FINISH_THEN_NEW),
        (5, GB // 10, GB, Plan.FINISH),
        (5, 5 * GB, 5 * GB, Plan.FINISH),  # it goes on anyway
        (0, GB, GB, Plan.FINISH),
    ],
)
def test_with_a_save_in_flight(seconds_left: float, bytes_left: int, new_bytes: int, expected: Plan) -> None:
    situation = a_situation(seconds_left=seconds_left, new_bytes=new_bytes, in_flight=in_flight(bytes_left))

    assert decide(situation).plan is expected


@pytest.mark.parametrize(
    ("seconds_left", "new_bytes", "expected"),
    [
        (120, GB, Plan.NEW),  # the bucket is safer than any disk
        (30, 10 * GB, Plan.LOCAL_ONLY),
        (15, 5 * GB, Plan.LOCAL_ONLY),
        (5, GB, Plan.LOCAL_ONLY),
        (5, 100 * GB, Plan.NOTHING),
        (0, GB, Plan.NOTHING),
    ],
)
def test_a_disk_that_survives_takes_what_the_bucket_cannot(seconds_left: float, new_bytes: int, expected: Plan) -> None:
    situation = a_situation(seconds_left=seconds_left, new_bytes=new_bytes)

    assert decide(replace(situation, local_survives=True)).plan is expected
    assert decide(situation).plan is not Plan.LOCAL_ONLY


def test_a_newer_state_on_the_disk_is_worth_more_than_an_older_one_in_the_bucket() -> None:
    situation = a_situation(seconds_left=15, new_bytes=5 * GB, in_flight=in_flight(GB // 10), local_survives=True)

    assert decide(situation).plan is Plan.LOCAL_ONLY


def test_what_is_saved_already_is_not_saved_again() -> None:
    assert decide(a_situation(saved_step=1000)).plan is Plan.NOTHING


def test_of_a_step_that_is_being_saved_no_second_save_is_begun() -> None:
    assert decide(a_situation(in_flight=in_flight(GB, step=1000))).plan is Plan.FINISH


def test_before_anything_was_measured_a_save_is_tried() -> None:
    unknown = a_situation(remote_speed=None, local_speed=None, saved_step=None, new_bytes=10**15)

    assert decide(unknown) == Action(plan=Plan.NEW, seconds=None, why=decide(unknown).why)
    assert decide(replace(unknown, in_flight=in_flight(GB))).plan is Plan.FINISH_THEN_NEW
    assert decide(replace(unknown, seconds_left=0)).plan is Plan.NOTHING


def test_a_disk_that_is_known_to_be_fast_enough_comes_before_a_bucket_of_unknown_speed() -> None:
    assert decide(a_situation(remote_speed=None, local_survives=True)).plan is Plan.LOCAL_ONLY


def test_a_notice_without_a_time_saves_what_is_in_flight_first() -> None:
    unknown = a_situation(seconds_left=None)

    assert decide(unknown).plan is Plan.NEW
    assert decide(replace(unknown, in_flight=in_flight(GB))).plan is Plan.FINISH_THEN_NEW


def test_the_copy_and_the_commit_count_as_well_as_the_bytes() -> None:
    tight = a_situation(seconds_left=2.0, new_bytes=0, local_speed=None)

    assert decide(tight).seconds == 1.0
    assert decide(replace(tight, capture_seconds=10.0)).plan is Plan.NOTHING
    assert decide(replace(tight, commit_seconds=10.0)).plan is Plan.NOTHING


sizes = st.integers(0, 200 * GB)
speeds = st.floats(1e6, 1e10)
situations = st.builds(
    Situation,
    step=st.just(1000),
    saved_step=st.sampled_from([None, 0, 900, 1000]),
    seconds_left=st.sampled_from([120.0, 30.0, 15.0, 5.0, 0.0]) | st.floats(0, 1000),
    new_bytes=sizes,
    remote_speed=speeds,
    in_flight=st.none() | st.builds(InFlight, step=st.sampled_from([950, 1000]), bytes_left=sizes),
    capture_seconds=st.floats(0, 10),
    commit_seconds=st.floats(0.01, 5),
    local_speed=st.none() | speeds,
    local_survives=st.booleans(),
).filter(lambda now: now.saved_step != 1000 or now.in_flight is None)


@given(now=situations)
def test_no_plan_overruns_the_time_where_a_smaller_one_fits(now: Situation) -> None:
    chosen = decide(now)
    left = now.seconds_left or 0.0

    assert chosen.seconds is not None
    for enough in (SAFE_SHARE * left, left):
        if chosen.seconds > enough:
            assert all(seconds > enough for seconds in _all(now))
    assert now.in_flight or chosen.seconds <= HOPE_FACTOR * left


@given(now=situations)
def test_if_the_prediction_is_right_the_newest_step_that_surely_fits_is_there(now: Situation) -> None:
    safe = SAFE_SHARE * (now.seconds_left or 0.0)
    reachable = [step for step, seconds in zip(_steps(now), _all(now), strict=True) if seconds <= safe]

    found = outcome(now, decide(now), real_to_predicted=1.0)

    assert found >= max([_saved(now), *reachable])


@given(now=situations, slowness=st.floats(0.5, 1 / SAFE_SHARE))
def test_the_safe_share_covers_a_store_that_has_become_slower(now: Situation, slowness: float) -> None:
    chosen = decide(now)
    if now.in_flight and chosen.seconds is not None and chosen.seconds <= SAFE_SHARE * (now.seconds_left or 0.0):
        assert outcome(now, chosen, real_to_predicted=slowness) >= now.in_flight.step


@given(now=situations, slowness=st.floats(0.1, 100))
def test_however_wrong_the_prediction_the_store_is_no_worse_than_before(now: Situation, slowness: float) -> None:
    assert outcome(now, decide(now), real_to_predicted=slowness) >= _saved(now)


def outcome(now: Situation, action: Action, *, real_to_predicted: float) -> int:
    """The newest step that a later attempt finds, on stores so many times slower than they were measured."""
    left = (now.seconds_left or 0.0) * (1 + 1e-9)
    new = (1000, _seconds(now, now.new_bytes, now.remote_speed) + now.capture_seconds)
    local = (1000, _seconds(now, now.new_bytes, now.local_speed) + now.capture_seconds)
    older = (now.in_flight.step, _seconds(now, now.in_flight.bytes_left, now.remote_speed)) if now.in_flight else None
    in_order = {
        Plan.FINISH_THEN_NEW: [older, new],
        Plan.NEW: [new],
        Plan.LOCAL_ONLY: [local],
        Plan.FINISH: [older],
        Plan.NOTHING: [],
    }[action.plan]
    clock, newest = 0.0, _saved(now)
    for write in in_order:
        assert write is not None
        step, seconds = write
        clock += seconds * real_to_predicted
        newest = max(newest, step) if clock <= left else newest
    return newest


def _seconds(now: Situation, size: int, speed: float | None) -> float:
    return math.inf if speed is None else size / speed + now.commit_seconds


def _saved(now: Situation) -> int:
    return -1 if now.saved_step is None else now.saved_step


def _steps(now: Situation) -> list[int]:
    return [step for step, _ in _writes(now)]


def _all(now: Situation) -> list[float]:
    return [seconds for _, seconds in _writes(now)]


def _writes(now: Situation) -> list[tuple[int, float]]:
    """Every single write that would make the newest state newer, with the seconds it takes."""
    writes = []
    being_saved = now.in_flight.step if now.in_flight else -1
    if max(_saved(now), being_saved) < 1000:
        writes.append((1000, _seconds(now, now.new_bytes, now.remote_speed) + now.capture_seconds))
        if now.local_survives:
            writes.append((1000, _seconds(now, now.new_bytes, now.local_speed) + now.capture_seconds))
    if now.in_flight:
        writes.append((now.in_flight.step, _seconds(now, now.in_flight.bytes_left, now.remote_speed)))
    return writes
