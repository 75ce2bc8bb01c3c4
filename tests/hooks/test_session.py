"""What a session does at its safe points, and what a script may ask of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from tests.hooks.folders import checkpoints, control, launch, of_kind, records
from tests.hooks.storages import Full
from tests.hooks.training import Death, Parts, Recipe, train, undisturbed
from trainer_hooks import CheckpointMismatch, CheckpointsDamaged, NotLoadable, SavingFailed, Session, schedule
from trainer_hooks.protocol import Committed, Ended, Notice, ProtocolError, Started, Step
from trainer_hooks.storage import LocalStorage

pytestmark = pytest.mark.system  # small trainings, but whole ones

MANY = 100_000


class Counter:
    """The smallest thing with a state."""

    def __init__(self) -> None:
        self.value = 0

    def state_dict(self) -> dict[str, int]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.value = state["value"]


def a_session(folder: Path, **settings: Any) -> Session:
    return Session(**{"run_uri": str(folder), "checkpoint_every_steps": MANY, "counter": Counter()} | settings)


def run(batches: Iterable[Any], act: Callable[[Any], object] = lambda batch: None) -> None:
    for batch in batches:
        act(batch)


def die_on(last: int) -> Callable[[int], None]:
    def act(batch: int) -> None:
        if batch == last:
            raise Death

    return act


def run_until_exit(session: Session) -> int:
    """Steps until the session leaves by itself."""
    with pytest.raises(SystemExit) as caught:
        run(session(range(MANY), steps=MANY), lambda batch: threading.Event().wait(0.005))
    assert caught.value.code == 75
    return session.step


# --- where a resume goes on ---


def test_a_batch_is_seen_once(tmp_path: Path) -> None:
    seen: list[int] = []

    def see(batch: int) -> None:
        seen.append(batch)
        die_on(13)(len(seen))

    with pytest.raises(Death), a_session(tmp_path, checkpoint_every_steps=2) as session:
        run(session(range(10), epochs=2), see)
    with a_session(tmp_path) as session:
        assert (session.step, session.resumed_from) == (12, "step-12-a1")
        rest = list(session(range(10), epochs=2))

    assert [*range(10), *range(10)] == seen[:12] + rest


def test_a_save_between_resume_and_loop_keeps_the_place(tmp_path: Path) -> None:
    with pytest.raises(Death):
        train(tmp_path, Recipe(), die_at=11)
    parts = Parts(Recipe(), seed=1)
    with Session(run_uri=str(tmp_path), **parts.objects()) as session:
        session.save()
    assert checkpoints(tmp_path)[-1] == "step-9-a2"

    assert undisturbed(Recipe()) == train(tmp_path, Recipe(), seed=2)


def test_a_notice_before_the_first_step_after_a_resume_writes_nothing_again(tmp_path: Path) -> None:
    with pytest.raises(Death):
        train(tmp_path, Recipe(), die_at=11)
    before = checkpoints(tmp_path)
    parts = Parts(Recipe(), seed=1)
    session = Session(run_uri=str(tmp_path), **parts.objects())
    session._attention._stop()

    with pytest.raises(SystemExit):
        next(iter(session(parts.loader, steps=20)))

    session.close()
    assert before == checkpoints(tmp_path)
    assert undisturbed(Recipe()) == train(tmp_path, Recipe(), seed=2)


@pytest.mark.parametrize("recipe", [Recipe(workers=2), Recipe(workers=2, own_generator=True, every=1)])
def test_workers_draw_the_same_after_a_resume(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(Death):
        train(tmp_path, recipe, die_at=10)

    assert undisturbed(recipe) == train(tmp_path, recipe, seed=7)


@pytest.mark.parametrize("die_at", [4, 9, 12])
def test_loops_are_counted_and_finished_ones_skipped(die_at: int, tmp_path: Path) -> None:
    def two_loops(folder: Path, *, seed: int, die_at: int = 0) -> str:
        parts = Parts(Recipe(own_generator=True), seed=seed)
        with Session(run_uri=str(folder), checkpoint_every_steps=2, **parts.objects()) as session:
            torch.rand(3)  # what comes before a loop is done again, and must not matter
            for epoch in range(3):
                for batch in session(parts.loader, steps=4 + epoch):
                    if session.step + 1 == die_at:
                        raise Death
                    parts.step(batch, number=1, accumulate=1)
            return parts.fingerprint()

    expected = two_loops(tmp_path / "whole", seed=0)
    with pytest.raises(Death):
        two_loops(tmp_path / "cut", seed=0, die_at=die_at)

    assert expected == two_loops(tmp_path / "cut", seed=5)
    assert expected == two_loops(tmp_path / "cut", seed=6), "a finished training is left as it is"


def test_a_loop_that_was_left_by_break_is_finished(tmp_path: Path) -> None:
    with a_session(tmp_path, checkpoint_every_steps=1) as session:
        for batch in session(range(10)):
            if batch == 3:
                break
        assert next(iter(session(range(10)))) == 0
        list(session(range(10), steps=2))

    with a_session(tmp_path) as session:
        assert [list(session(range(10))) for _ in range(2)] == [[], []]


def test_the_plain_form_goes_on_where_it_was(tmp_path: Path) -> None:
    def plain(folder: Path, *, seed: int, die_at: int = -1) -> str:
        parts = Parts(Recipe(), seed=seed)
        session = Session(run_uri=str(folder), checkpoint_every_steps=3, **parts.objects())
        try:
            for step in range(session.resume(), 10):
                if step == die_at:
                    raise Death
                parts.step(torch.rand(4, 8), number=1, accumulate=1)
                session.after_step(step + 1)
            return parts.fingerprint()
        finally:
            session.close()

    expected = plain(tmp_path / "whole", seed=0)
    with pytest.raises(Death):
        plain(tmp_path / "cut", seed=0, die_at=8)

    assert expected == plain(tmp_path / "cut", seed=3)
    assert checkpoints(tmp_path / "cut")[-1] == "step-10-a2"
    assert of_kind(Ended, tmp_path / "cut", 1)[0].reason == "failed"
    assert of_kind(Ended, tmp_path / "cut", 2)[0].reason == "completed"


def test_after_step_counts_from_one(tmp_path: Path) -> None:
    with a_session(tmp_path) as session, pytest.raises(ValueError, match="counted from 1"):
        session.after_step(session.resume())


class StatefulLoader:
    """Like torchdata's: restores itself at the next `iter`, so replaying batches on top would skip twice."""

    def __init__(self) -> None:
        self.at = 0
        self.fetched = 0

    def __iter__(self) -> Iterator[int]:
        start, self.at = self.at, 0
        for number in range(start, 8):
            self.at, self.fetched = number + 1, self.fetched + 1
            yield number
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def test_a_loader_with_a_state_restores_itself(tmp_path: Path) -> None:
    with pytest.raises(Death), a_session(tmp_path, checkpoint_every_steps=1) as session:
        run(session(StatefulLoader(), epochs=2), lambda batch: die_on(10)(session.step))
    loader = StatefulLoader()
    with a_session(tmp_path) as session:
        rest = list(session(loader, epochs=2))

    assert (rest, loader.fetched) == ([2, 3, 4, 5, 6, 7], 6)


