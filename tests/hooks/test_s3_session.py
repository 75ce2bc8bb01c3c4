"""A training whose run folder is in a bucket: a real S3 server, over a line on which everything goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hooks.slow_s3 import Kind, Line, Trouble
from tests.hooks.training import Death, Recipe, train, undisturbed
from trainer_hooks.storage import FsspecStorage
from trainer_hooks.storage.remote import Retries

pytestmark = pytest.mark.system

RECIPE = Recipe(steps=16, every=3)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    retries = Retries(first_wait_seconds=0.001)
    monkeypatch.setattr("trainer_hooks.session.open_storage", lambda uri: FsspecStorage(uri, retries=retries))


def on_s3(uri: str, *, die_at: int | None = None, seed: int = 0) -> str:
    return train(Path(), RECIPE, die_at=die_at, seed=seed, run_uri=uri)


@pytest.mark.parametrize("kind", ["answer", "hang up before", "hang up within", "lose the answer", "cut the answer"])
def test_a_training_on_a_bad_line_to_its_bucket_ends_bit_equal(kind: Kind, s3_line: tuple[str, Line]) -> None:
    uri, line = s3_line

    for life, die_at in enumerate((7, 12)):
        line.troubles = [Trouble(kind=kind, times=3, path=path) for path in ("chunks", "checkpoints", "journal")]
        with pytest.raises(Death):
            on_s3(uri, die_at=die_at, seed=life)
    line.troubles = [Trouble(kind=kind, times=2, method="GET")]

    assert undisturbed(RECIPE) == on_s3(uri, seed=9)


def test_a_server_that_is_down_for_a_save_costs_that_save_and_nothing_else(s3_line: tuple[str, Line]) -> None:
    uri, line = s3_line
    with pytest.raises(Death):
        on_s3(uri, die_at=5)  # after the save of step 3
    line.troubles = [Trouble(kind="answer", times=4, method="PUT", path="manifest.json")]
    with pytest.raises(Death):
        on_s3(uri, die_at=11, seed=1)  # that of step 6 fails, that of step 9 does not
    assert line.troubles[0].times == 0

    names = FsspecStorage(uri).names("checkpoints")
    assert [name for name in names if FsspecStorage(uri).names(f"checkpoints/{name}")] == ["step-3-a1", "step-9-a2"]
    assert undisturbed(RECIPE) == on_s3(uri, seed=9)


def test_what_two_checkpoints_share_is_sent_once(s3_line: tuple[str, Line]) -> None:
    uri, line = s3_line

    on_s3(uri)

    sent = [request for request in line.seen if request.startswith("PUT") and "/chunks/" in request]
    assert len(sent) == len(set(sent))
    assert len(sent) >= RECIPE.steps // RECIPE.every
