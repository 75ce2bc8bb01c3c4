"""Several ranks through the real session: real processes, real signals, real shards, and the same bits after all."""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.hooks.distributed import DIED, on_ranks
from tests.hooks.folders import checkpoints, of_kind
from tests.hooks.ranks_training import (
    SAMPLES,
    Job,
    Outcome,
    Parts,
    demand_equal,
    demand_same_end,
    meet,
    train,
    wait_for,
)
from trainer_hooks import Session, keeper
from trainer_hooks import session as session_module
from trainer_hooks.checkpoint import layout
from trainer_hooks.checkpoint.manifest import decode
from trainer_hooks.checkpoint.memory import Memory
from trainer_hooks.checkpoint.store import Store
from trainer_hooks.protocol import Ended
from trainer_hooks.ranks import Board
from trainer_hooks.storage import LocalStorage

pytestmark = [pytest.mark.system, pytest.mark.enable_socket]

ROOT = Path(__file__).parent.parent.parent
RANKS = 2


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_killed_and_preempted_it_ends_bit_equal(kind: str, tmp_path: Path) -> None:
    job = Job(kind=kind)
    expected = _run(tmp_path / "whole", job)
    cut = tmp_path / "cut"

    assert on_ranks(RANKS, train, cut, replace(job, dies_at=10)) == [DIED, DIED]
    left = _run(cut, replace(job, notice_at=13, seed=1))
    ended = _run(cut, replace(job, seed=2))

    assert [one.ended for one in left] == ["75", "75"], "a notice that only one rank heard"
    assert left[0].step == left[1].step >= 13
    assert ended[0].resumed_from == f"step-{left[0].step}-a2"
    assert of_kind(Ended, cut, 2)[0].reason == "preempted"
    demand_same_end(ended, expected)


def test_gradients_of_an_accumulation_are_kept_of_every_rank(tmp_path: Path) -> None:
    job = Job(accumulate=3, every=4)
    expected = _run(tmp_path / "whole", job)

    assert on_ranks(RANKS, train, tmp_path / "cut", replace(job, dies_at=11)) == [DIED, DIED]
    ended = _run(tmp_path / "cut", replace(job, seed=1))

    assert ended[0].resumed_from in ("step-4-a1", "step-8-a1"), "in the middle of an accumulation"
    demand_same_end(ended, expected)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_on_other_numbers_of_ranks_state_and_data_go_on(kind: str, tmp_path: Path) -> None:
    """1 → 2 → 4 → 1 in one epoch: every tensor to the bit, every sample once."""
    legs = [(1, 8), (2, 12), (4, 13), (1, 0)]  # ranks, and the step after which they are preempted

    left: dict[str, torch.Tensor] | None = None
    samples: list[int] = []
    for number, (world_size, notice_at) in enumerate(legs):
        job = Job(kind=kind, steps=None, epochs=1, notice_at=notice_at, hears=0, seed=number)
        outcomes = on_ranks(world_size, _train_deciding_at_every_step, tmp_path, job)
        if left is not None:
            for outcome in outcomes:
                demand_equal(outcome.found, left)
        drawn = {outcome.numbers[0] for outcome in outcomes}
        assert len(drawn) == world_size, "no rank draws the same random numbers as another"
        left = outcomes[0].left
        samples += chain.from_iterable(outcome.samples for outcome in outcomes)
        assert {outcome.ended for outcome in outcomes} == {"75" if notice_at else "completed"}

    assert sorted(samples) == list(range(SAMPLES))


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_each_rank_writes_its_share_and_each_chunk_is_written_once(kind: str, tmp_path: Path) -> None:
    job = Job(kind=kind, width=2048, steps=2, every=100)

    written = on_ranks(RANKS, _count_chunks, tmp_path, job)

    (manifest,) = tmp_path.glob("checkpoints/*/manifest.json")
    chunks = [chunk.hash for chunk in decode(manifest.read_bytes(), name=manifest.parent.name).chunks]
    shares = [sum(size for _, size in puts) for puts in written]
    assert max(shares) < 0.6 * sum(shares), shares
    for puts in written:
        assert len({name for name, _ in puts}) == len(puts)
    names = [name.removeprefix("chunks/") for puts in written for name, _ in puts]
    assert Counter(names) <= Counter(chunks), "two that happen to be the same may be written by two ranks"
    assert set(names) == set(chunks)


@pytest.mark.parametrize("dying", range(RANKS))
def test_the_death_of_one_rank_while_it_writes_leaves_the_checkpoint_before(dying: int, tmp_path: Path) -> None:
    job = Job(steps=16, width=2048)
    expected = _run(tmp_path / "whole", job)

    outcomes = on_ranks(RANKS, _die_writing_the_second, tmp_path / "cut", job, dying)

    assert outcomes[dying] == DIED
    assert outcomes[1 - dying].ended.startswith(("RuntimeError", "ConnectionError", "DistBackendError")), outcomes
    assert checkpoints(tmp_path / "cut") == ["step-4-a1"]
    ended = _run(tmp_path / "cut", replace(job, seed=1))
    assert ended[0].resumed_from == "step-4-a1"
    demand_same_end(ended, expected)