@pytest.mark.parametrize("is_one_loop", [True, False])
def test_samplers_are_told_the_number_of_the_pass(is_one_loop: bool, tmp_path: Path) -> None:
    sampler: DistributedSampler[Any] = DistributedSampler(range(6), num_replicas=1, rank=0)
    loader = DataLoader(range(6), sampler=sampler, batch_size=None)  # type: ignore[arg-type]  # a range is a data set
    expected = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        expected += [int(number) for number in loader]

    def run() -> list[int]:
        with a_session(tmp_path) as session:
            passes = [session(loader, epochs=3)] if is_one_loop else [session(loader) for _ in range(3)]
            return [int(number) for one in passes for number in one]

    assert expected == run()


def test_a_loader_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Death), a_session(tmp_path, checkpoint_every_steps=1) as session:
        run(session(range(10)), die_on(7))

    with a_session(tmp_path) as session, pytest.raises(CheckpointMismatch, match="ends after 5 batches"):
        list(session(range(5)))


def test_an_empty_loader_does_not_loop_for_ever(tmp_path: Path) -> None:
    with a_session(tmp_path) as session, pytest.raises(ValueError, match="no batches"):
        list(session([], steps=5))


def test_gradients_of_an_unfinished_accumulation_are_state(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    with Session(run_uri=str(tmp_path), model=model) as session:
        for _ in session(range(1)):
            model(torch.ones(1, 2)).sum().backward()
    again = nn.Linear(2, 1)
    again.bias.grad = torch.ones(1) * 99

    Session(run_uri=str(tmp_path), model=again).close()

    assert again.weight.grad is not None
    assert torch.equal(model.weight.grad, again.weight.grad)  # type: ignore[arg-type]  # it has one
    assert again.bias.grad.item() == 1


# --- what a resume refuses ---


def test_a_changed_model_is_named(tmp_path: Path) -> None:
    with Session(run_uri=str(tmp_path), net=nn.Linear(2, 1)) as session:
        list(session(range(1)))

    with pytest.raises(CheckpointMismatch, match=r"net does not take .* checkpoint step-1-a1: .*size mismatch"):
        Session(run_uri=str(tmp_path), net=nn.Linear(3, 1))


@pytest.mark.parametrize(("now", "message"), [({}, "has counter"), ({"counter": 1, "ema": 1}, "has no ema")])
def test_other_keywords_are_named_before_anything_is_touched(now: Any, message: str, tmp_path: Path) -> None:
    with a_session(tmp_path) as session:
        list(session(range(1)))
    objects = {name: Counter() for name in now}

    with pytest.raises(CheckpointMismatch, match=message):
        Session(run_uri=str(tmp_path), **objects)

    assert all(counter.value == 0 for counter in objects.values())


def test_a_damaged_checkpoint_is_told_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with a_session(tmp_path, checkpoint_every_steps=3) as session:
        list(session(range(5)))
    (tmp_path / "checkpoints/step-5-a1/manifest.json").write_bytes(b"?")

    with a_session(tmp_path) as session:
        assert session.step == 3

    assert "step-5-a1 is damaged and was skipped, 2 steps lost: " in capsys.readouterr().err
    assert of_kind(Started, tmp_path, 2) == [Started(step=3, resumed_from="step-3-a1", lost_steps=2)]


def test_if_all_are_damaged_it_does_not_start_over(tmp_path: Path) -> None:
    with a_session(tmp_path) as session:
        list(session(range(5)))
    (tmp_path / "checkpoints/step-5-a1/manifest.json").write_bytes(b"?")

    with pytest.raises(CheckpointsDamaged):
        a_session(tmp_path)


def test_arguments_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ({"checkpoint_every_steps": 0}, {"keep": 1}, {"checkpoint_every_steps": "often"}):
        with pytest.raises(ValueError, match="give"):
            a_session(tmp_path, **wrong)
    with pytest.raises(TypeError, match=r"lr=…"):
        a_session(tmp_path, lr=0.1)
    with a_session(tmp_path, scheduler=None) as session, pytest.raises(ValueError, match="one of them"):
        session(range(3), steps=1, epochs=1)
    monkeypatch.setenv("LAUNCH_PROTOCOL", "2")
    with pytest.raises(ProtocolError):
        a_session(tmp_path)


# --- saving ---


def test_it_saves_every_n_steps_and_after_the_last(tmp_path: Path) -> None:
    with a_session(tmp_path, checkpoint_every_steps=4, keep=3) as session:
        list(session(range(10)))

    assert [record.step for record in of_kind(Committed, tmp_path)] == [4, 8, 10]
    assert checkpoints(tmp_path) == ["step-4-a1", "step-8-a1", "step-10-a1"]


def test_the_journal_tells_the_story(tmp_path: Path) -> None:
    with a_session(tmp_path) as session:
        for batch in session(range(3)):
            session.log(loss=torch.tensor(float(batch), requires_grad=True), nothing=float("nan"), text="x")
        session.outcome("val_acc", 0.91)

    kinds = [type(record) for record in records(tmp_path)]
    assert kinds == [Started, Step, Committed, Ended]
    ended = of_kind(Ended, tmp_path)[0]
    assert (ended.reason, ended.step, ended.metrics) == ("completed", 3, {"loss": 2.0, "val_acc": 0.91})
    assert ended.step_seconds > 0


def test_an_outcome_survives_a_resume(tmp_path: Path) -> None:
    with a_session(tmp_path) as session:
        session.outcome("early", 1)
        list(session(range(3)))

    a_session(tmp_path).close()

    assert of_kind(Ended, tmp_path, 2)[0].metrics == {"early": 1.0}


def test_save_inside_a_loop_waits_for_the_safe_point(tmp_path: Path) -> None:
    counter = Counter()
    with a_session(tmp_path, counter=counter) as session:
        for batch in session(range(5)):
            if batch == 2:
                session.save()
                assert checkpoints(tmp_path) == []
            counter.value += 1
    (tmp_path / "checkpoints/step-5-a1/manifest.json").unlink()
    counter = Counter()

    a_session(tmp_path, counter=counter).close()

    assert counter.value == 3


def fill(monkeypatch: pytest.MonkeyPatch) -> Full:
    """The disk is full for checkpoints from now on."""
    full = Full(LocalStorage(Path()), is_full=False, applies=lambda path: path.startswith("checkpoints"))

    def open_full(uri: str) -> Full:
        full.storage = LocalStorage(Path(uri))
        return full

    monkeypatch.setattr("trainer_hooks.session.open_storage", open_full)
    return full


def test_a_failed_save_is_shown_and_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = fill(monkeypatch)
    with a_session(tmp_path, checkpoint_every_steps=2) as session:
        for batch in session(range(14)):
            session._keeper.wait()
            full.is_full = batch in (3, 5, 9, 11)  # at the safe point after that batch

    shown = capsys.readouterr().err
    assert shown.count("could not be written") == 4, "two in a row, twice"
    assert "No space left" in shown
    assert [record.step for record in of_kind(Committed, tmp_path)] == [2, 8, 14]


def test_three_failures_in_a_row_end_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = fill(monkeypatch)
    session = a_session(tmp_path, checkpoint_every_steps=2)

    def act(batch: int) -> None:
        session._keeper.wait()
        full.is_full = batch > 4

    with pytest.raises(SavingFailed, match=r"3 saves in a row.*Free space"):
        run(session(range(100)), act)
    session.close()

    assert 10 <= session.step <= 12, (
        "the third failure shows while the training goes on, at the next save at the latest"
    )
    assert checkpoints(tmp_path) == ["step-2-a1", "step-4-a1"]
    assert [record.reason for record in of_kind(Ended, tmp_path)] == ["failed"]


def test_a_last_save_that_fails_is_not_a_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(monkeypatch).is_full = True

    with a_session(tmp_path) as session, pytest.raises(SavingFailed):
        list(session(range(3)))

    assert [record.reason for record in of_kind(Ended, tmp_path)] == ["failed"]


def test_a_folder_that_cannot_be_written_stops_no_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with a_session(tmp_path / "file" / "run", checkpoint_every_steps=4) as session, pytest.raises(SavingFailed):
        list(session(range(100)))

    assert 12 <= session.step <= 16


def test_an_unloadable_state_is_told_at_the_first_save(tmp_path: Path) -> None:
    counter = Counter()
    counter.value = Path("x")  # type: ignore[assignment]  # a user's mistake

    with (
        a_session(tmp_path, counter=counter) as session,
        pytest.raises(NotLoadable, match="counter: value is a pathlib"),
    ):
        list(session(range(3)))


def test_an_unloadable_numpy_value_is_named(tmp_path: Path) -> None:
    import numpy as np

    counter = Counter()
    counter.value = np.datetime64("2020-01-01")  # type: ignore[assignment]  # a user's mistake

    with a_session(tmp_path, counter=counter) as session, pytest.raises(NotLoadable, match="counter"):
        list(session(range(3)))


# --- leaving ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_on_a_signal_it_saves_and_leaves_with_75(number: int, tmp_path: Path) -> None:
    session = a_session(tmp_path)
    os.kill(os.getpid(), number)

    step = run_until_exit(session)

    assert checkpoints(tmp_path)[-1:] == [f"step-{step}-a1"]
    assert of_kind(Notice, tmp_path) == [Notice(source="signal")]
    assert [record.reason for record in of_kind(Ended, tmp_path)] == ["preempted"]


def test_a_users_own_handler_is_still_called(tmp_path: Path) -> None:
    called: list[int] = []

    def own(number: int, frame: object) -> None:
        called.append(number)

    signal.signal(signal.SIGTERM, own)
    with a_session(tmp_path):
        os.kill(os.getpid(), signal.SIGTERM)

    assert called == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is own


def test_a_notice_in_the_last_step_does_not_cut_off_what_follows(tmp_path: Path) -> None:
    with a_session(tmp_path) as session:
        for _ in session(range(3), steps=3):
            if session.step == 2:
                session._attention._stop()
        assert checkpoints(tmp_path) == ["step-3-a1"]

    assert of_kind(Ended, tmp_path)[0].reason == "completed"


@pytest.mark.parametrize("content", [{"attempt": 2}, {}, "not json", [1]])
def test_a_stop_request_is_obeyed(content: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch, tmp_path, attempt=2)
    session = a_session(tmp_path)
    for _ in session(range(MANY), steps=3):
        pass
    control(tmp_path, "stop", content)

    step = run_until_exit(session)

    assert checkpoints(tmp_path)[-1] == f"step-{step}-a2"
    assert of_kind(Ended, tmp_path, 2)[0].reason == "stopped"


def test_a_stop_request_for_another_attempt_is_not_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch, tmp_path, attempt=2)
    control(tmp_path, "stop", {"attempt": 1})
    with a_session(tmp_path) as session:
        session._attention._control.poll()  # type: ignore[union-attr]  # the first rank has one
        list(session(range(5)))

    assert of_kind(Ended, tmp_path, 2)[0].reason == "completed"


