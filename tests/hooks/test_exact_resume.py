"""A training that was interrupted anywhere ends in the very bits of one that was not."""

from __future__ import annotations

import random
from pathlib import Path
from typing import get_args

import pytest
import torch

from tests.hooks import programs
from tests.hooks.training import Death, Recipe, train, undisturbed
from trainer_hooks.protocol import SnapshotMode

pytestmark = pytest.mark.system

RECIPES = {
    "adamw": Recipe(),
    "sgd": Recipe(optimizer="sgd"),
    "epochs": Recipe(steps=None, epochs=3),
    "own generator": Recipe(own_generator=True),
    "accumulation": Recipe(accumulate=4, every=1),
    "every step": Recipe(every=1),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", RECIPES)
def test_the_hooks_change_nothing_in_an_undisturbed_training(name: str, tmp_path: Path) -> None:
    assert undisturbed(RECIPES[name]) == train(tmp_path, RECIPES[name])


# in the first and the last step, around the ends of epochs (6, 12, 18), just before, at and after a save
DEATHS = {"adamw": (1, 3, 4, 5, 6, 7, 8, 12, 13, 18, 19, 20)}


@pytest.mark.parametrize(
    ("name", "die_at"), [(name, die_at) for name in RECIPES for die_at in DEATHS.get(name, (5, 7, 18))]
)
def test_a_training_killed_in_any_step_ends_bit_equal(name: str, die_at: int, tmp_path: Path) -> None:
    expected = undisturbed(RECIPES[name])

    with pytest.raises(Death):
        train(tmp_path, RECIPES[name], die_at=die_at)

    # before the first checkpoint there is nothing that could replace the seed
    seed = 99 if die_at > RECIPES[name].every else 0
    assert expected == train(tmp_path, RECIPES[name], seed=seed)


# --- trainings as people write them ---


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    torch.set_num_threads(1)
    return {name: programs.undisturbed(name) for name in programs.PROGRAMS}


COPIED_IN_EVERY_WAY = ("plain", "adversaries", "averaged", "closure", "accumulation", "zero now and then")


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        (name, mode)
        for name in programs.PROGRAMS
        for mode in (get_args(SnapshotMode) if name in COPIED_IN_EVERY_WAY else ("overlap",))
    ],
)
def test_killed_twice_at_random_it_ends_bit_equal_whatever_it_trains_and_however_it_is_copied(
    name: str, mode: str, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCH_CHECKPOINT_SNAPSHOT", mode)
    monkeypatch.setenv("LAUNCH_CHECKPOINT_AUDIT", "1")
    chance = random.Random(f"{name} {mode}")
    every = chance.choice((1, 2, 3))
    first = chance.randint(every + 1, programs.STEPS - 1)

    for seed, die_at in enumerate((first, chance.randint(first, programs.STEPS))):
        with pytest.raises(Death):
            programs.train(name, tmp_path, every=every, seed=seed, die_at=die_at)

    assert expected[name] == programs.train(name, tmp_path, every=every, seed=5)


@pytest.mark.parametrize("name", ["accumulation", "zero now and then", "amp"])
def test_killed_in_every_step_one_after_the_other_it_ends_bit_equal(
    name: str, expected: dict[str, str], tmp_path: Path
) -> None:
    for die_at in range(2, programs.STEPS + 1):
        with pytest.raises(Death):
            programs.train(name, tmp_path, every=1, seed=0 if die_at == 2 else die_at, die_at=die_at)

    assert expected[name] == programs.train(name, tmp_path, every=1, seed=99)


def test_gradients_that_are_cleared_only_now_and_then_are_not_lost(expected: dict[str, str], tmp_path: Path) -> None:
    name = "zero now and then"
    with pytest.raises(Death):
        programs.train(name, tmp_path, every=4, seed=0, die_at=6)  # before step 4 they were cleared, before step 5 not

    assert expected[name] == programs.train(name, tmp_path, every=4, seed=1)