def test_nothing_between_the_training_s_own_collectives_is_one(tmp_path: Path) -> None:
    assert on_ranks(RANKS, _train_without_collectives_of_objects, tmp_path) == ["completed"] * RANKS
    assert checkpoints(tmp_path)[-1] == "step-50-a1"


def test_the_first_rank_does_not_commit_before_the_slowest_has_written(tmp_path: Path) -> None:
    committed_early = on_ranks(RANKS, _write_late, tmp_path)

    assert committed_early == [[], []]
    assert "step-4-a1" in checkpoints(tmp_path)


@pytest.mark.parametrize("every", [4, 100], ids=["at a step", "at the end"])
def test_a_newer_attempt_ends_all_ranks_alike(every: int, tmp_path: Path) -> None:
    outcomes = on_ranks(RANKS, _be_superseded, tmp_path, Job(every=every))

    assert [(one.ended, one.step) for one in outcomes] == [("75", outcomes[0].step)] * RANKS
    assert checkpoints(tmp_path) == (["step-4-a1"] if every == 4 else [])


def test_a_newer_attempt_that_shows_behind_the_last_commit_ends_all_alike(tmp_path: Path) -> None:
    outcomes = on_ranks(RANKS, _be_superseded_at_last, tmp_path, Job(steps=6, every=100))

    assert [one.ended for one in outcomes] == ["75"] * RANKS
    assert checkpoints(tmp_path) == ["step-6-a1"]


@pytest.mark.parametrize("every", [4, 100], ids=["at a step", "at the end"])
@pytest.mark.parametrize("failing", range(RANKS))
def test_three_failures_of_one_rank_end_all_alike(failing: int, every: int, tmp_path: Path) -> None:
    outcomes = on_ranks(RANKS, _run_full, tmp_path, Job(every=every, steps=40 if every == 4 else 6), failing)

    assert outcomes[0].step == outcomes[1].step < 40
    for outcome in outcomes:
        assert outcome.ended.startswith("SavingFailed: 3 saves in a row failed"), outcome.ended
        assert "No space left" in outcome.ended
    assert checkpoints(tmp_path) == (["step-4-a1"] if every == 4 else [])
    assert of_kind(Ended, tmp_path)[0].reason == "failed"


def test_what_only_the_first_rank_knows_ends_all_alike(tmp_path: Path) -> None:
    """It brings the checkpoints from the local disk to the run folder, and cannot."""
    outcomes = on_ranks(RANKS, _fail_to_ship, tmp_path / "run", tmp_path / "disk", Job(steps=200))

    assert outcomes[0].step == outcomes[1].step < 200
    assert [one.ended.partition(":")[0] for one in outcomes] == ["SavingFailed"] * RANKS
    assert checkpoints(tmp_path / "run") == []


@pytest.mark.parametrize("short", range(RANKS))
def test_a_save_for_which_one_rank_has_no_memory_is_none_and_the_next_one_is(short: int, tmp_path: Path) -> None:
    outcomes = on_ranks(RANKS, _lack_memory_once, tmp_path, Job(steps=12), short)

    assert [one.ended for one in outcomes] == ["completed"] * RANKS
    assert checkpoints(tmp_path) == ["step-8-a1", "step-12-a1"]


def test_a_second_save_of_one_step_is_left_out_on_every_rank(tmp_path: Path) -> None:
    assert on_ranks(RANKS, _save_twice, tmp_path) == [1, 1]


def _run(folder: Path, job: Job) -> list[Outcome]:
    return on_ranks(RANKS, train, folder, job)


def _train_deciding_at_every_step(rank: int, folder: Path, job: Job) -> Outcome:
    session_module.steps_until_agreement = lambda step_seconds: 1  # type: ignore[attr-defined]  # imported there
    return train(rank, folder, job)


def _watch_puts(then: Callable[[str, int], object]) -> None:
    """`then(path, size)` before every put of a chunk by this process."""
    put = LocalStorage.put

    def watched(self: LocalStorage, path: str, data: Any, *, exclusive: bool = False) -> None:
        if path.startswith("chunks/"):
            then(path, memoryview(data).nbytes)
        put(self, path, data, exclusive=exclusive)

    LocalStorage.put = watched  # type: ignore[method-assign]


def _count_chunks(rank: int, folder: Path, job: Job) -> list[tuple[str, int]]:
    layout.OWN_BYTES, layout.CHUNK_BYTES = 4096, 8192
    puts: list[tuple[str, int]] = []
    _watch_puts(lambda path, size: puts.append((path, size)))
    assert train(rank, folder, job).ended == "completed"
    return puts