def test_a_checkpoint_is_saved_for_each_new_request(tmp_path: Path) -> None:
    control(tmp_path, "checkpoint", {"id": "before we started"})
    with a_session(tmp_path, keep=5) as session:
        watch = session._attention._control.poll  # type: ignore[union-attr]  # the first rank has one
        for batch in session(range(8)):
            if batch in (2, 5):
                control(tmp_path, "checkpoint", {"id": str(batch)})
            watch()

    assert [record.step for record in of_kind(Committed, tmp_path)] == [3, 6, 8]


@pytest.mark.parametrize(("spent", "price", "leaves"), [("9.99", "36", True), ("1", "36", False), ("10", "0", True)])
def test_it_stops_before_the_cap_is_crossed(
    spent: str, price: str, leaves: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(
        monkeypatch,
        tmp_path,
        price_usd_per_hour=Decimal(price),
        spent_usd=Decimal(spent),
        cap_usd=Decimal(10),
    )
    session = a_session(tmp_path)
    if leaves:
        run_until_exit(session)
    else:
        list(session(range(5)))
        session.close()

    assert of_kind(Ended, tmp_path)[0].reason == ("out_of_budget" if leaves else "completed")


def test_without_a_price_there_is_no_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch, tmp_path, spent_usd=Decimal(99), cap_usd=Decimal(10))

    with a_session(tmp_path) as session:
        assert len(list(session(range(5)))) == 5


