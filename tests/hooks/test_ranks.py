"""Ranks that decide together, and hand each other data: real processes, and a real store between them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.hooks.distributed import DIED, on_ranks
from trainer_hooks import ranks as module
from trainer_hooks.errors import HooksError
from trainer_hooks.ranks import Agreement, Board, Ranks, find_ranks, steps_until_agreement

pytestmark = pytest.mark.system

SAVE, PREEMPTED = 1, 4
MUCH = bytes(range(256)) * 40_000  # 10 MB: more than a TCPStore takes at once


def test_one_process_has_what_it_asks_for_at_once() -> None:
    agreement = Agreement(Ranks())

    reached = [agreement.reach(asked, step=step, steps_to_next=100) for step, asked in enumerate([0, 1, 4])]

    assert reached == [0, 1, 4]


def test_one_process_collects_from_itself() -> None:
    board = Board(Ranks())

    board.deliver("save/1", b"mine")
    board.announce("save/1/end", b"done")

    assert board.collect("save/1", timeout_seconds=0) == [b"mine"]
    assert board.peek("save/1/end") == b"done"
    assert board.peek("save/2/end") is None


def test_a_decision_falls_about_once_a_second() -> None:
    assert [steps_until_agreement(seconds) for seconds in (None, 0.0, 3.0, 0.25, 1e-6)] == [1, 1, 1, 4, 1000]


@pytest.mark.parametrize("asking", [0, 2])
def test_all_ranks_act_at_the_same_step_whoever_asked(asking: int) -> None:
    acted = on_ranks(3, _preempt_one, asking)

    assert acted[0][0] % 7 == 0, "a check step"
    assert 50 <= acted[0][0] <= 50 + 2 * 7
    assert acted == [(acted[0][0], PREEMPTED, {"seconds_left": 30, "rank": asking})] * 3


def test_a_file_store_serves_as_well(tmp_path: Path) -> None:
    acted = on_ranks(2, _preempt_one, 1, store=str(tmp_path / "store"))

    assert acted == [acted[0]] * 2


def test_a_store_of_their_own_serves_where_torch_hides_its_own() -> None:
    assert on_ranks(2, _without_the_groups_store) == [PREEMPTED, PREEMPTED]


def test_what_all_ask_for_at_once_is_done_once() -> None:
    """Though the others' wishes arrive when the decision for that step is taken already."""
    saved_at = on_ranks(3, _save_all_at_14)

    assert saved_at == [[14]] * 3


def test_a_lesser_decision_does_not_swallow_a_wish() -> None:
    assert on_ranks(2, _save_on_one_while_another_ends) == [[SAVE, PREEMPTED]] * 2


def test_between_check_steps_the_store_is_not_asked() -> None:
    assert on_ranks(2, _step_without_a_store) == [0, 0]


def test_old_decisions_do_not_pile_up_in_the_store() -> None:
    keys = on_ranks(2, _keys_before_and_after_100_checks)

    assert max(after - before for before, after in keys) <= 2


def test_ranks_that_are_not_at_the_same_step_are_told() -> None:
    assert "is at step 8, rank 0 was at step 7" in on_ranks(2, _one_step_ahead)[1]


def test_waiting_for_the_first_rank_has_an_end() -> None:
    assert "for rank 0 to come to that step" in on_ranks(2, _wait_for_nobody)[1]


def test_a_store_that_is_gone_is_an_error_and_no_hang() -> None:
    assert on_ranks(2, _lose_rank_0) == [DIED, "ConnectionError"]


def test_large_parts_arrive_whole_and_in_order_of_rank_and_leave_nothing_behind() -> None:
    collected, keys_before, keys_after = on_ranks(3, _collect_much)[0]

    assert collected == [bytes([rank]) + MUCH for rank in range(3)]
    assert keys_after == keys_before


def test_ranks_that_do_not_deliver_are_named() -> None:
    assert on_ranks(4, _deliver_some)[0] == "ranks 1, 3 did not deliver save/1 within 0 s"


def test_the_death_of_a_rank_does_not_hold_up_the_others() -> None:
    ended = on_ranks(3, _die_before_delivering)

    assert ended == ["rank 1 did not deliver save/1 within 1 s", DIED, "told"]


def test_a_cancelled_collection_ends_before_its_time() -> None:
    board = Board(Ranks())
    looks: list[int] = []

    with pytest.raises(InterruptedError, match="save/1"):
        board.collect("save/1", timeout_seconds=3600, cancelled=lambda: looks.append(1) or len(looks) == 3)


def test_the_first_rank_leaves_only_when_its_last_word_was_heard() -> None:
    assert on_ranks(3, _leave_after_the_last_word) == [DIED, b"done" + MUCH, b"done" + MUCH]