def _die_writing_the_second(rank: int, folder: Path, job: Job, dying: int) -> Outcome:
    keeper.FAILED_SECONDS = keeper.PARTING_SECONDS = session_module.PARTING_SECONDS = 0.5
    layout.OWN_BYTES, layout.CHUNK_BYTES = 4096, 8192
    puts: list[str] = []

    def die(path: str, size: int) -> None:
        puts.append(path)
        if len(puts) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    def within(session: Session) -> None:
        if session.step == 7:
            session._keeper.wait()  # for the first save, on every rank
            dist.barrier()
            if rank == dying:
                _watch_puts(die)

    return train(rank, folder, job, within=within)


def _train_without_collectives_of_objects(rank: int, folder: Path) -> str:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a collective in the hot path")

    parts = Parts(rank, Job())
    with Session(run_uri=str(folder), checkpoint_every_steps=7, **parts.objects()) as session:
        for name in ("all_gather_object", "broadcast_object_list", "all_gather", "broadcast", "barrier", "all_reduce"):
            setattr(dist, name, refuse)
        for _, batch in session(parts.loader, steps=50):
            parts.step(batch, has_to_wait=False)
    return "completed"


def _write_late(rank: int, folder: Path) -> list[str]:
    """Rank 1 writes the first save's chunks only after rank 0 has looked for them in vain, several times."""
    looks: list[bool] = []
    early: list[str] = []
    has_all = Board._has_all
    looked = folder / "looked"

    def look(self: Board, key: str) -> bool:
        looks.append(has_all(self, key))
        if len(looks) == 5:
            looked.touch()
        return looks[-1]

    def within(session: Session) -> None:
        if session.step == 6 and rank == 0:
            wait_for(looked.exists)
        if session.step == 6 and not any(looks):
            early.extend(checkpoints(folder))

    if rank == 0:
        Board._has_all = look  # type: ignore[method-assign]
    else:
        _watch_puts(lambda path, size: wait_for(looked.exists))
    assert train(rank, folder, Job(steps=8), within=within).ended == "completed"
    return early


def _be_superseded(rank: int, folder: Path, job: Job) -> Outcome:
    def within(session: Session) -> None:
        if session.step == 5:
            session._keeper.wait()
            meet(folder, "before")
            claim = folder / "journal" / "007"
            claim.mkdir(parents=True, exist_ok=True)
            meet(folder, "after")

    return train(rank, folder, job, within=within)


def _be_superseded_at_last(rank: int, folder: Path, job: Job) -> Outcome:
    prune = Store.prune

    def prune_late(self: Store, **given: Any) -> Any:
        (folder / "journal" / "007").mkdir(parents=True)
        return prune(self, **given)

    Store.prune = prune_late  # type: ignore[method-assign]
    return train(rank, folder, job)


def _run_full(rank: int, folder: Path, job: Job, failing: int) -> Outcome:
    def refuse(path: str, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def within(session: Session) -> None:
        if session.step == 5:
            session._keeper.wait()
            dist.barrier()
            if rank == failing:
                _watch_puts(refuse)

    return train(rank, folder, job, within=within)


def _fail_to_ship(rank: int, folder: Path, disk: Path, job: Job) -> Outcome:
    os.environ |= {"LAUNCH_CHECKPOINT_LOCAL": str(disk), "LOCAL_WORLD_SIZE": str(RANKS)}
    put = LocalStorage.put

    def refuse(self: LocalStorage, path: str, data: Any, *, exclusive: bool = False) -> None:
        if path.startswith("chunks/") and self._root == folder:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
        put(self, path, data, exclusive=exclusive)

    def within(session: Session) -> None:
        if session.step % job.every == job.every - 1 and rank == 0 and session._keeper._shipper is not None:
            session._keeper._saver.wait_shipped()

    LocalStorage.put = refuse  # type: ignore[method-assign]
    return train(rank, folder, job, within=within)


def _lack_memory_once(rank: int, folder: Path, job: Job, short: int) -> Outcome:
    take = Memory.take

    def lack(self: Memory, size_bytes: int, *, waits: bool = True) -> Any:
        Memory.take = take  # type: ignore[method-assign]
        raise MemoryError("none left")

    if rank == short:
        Memory.take = lack  # type: ignore[method-assign]
    return train(rank, folder, job)


def _save_twice(rank: int, folder: Path) -> int:
    parts = Parts(rank, Job())
    with Session(run_uri=str(folder), **parts.objects()) as session:
        for _, batch in session(parts.loader, steps=3):
            parts.step(batch, has_to_wait=False)
        session.save()
        session.save()
        return session._keeper._saver._saves
