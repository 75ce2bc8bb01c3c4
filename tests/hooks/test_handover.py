"""A second attempt beside the one that trains: it waits without a trace, and goes on from what that one saved last."""

from __future__ import annotations

import errno
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.hooks.distributed import DIED, on_ranks
from tests.hooks.folders import checkpoints, control, launch, of_kind
from tests.hooks.ranks_training import Job, Outcome, demand_same_end
from tests.hooks.ranks_training import train as train_rank
from tests.hooks.slow_s3 import Line, Trouble
from tests.hooks.storages import MemoryStorage, _Passing
from tests.hooks.test_hooks_system import finish, lines, start
from tests.hooks.test_session import a_session
from tests.hooks.training import Death, Recipe, train, undisturbed
from trainer_hooks import control as control_module
from trainer_hooks import handover
from trainer_hooks.handover import take_turn
from trainer_hooks.meter import Meter, process_started
from trainer_hooks.protocol import CAP_SECONDS, Contract, Ended, Started
from trainer_hooks.ranks import Ranks
from trainer_hooks.rendezvous import Post, open_post
from trainer_hooks.settings import resolve
from trainer_hooks.storage import FsspecStorage, LocalStorage, Storage
from trainer_hooks.storage.remote import Retries

pytestmark = [pytest.mark.system, pytest.mark.enable_socket]

RECIPE = Recipe(steps=12, every=4)
RANKS = 2
SHORT_SECONDS = 1.0  # for a collective of the waiting ranks: they wait longer
AGE_SECONDS = 1000.0  # of a process at its first look, where its bill counts


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_PERIOD_SECONDS", "REMOTE_PERIOD_SECONDS"):
        monkeypatch.setattr(control_module, name, 0.02)


@contextmanager
def beside(act: Callable[[], object]) -> Iterator[None]:
    """The launcher, or the other attempt, while this one waits."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(act)
        yield
        done.result()


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts trainings that do not outlive their test: one that waits in vain would wait for ever."""
    processes: list[subprocess.Popen[str]] = []

    def start_one(folder: Path, recipe: Recipe, **environ: str) -> subprocess.Popen[str]:
        processes.append(start(folder, recipe, **environ))
        return processes[-1]

    yield start_one
    for process in processes:
        process.kill()
        process.communicate()


def is_ready(folder: Path, attempt: int = 2) -> bool:
    return (folder / f"control/ready-{attempt}").exists()


def contract(folder: Path, *, attempt: int, **changes: Any) -> dict[str, str]:
    values: dict[str, Any] = {"run_id": "run-1", "attempt": attempt, "run_uri": str(folder)}
    return Contract(**values | changes).to_environment()


def wait_for(condition: Callable[[], object]) -> None:
    """With an end, so that a thread that waits in vain does not hold up the end of its test."""
    until = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def look_again() -> None:
    """Ten looks of one that waits."""
    time.sleep(0.2)


# --- whole processes ---


