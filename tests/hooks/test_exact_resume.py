"""A training that was interrupted anywhere ends in the very bits of one that was not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.hooks.training import Death, Recipe, train, undisturbed

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
