"""Where a training goes on in its data, above all where other numbers of ranks share it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from trainer_hooks.checkpoint import rng, tree
from trainer_hooks.errors import CheckpointMismatch
from trainer_hooks.loop import Batches, Cursor, Place, place_of_rank
from trainer_hooks.ranks import Ranks


class Endless(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(10))


def a_loader(*, world_size: int, batch_size: int = 2) -> DataLoader[int]:
    data: Any = range(48)
    sampler: Any = DistributedSampler(data, num_replicas=world_size, rank=0)
    return DataLoader(data, batch_size=batch_size, sampler=sampler)


def ranks(rank: int, world_size: int) -> Ranks:
    return Ranks(rank=rank, world_size=world_size, can_agree=world_size > 1)


def places_of(world_size: int, *, alike: bool = False) -> list[dict[str, Any]]:
    """As many ranks left them, each with its own random state."""
    found = []
    for rank in range(world_size):
        torch.manual_seed(0 if alike else rank)
        random.seed(rank)
        np.random.seed(rank)
        found.append(Place(rng.capture(), rng.capture(), {"at": rank}).to_plain())
    return found


def drawn(place: Place) -> tuple[float, float, float]:
    rng.restore(place.now)
    return random.random(), float(np.random.rand()), torch.rand(()).item()


@pytest.mark.parametrize(
    ("then", "now", "batch", "expected"),
    [(1, 2, 8, 4), (2, 4, 8, 4), (4, 1, 5, 20), (1, 2, 9, 4), (2, 1, 12, 24), (2, 2, 9, 9)],
)
def test_as_much_of_the_data_is_finished_on_another_number_of_ranks(
    then: int, now: int, batch: int, expected: int
) -> None:
    cursor = Cursor()
    cursor.open_epoch(a_loader(world_size=then), world_size=then)
    cursor.batch = batch

    cursor.open_epoch(a_loader(world_size=now), world_size=now)

    assert (cursor.batch, cursor.world_size) == (expected, now)


@pytest.mark.parametrize("loader", [a_loader(world_size=2, batch_size=1), range(24)], ids=["global batch", "own data"])
def test_an_epoch_of_the_same_length_goes_on_at_the_same_batch(loader: Iterable[int]) -> None:
    """Smaller batches in the place of fewer; or each rank goes through all of the data."""
    cursor = Cursor()
    cursor.open_epoch(a_loader(world_size=1), world_size=1)
    cursor.batch = 10

    cursor.open_epoch(loader, world_size=2)

    assert cursor.batch == 10


def test_without_a_length_the_ranks_tell_the_share() -> None:
    cursor = Cursor.from_json({"batch": 6, "world_size": 4})

    cursor.open_epoch(DataLoader(Endless(), batch_size=2), world_size=2)

    assert cursor.batch == 12


def test_an_epoch_that_was_opened_goes_on_from_there_only_once() -> None:
    cursor = Cursor.from_json({"batch": 8, "world_size": 1, "epoch_batches": 24})

    for _ in range(2):
        cursor.open_epoch(a_loader(world_size=2), world_size=2)

    assert cursor.batch == 4
    assert cursor == Cursor.from_json(cursor.to_json())


def test_on_as_many_ranks_each_has_its_place_again() -> None:
    places = places_of(3)

    found = [place_of_rank(places, ranks(rank, 3)) for rank in range(3)]

    assert [place.to_plain() for place in found] == places


@pytest.mark.parametrize(("then", "now"), [(1, 4), (2, 4), (3, 2), (4, 1)])
def test_on_other_ranks_nobody_draws_what_another_draws_and_a_loader_s_state_is_left_out(then: int, now: int) -> None:
    places = places_of(then)

    found = [place_of_rank(places, ranks(rank, now)) for rank in range(now)]

    assert all(place.loader is None for place in found)
    for numbers in zip(*(drawn(place) for place in found), strict=True):
        assert len(set(numbers)) == now
    assert [drawn(place) for place in found[:then]] == [drawn(Place.from_plain(one)) for one in places[:now]]


def test_a_new_rank_draws_the_same_at_every_resume_also_from_a_checkpoint_made_at_once() -> None:
    place = place_of_rank(places_of(1), ranks(1, 2))
    kept = Place.from_plain(tree.decode(tree.encode(place.to_plain(), None), []))

    assert drawn(place) == drawn(place) == drawn(kept)


def test_ranks_that_drew_alike_go_on_alike() -> None:
    """As those of one tensor-parallel group must."""
    places = places_of(2, alike=True)

    numbers = [drawn(place_of_rank(places, ranks(rank, 4)))[2] for rank in range(4)]

    assert len(set(numbers)) == 1


@pytest.mark.parametrize("places", [[], None, [{}], ["x", "y"]])
def test_what_no_session_wrote_is_refused(places: Any) -> None:
    with pytest.raises(CheckpointMismatch, match="not written by a session"):
        place_of_rank(places, ranks(0, 2))


def test_a_generator_that_is_not_there_any_more_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    data: Any = range(8)

    def loader(generator: torch.Generator | None) -> DataLoader[int]:
        return DataLoader(data, batch_size=2, shuffle=True, generator=generator)

    before = loader(torch.Generator().manual_seed(3))
    batches = Batches(before, Cursor(), None)
    next(batches)
    place = batches.place()

    Batches(before, Cursor(batch=1, is_inside=True), place)
    assert capsys.readouterr().err == ""
    Batches(loader(None), Cursor(batch=1, is_inside=True), place)
    assert "the random state of generator" in capsys.readouterr().err