def test_it_goes_on_with_what_the_other_saved_after_it_had_begun_to_wait(
    tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    recipe = Recipe(steps=600, every=5)
    old = started(tmp_path, recipe, PAUSE="0.1", **contract(tmp_path, attempt=1))
    new = started(tmp_path, recipe, SEED="3", **contract(tmp_path, attempt=2, relieves=1))

    wait_for(lambda: is_ready(tmp_path))
    before = checkpoints(tmp_path)
    wait_for(lambda: len(set(checkpoints(tmp_path)) - set(before)) >= 2)  # who waits fences nobody
    control(tmp_path, "stop", {"attempt": 1})
    seen = int([*lines(old)][-1][1])
    said = old.communicate(timeout=150)[1]
    assert old.returncode == 75, said
    assert not (tmp_path / "journal/002").exists()
    control(tmp_path, "go-2", {"spent_usd": "12.34"})
    out, err = new.communicate(timeout=150)

    assert of_kind(Ended, tmp_path, 1)[0].reason == "stopped"
    assert of_kind(Started, tmp_path, 2) == [Started(step=seen, resumed_from=f"step-{seen}-a1")]
    assert out.split()[-1] == undisturbed(recipe)
    assert err.splitlines()[:3] == [
        "spotlaunch: waiting for attempt 1 to hand over",
        "spotlaunch: taking over from attempt 1",
        f"spotlaunch: resumed from step-{seen}-a1",
    ]


def test_a_machine_that_is_taken_while_it_waits_loses_nothing_and_may_wait_again(
    tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    environ = contract(tmp_path, attempt=2, relieves=1)
    waiting = started(tmp_path, RECIPE, **environ)
    wait_for(lambda: is_ready(tmp_path))

    os.kill(waiting.pid, signal.SIGTERM)
    err = waiting.communicate(timeout=150)[1]

    assert waiting.returncode == -signal.SIGTERM
    assert err == "spotlaunch: waiting for attempt 1 to hand over\n"
    assert [path.name for path in tmp_path.iterdir()] == ["control"]
    control(tmp_path, "go-2", {"spent_usd": "1"})
    assert finish(started(tmp_path, RECIPE, **environ)) == undisturbed(RECIPE)


# --- in a run folder ---


@dataclass
class Watched(_Passing):
    """`seen` is what was done to it; `fails` is asked before each call."""

    storage: Storage
    seen: list[str] = field(default_factory=list)
    fails: Callable[[str], bool] = lambda path: False

    def put(self, path: str, data: Any, *, exclusive: bool = False) -> None:
        self._see("put", path)
        super().put(path, data, exclusive=exclusive)

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        self._see("read", path)
        return super().read(path, limit_bytes=limit_bytes)

    def names(self, folder: str) -> tuple[str, ...]:
        self._see("names", folder)
        return super().names(folder)

    def sizes(self, folder: str) -> dict[str, int]:
        self._see("sizes", folder)
        return super().sizes(folder)

    def _see(self, what: str, path: str) -> None:
        self.seen.append(f"{what} {path}")
        if self.fails(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _soon: None) -> Watched:
    storage = Watched(LocalStorage(tmp_path))
    monkeypatch.setattr("trainer_hooks.session.open_storage", lambda uri: storage)
    launch(monkeypatch, tmp_path, attempt=2, relieves=1)
    return storage


def test_before_the_go_it_only_says_that_it_waits_and_looks_for_a_go_and_a_stop(
    watched: Watched, tmp_path: Path
) -> None:
    waited: list[str] = []

    def let_wait() -> None:
        wait_for(lambda: is_ready(tmp_path))
        look_again()
        waited.extend(watched.seen)
        control(tmp_path, "go-2", {"spent_usd": "1"})

    with beside(let_wait):
        train(tmp_path, RECIPE)

    look = ["read control/go-2", "read control/stop"]
    assert waited[:3] == [look[0], "put control/ready-2", look[1]]
    assert waited[3:] == look * (len(waited[3:]) // 2) + look[: len(waited) % 2 == 0]
    assert len(waited) > 7
    assert watched.seen[len(waited) :].index("put journal/002/00000000.jsonl") <= 2, "the claim is the first thing"
    assert (tmp_path / "control/ready-2").read_text() == '{"attempt": 2}'


def test_a_go_that_is_there_already_is_not_waited_for(
    watched: Watched, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    control(tmp_path, "go-2", {"spent_usd": "1"})

    assert train(tmp_path, RECIPE) == undisturbed(RECIPE)

    assert not is_ready(tmp_path)
    assert watched.seen[:2] == ["read control/go-2", "put journal/002/00000000.jsonl"]
    assert "spotlaunch: " not in capsys.readouterr().err


def test_a_stop_ends_the_wait_with_75_and_without_a_record(
    watched: Watched, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop() -> None:
        wait_for(lambda: is_ready(tmp_path))
        control(tmp_path, "stop", {"attempt": 2})

    with pytest.raises(SystemExit) as caught, beside(stop):
        train(tmp_path, RECIPE)

    assert caught.value.code == 75
    assert [path.name for path in tmp_path.iterdir()] == ["control"]
    assert capsys.readouterr().err.splitlines() == [
        "spotlaunch: waiting for attempt 1 to hand over",
        "spotlaunch: stopped as asked before attempt 1 had handed over; exit 75",
    ]


def test_a_stop_of_the_other_or_its_go_does_not_end_the_wait(watched: Watched, tmp_path: Path) -> None:
    control(tmp_path, "stop", {"attempt": 1})
    control(tmp_path, "go-1", {"spent_usd": "1"})

    def hand_over_late() -> None:
        wait_for(lambda: is_ready(tmp_path))
        look_again()
        assert not (tmp_path / "journal").exists()
        control(tmp_path, "go-2", {"spent_usd": "1"})

    with beside(hand_over_late):
        assert train(tmp_path, RECIPE) == undisturbed(RECIPE)


@pytest.mark.usefixtures("_soon")
def test_it_does_not_wait_beyond_the_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spent = Decimal(str(time.monotonic() - process_started()))  # at a dollar a second
    cap = spent + Decimal(str(CAP_SECONDS + 1))
    launch(monkeypatch, tmp_path, attempt=2, relieves=1, price_usd_per_hour=Decimal(3600), cap_usd=cap)

    began = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        train(tmp_path, RECIPE)

    assert caught.value.code == 75
    assert 0.5 < time.monotonic() - began < 10
    assert [path.name for path in tmp_path.iterdir()] == ["control"]
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == "spotlaunch: stopped at the cap before attempt 1 had handed over; exit 75"


def test_the_cap_holds_where_the_run_folder_does_not_answer(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    watched.fails = lambda path: True
    monkeypatch.setenv("LAUNCH_PRICE_USD_PER_HOUR", "1")
    monkeypatch.setenv("LAUNCH_CAP_USD", "0.000001")

    with pytest.raises(SystemExit):
        train(Path(), RECIPE)


def test_a_run_folder_that_does_not_answer_is_asked_again_and_complained_of_once(
    watched: Watched, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failing = ["control/go-2", "control/ready-2", "control/go-2", "control/stop", "control/stop"]

    def fails(path: str) -> bool:
        if failing and failing[0] == path:
            failing.pop(0)
            return True
        return False

    def hand_over() -> None:
        wait_for(lambda: is_ready(tmp_path) and not failing)
        control(tmp_path, "go-2", {"spent_usd": "1"})

    watched.fails = fails
    with beside(hand_over):
        assert train(tmp_path, RECIPE) == undisturbed(RECIPE)

    assert [record.message for record in caplog.records] == [
        "the run folder does not answer; still waiting to take over"
    ]


# --- what it costs ---


def a_turn(storage: Storage, monkeypatch: pytest.MonkeyPatch, ranks: Ranks = Ranks()) -> Meter:  # noqa: B008  # frozen
    """Of attempt 2, at a cent a second, $5 spent before."""
    started = time.monotonic() - AGE_SECONDS
    monkeypatch.setattr(handover, "process_started", lambda: started)
    launch(
        monkeypatch,
        Path("run"),
        attempt=2,
        relieves=1,
        price_usd_per_hour=Decimal(36),
        spent_usd=Decimal(5),
        cap_usd=Decimal(100),
    )
    return take_turn(resolve(os.environ, run_uri=None, every=None, keep=None), storage, ranks, attempt=2)


def cents_since(start: float, *, usd: str, meter: Meter) -> float:
    spent = meter.spent_usd(start)
    assert spent is not None
    return float((spent - Decimal(usd)) * 100)


@pytest.mark.usefixtures("_soon")
def test_from_the_go_on_the_launcher_s_sum_counts_and_the_time_since_then(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = MemoryStorage()
    gone: list[float] = []

    def hand_over() -> None:
        wait_for(lambda: "control/ready-2" in storage.files)
        look_again()
        gone.append(time.monotonic())
        storage.put("control/go-2", b'{"spent_usd": "12.34"}')

    with beside(hand_over):
        meter = a_turn(storage, monkeypatch)

    at_go = cents_since(gone[0], usd="12.34", meter=meter)
    assert 0 <= at_go < 100, "up to one look more, never less"
    assert cents_since(gone[0] + 60, usd="12.34", meter=meter) == pytest.approx(at_go + 60)
    assert meter.stop_at(0.0) == pytest.approx(gone[0] + 8766 - CAP_SECONDS, abs=100)


def test_a_go_that_was_there_before_is_counted_from_the_process_s_start(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = MemoryStorage()
    storage.put("control/go-2", b'{"spent_usd": "12.34"}')

    meter = a_turn(storage, monkeypatch)

    assert cents_since(time.monotonic(), usd="12.34", meter=meter) == pytest.approx(AGE_SECONDS, abs=100)


@pytest.mark.parametrize(
    "go",
    [
        *(b"", b"not json", b"\xff", b"[]", b"{}", b'{"spent_usd": null}', b'{"spent_usd": "much"}'),
        *(b'{"spent_usd": "NaN"}', b'{"spent_usd": "-1"}', b'{"spent_usd": "Infinity"}', b'{"spent_usd": true}'),
    ],
)
def test_a_go_without_a_sum_counts_on_from_the_contract(go: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = MemoryStorage()
    storage.put("control/go-2", go)

    meter = a_turn(storage, monkeypatch)

    assert cents_since(time.monotonic(), usd="5", meter=meter) == pytest.approx(AGE_SECONDS, abs=100)


def test_an_attempt_that_relieves_nobody_looks_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Watched(MemoryStorage())
    launch(monkeypatch, Path("run"), attempt=2)

    meter = take_turn(resolve(os.environ, run_uri=None, every=None, keep=None), storage, Ranks(), attempt=2)

    assert storage.seen == []
    assert (meter.spent_usd(0.0), meter.stop_at(0.0)) == (None, math.inf)


# --- in a bucket ---


@pytest.mark.usefixtures("_soon")
def test_in_a_bucket_a_look_is_two_requests_and_an_outage_is_waited_out(
    s3_line: tuple[str, Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, line = s3_line
    retries = Retries(tries=2, first_wait_seconds=0.001)
    monkeypatch.setattr("trainer_hooks.session.open_storage", lambda where: FsspecStorage(where, retries=retries))
    with pytest.raises(Death):
        train(Path(), RECIPE, run_uri=uri, die_at=10)
    launch(monkeypatch, Path(), attempt=2, relieves=1, run_uri=uri)
    line.seen.clear()
    waited: list[str] = []

    def hand_over() -> None:
        wait_for(lambda: sum("control/stop" in request for request in line.seen) >= 3)
        waited.extend(request.partition("?")[0].rpartition("/")[2] for request in line.seen)
        line.troubles = [outage := Trouble(kind="answer", times=6, path="control/")]
        wait_for(lambda: outage.times == 0)
        FsspecStorage(uri).put("control/go-2", b'{"spent_usd": "1"}')

    with beside(hand_over):
        ended = train(Path(), RECIPE, run_uri=uri, seed=5)

    own = waited[waited.index("go-2") :]  # before it: a look that the dead one had begun
    assert own[:7] == ["go-2", "ready-2", "stop", "go-2", "stop", "go-2", "stop"]
    assert ended == undisturbed(RECIPE)
    assert FsspecStorage(uri).names("journal") == ("001", "002")


# --- several ranks ---


@pytest.mark.usefixtures("_soon")
def test_without_a_process_group_each_process_waits_and_the_first_one_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Watched(MemoryStorage())

    def hand_over() -> None:
        wait_for(lambda: len(storage.seen) >= 4)
        storage.storage.put("control/go-2", b'{"spent_usd": "12.34"}')

    with beside(hand_over):
        meter = a_turn(storage, monkeypatch, Ranks(rank=1, world_size=2))

    assert cents_since(time.monotonic(), usd="12.34", meter=meter) < 100
    assert set(storage.seen) == {"read control/go-2", "read control/stop"}
    assert capsys.readouterr().err == ""


def test_two_ranks_take_over_together_what_two_ranks_have_left(tmp_path: Path) -> None:
    job, folder = Job(), tmp_path / "run"
    expected = on_ranks(RANKS, train_rank, tmp_path / "whole", job)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(on_ranks, RANKS, _relieve, folder, Job(seed=1))
        wait_for(lambda: is_ready(folder))
        left = on_ranks(RANKS, _train_as_first, folder, Job(notice_at=10))
        time.sleep(SHORT_SECONDS)
        control(folder, "go-2", {"spent_usd": "1"})
        taken = waiting.result()

    assert [one.ended for one in left] == ["75", "75"]
    assert [one.resumed_from for one, _ in taken] == [f"step-{left[0].step}-a1"] * RANKS
    assert [looks > 0 for _, looks in taken] == [True, False], "looks are billed: one rank's are enough"
    demand_same_end([one for one, _ in taken], expected)


def test_a_stop_ends_the_wait_of_all_ranks_alike(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(on_ranks, RANKS, _wait, tmp_path)
        wait_for(lambda: is_ready(tmp_path))
        control(tmp_path, "stop", {"attempt": 2})

        assert waiting.result() == [DIED, "75"], "the first one, which serves the store, has gone last"

    assert [path.name for path in tmp_path.iterdir()] == ["control"]


def test_who_waits_for_a_dead_first_rank_ends(tmp_path: Path) -> None:
    assert on_ranks(RANKS, _die_waiting, tmp_path) == [DIED, "the ranks' store is gone"]


def _train_as_first(rank: int, folder: Path, job: Job) -> Outcome:
    os.environ |= contract(folder, attempt=1)
    return train_rank(rank, folder, job)


def _relieve(rank: int, folder: Path, job: Job) -> tuple[Outcome, int]:
    """Also: how often this rank looked into the run folder before its turn. A collective would not wait so long."""
    os.environ |= contract(folder, attempt=2, relieves=1)
    looks: list[str] = []
    agreed, read = handover._agreed, LocalStorage.read

    def look(self: LocalStorage, path: str, *, limit_bytes: int) -> bytes:
        looks.append(path)
        return read(self, path, limit_bytes=limit_bytes)

    def become_impatient(ranks: Ranks) -> Any:
        post = open_post(ranks)
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=SHORT_SECONDS))
        LocalStorage.read = look  # type: ignore[method-assign]
        return post

    def become_patient(watch: handover.Watch, ranks: Ranks) -> handover.Word:
        word = agreed(watch, ranks)
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=60))
        LocalStorage.read = read  # type: ignore[method-assign]
        return word

    handover.open_post = become_impatient  # type: ignore[attr-defined]  # it is there
    handover._agreed = become_patient
    return train_rank(rank, folder, job), len(looks)


def _wait(rank: int, folder: Path) -> str:
    """How it ended, before there was a session."""
    os.environ |= contract(folder, attempt=2, relieves=1)
    try:
        a_session(folder)
    except SystemExit as end:
        if rank == 0:
            os._exit(0)
        return str(end.code)
    except ConnectionError:
        return "the ranks' store is gone"
    return "its turn came"


def _die_waiting(rank: int, folder: Path) -> str:
    hear = handover._hear

    def die(self: handover.Watch) -> handover.Word:
        wait_for((folder / "heard").exists)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def listen(post: Post) -> handover.Word:
        (folder / "heard").touch()
        return hear(post)

    handover.Watch.word = die  # type: ignore[method-assign]
    handover._hear = listen
    return _wait(rank, folder)