def _step(number: int) -> None:
    """What a training does at every step: none of the ranks gets far ahead."""
    dist.all_reduce(torch.tensor(number))


def _preempt_one(rank: int, asking: int) -> Any:
    agreement = Agreement(find_ranks({}))
    for step in range(200):
        _step(step)
        asked = PREEMPTED if rank == asking and step >= 50 else 0
        verdict = agreement.reach(asked, step=step, steps_to_next=7, note={"seconds_left": 30, "rank": rank})
        if verdict:
            return step, verdict, agreement.note
    return None


def _without_the_groups_store(rank: int) -> int:
    del dist.distributed_c10d._get_default_store
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    agreement = Agreement(find_ranks({}))
    verdict = agreement.reach(PREEMPTED if rank == 0 else 0, step=0, steps_to_next=1)
    agreement.close(timeout_seconds=60)
    return verdict


def _save_all_at_14(rank: int) -> list[int]:
    agreement = Agreement(find_ranks({}))
    saved_at = []
    for step in range(60):
        if rank > 0:
            _step(step)
        if agreement.reach(SAVE if step == 14 else 0, step=step, steps_to_next=7):
            saved_at.append(step)
        if rank == 0:
            _step(step)
    return saved_at


def _save_on_one_while_another_ends(rank: int) -> list[int]:
    """Rank 1's end comes too late for the decision to save, and is taken up by the next one."""
    agreement = Agreement(find_ranks({}))
    verdicts = []
    for step in range(4):
        if rank == 1:
            _step(step)
        asked = (SAVE if rank == 0 else PREEMPTED) if step == 1 else 0
        verdicts.append(agreement.reach(asked, step=step, steps_to_next=1))
        if rank == 0:
            _step(step)
    return [verdict for verdict in verdicts if verdict]


def _step_without_a_store(rank: int) -> int:
    agreement = Agreement(find_ranks({}))
    agreement.reach(0, step=0, steps_to_next=1000)
    agreement._post = None if rank > 5 else object()  # type: ignore[assignment]  # any use of it would raise
    return sum(agreement.reach(0, step=step, steps_to_next=1000) for step in range(1, 1000))


def _keys_before_and_after_100_checks(rank: int) -> tuple[int, int]:
    agreement = Agreement(find_ranks({}))
    store = dist.distributed_c10d._get_default_store()
    counts = []
    for step in range(101):
        _step(step)
        agreement.reach(0, step=step, steps_to_next=1)
        if step in (0, 100):
            dist.barrier()
            counts.append(store.num_keys())
            dist.barrier()
    return counts[0], counts[1]


def _one_step_ahead(rank: int) -> str:
    try:
        Agreement(find_ranks({})).reach(0, step=7 + rank, steps_to_next=1)
    except HooksError as error:
        return str(error)
    return ""


def _wait_for_nobody(rank: int) -> str:
    module.DECISION_SECONDS = 0.2
    agreement = Agreement(find_ranks({}))
    try:
        return str(rank and agreement.reach(0, step=0, steps_to_next=1))
    except TimeoutError as error:
        return str(error)


def _lose_rank_0(rank: int) -> str:
    agreement = Agreement(find_ranks({}))
    dist.barrier()
    if rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        agreement.reach(0, step=0, steps_to_next=1)
    except OSError as error:
        return type(error).__name__
    return ""


def _collect_much(rank: int) -> Any:
    board = Board(find_ranks({}))
    store = dist.distributed_c10d._get_default_store()
    dist.barrier()
    before = store.num_keys()
    dist.barrier()
    board.deliver("save/1", bytes([rank]) + MUCH)
    collected = board.collect("save/1", timeout_seconds=60) if rank == 0 else None
    return collected, before, store.num_keys()


def _deliver_some(rank: int) -> str:
    board = Board(find_ranks({}))
    if rank in (0, 2):
        board.deliver("save/1", b"")
    dist.barrier()
    if rank == 0:
        try:
            board.collect("save/1", timeout_seconds=0)
        except TimeoutError as error:
            return str(error)
    return ""


def _die_before_delivering(rank: int) -> str:
    board = Board(find_ranks({}))
    dist.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    board.deliver("save/1", b"part")
    if rank == 2:
        return board.wait("save/1/end", timeout_seconds=60).decode()
    try:
        board.collect("save/1", timeout_seconds=1)
    except TimeoutError as error:
        board.announce("save/1/end", b"told")
        return str(error)
    return ""


def _leave_after_the_last_word(rank: int) -> bytes:
    board = Board(find_ranks({}))
    if rank == 0:
        board.announce("end", b"done" + MUCH)
        board.close(timeout_seconds=60)
        os._exit(0)  # and the store with it
    time.sleep(0.2 * rank)  # it is not there any more if rank 0 did not wait
    return board.wait("end", timeout_seconds=60)