@pytest.fixture
def _in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "MIN_SECONDS", 0.01)


@pytest.mark.usefixtures("_in_no_time")
@pytest.mark.parametrize("max_loss_usd", [None, Decimal("0.30")])
def test_what_may_be_lost_at_most_is_saved_before_it_has_been_spent(
    max_loss_usd: Decimal | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(monkeypatch, tmp_path, price_usd_per_hour=Decimal(3600), checkpoint_max_loss_usd=max_loss_usd)

    with a_session(tmp_path) as session:
        run(session(range(150)), lambda batch: threading.Event().wait(0.01))  # of 0.30 s at most, a dollar a second

    assert (len(of_kind(Committed, tmp_path)) > 3) is (max_loss_usd is not None)


@pytest.mark.usefixtures("_in_no_time")
def test_a_loss_that_no_saving_can_prevent_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(monkeypatch, tmp_path, price_usd_per_hour=Decimal(36_000), checkpoint_max_loss_usd=Decimal("0.02"))

    with a_session(tmp_path) as session:
        run(session(range(60)), lambda batch: threading.Event().wait(0.01))  # a step costs ten cents

    told = [line for line in capsys.readouterr().err.splitlines() if "max_loss" in line]
    assert len(of_kind(Committed, tmp_path)) > 2
    assert len(told) == 1
    assert "checkpoint.max_loss is $0.02 and cannot be kept: as steps and saves are now, an interruption may" in told[0]


def test_a_superseded_attempt_saves_nothing_and_leaves(tmp_path: Path) -> None:
    old = a_session(tmp_path, checkpoint_every_steps=3)

    def act(batch: int) -> None:
        old._keeper.wait()
        if batch == 3:
            a_session(tmp_path).close()

    with pytest.raises(SystemExit) as caught:
        run(old(range(10)), act)
    old.close()

    assert caught.value.code == 75
    assert checkpoints(tmp_path) == ["step-3-a1"]
    assert of_kind(Ended, tmp_path, 1) == [], "the run is another attempt's"


def test_an_exception_is_recorded_and_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(Death), a_session(tmp_path) as session:
        run(session(range(5)), die_on(2))

    assert of_kind(Ended, tmp_path)[0].reason == "failed"


def test_the_launchers_environment_decides_where_and_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch, tmp_path / "launched", attempt=7, checkpoint_every_steps=2, checkpoint_keep=3)
    with Session(run_uri=str(tmp_path / "mine"), checkpoint_every_steps=3, counter=Counter()) as session:
        list(session(range(10)))

    assert not (tmp_path / "mine").exists()
    assert checkpoints(tmp_path / "launched") == ["step-6-a7", "step-9-a7", "step-10-a7"]


def test_alone_the_attempts_are_counted_in_the_folder(tmp_path: Path) -> None:
    for expected in (1, 2, 3):
        a_session(tmp_path).close()
        assert of_kind(Ended, tmp_path, expected)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, trainer_hooks; assert not {'torch', 'fsspec', 'numpy'} & set(sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_steps_where_nothing_is_due_touch_no_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[str] = []

    class Watched(LocalStorage):
        def put(self, path: str, data: Any, *, exclusive: bool = False) -> None:
            touched.append(path)
            super().put(path, data, exclusive=exclusive)

        def names(self, folder: str) -> tuple[str, ...]:
            touched.append(folder)
            return super().names(folder)

    monkeypatch.setattr("trainer_hooks.session.open_storage", lambda uri: Watched(Path(uri)))
    with a_session(tmp_path) as session:
        for batch in session(range(1000), steps=1000):
            if batch == 1:
                session._reporter._journal.flush(timeout_seconds=10)  # the first heartbeat
                touched.clear()
            if batch == 998:
                assert touched == []
