"""Every byte of a state has one place in its chunks, and the place is the same in every process."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_hooks.checkpoint.layout import (
    ALIGNMENT_BYTES,
    CHUNK_BYTES,
    OWN_BYTES,
    PAGE_BYTES,
    Layout,
    Spot,
    lay_out,
    parts,
)

MIB = 1 << 20

sizes = st.one_of(
    st.integers(0, 3 * PAGE_BYTES),
    st.integers(0, OWN_BYTES - 1),
    st.integers(OWN_BYTES, 3 * CHUNK_BYTES),
    st.sampled_from([OWN_BYTES - 1, OWN_BYTES, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES]),
)
tensors = st.lists(st.tuples(sizes, st.integers(0, 3)), max_size=30)


def laid_out(given_tensors: list[tuple[int, int]]) -> Layout:
    return lay_out([size for size, _ in given_tensors], [group for _, group in given_tensors])


@given(tensors)
def test_every_byte_lies_in_one_place_within_its_chunk(given_tensors: list[tuple[int, int]]) -> None:
    layout = laid_out(given_tensors)
    taken: dict[int, list[tuple[int, int]]] = {}

    for spot, (size, _) in zip(layout.spots, given_tensors, strict=True):
        stretches = parts(spot, size, layout.chunk_bytes)
        assert size == sum(length for _, _, length in stretches)
        for chunk, start, length in stretches:
            assert 0 < length <= layout.chunk_bytes[chunk] - start
            taken.setdefault(chunk, []).append((start, start + length))

    for stretches_of_chunk in taken.values():
        ordered = sorted(stretches_of_chunk)
        assert all(end <= start for (_, end), (start, _) in pairwise(ordered))


@given(tensors)
def test_a_chunk_is_whole_pages_and_has_no_page_too_many(given_tensors: list[tuple[int, int]]) -> None:
    layout = laid_out(given_tensors)
    used: Counter[int] = Counter()
    for spot, (size, _) in zip(layout.spots, given_tensors, strict=True):
        for chunk, start, length in parts(spot, size, layout.chunk_bytes):
            used[chunk] = max(used[chunk], start + length)

    for chunk, chunk_bytes in enumerate(layout.chunk_bytes):
        assert chunk_bytes % PAGE_BYTES == 0
        assert PAGE_BYTES <= chunk_bytes <= CHUNK_BYTES
        assert chunk_bytes - used[chunk] < PAGE_BYTES or (chunk_bytes == PAGE_BYTES and used[chunk] == 0)


@given(tensors)
def test_groups_never_share_a_chunk(given_tensors: list[tuple[int, int]]) -> None:
    layout = laid_out(given_tensors)

    for spot, (size, group) in zip(layout.spots, given_tensors, strict=True):
        assert layout.chunk_groups[spot.chunk] == group
        assert {group} >= {layout.chunk_groups[chunk] for chunk, _, _ in parts(spot, size, layout.chunk_bytes)}
    assert list(layout.chunk_groups) == sorted(layout.chunk_groups)


@given(tensors)
def test_within_a_group_the_order_is_the_one_given(given_tensors: list[tuple[int, int]]) -> None:
    layout = laid_out(given_tensors)

    for group in range(4):
        spots = [
            (spot.chunk, spot.start)
            for spot, (_, theirs) in zip(layout.spots, given_tensors, strict=True)
            if theirs == group
        ]
        assert spots == sorted(spots)


@given(tensors)
def test_every_tensor_begins_where_any_dtype_may(given_tensors: list[tuple[int, int]]) -> None:
    assert all(spot.start % ALIGNMENT_BYTES == 0 for spot in laid_out(given_tensors).spots)


@given(tensors)
def test_a_large_tensor_has_its_chunks_to_itself_and_a_small_one_is_not_cut(given: list[tuple[int, int]]) -> None:
    layout = laid_out(given)
    chunks_of = [
        {chunk for chunk, _, _ in parts(spot, size, layout.chunk_bytes)}
        for spot, (size, _) in zip(layout.spots, given, strict=True)
    ]

    users = Counter(chunk for chunks in chunks_of for chunk in chunks)
    for spot, chunks, (size, _) in zip(layout.spots, chunks_of, given, strict=True):
        if size >= OWN_BYTES:
            assert spot.start == 0
            assert all(users[chunk] == 1 for chunk in chunks)
        else:
            assert len(chunks) <= 1


@given(tensors, tensors)
def test_what_comes_later_moves_nothing_that_was_there(
    first: list[tuple[int, int]], more: list[tuple[int, int]]
) -> None:
    """So that adding a parameter to the last group leaves the chunks before it as they are in the store."""
    alone = laid_out([(size, 0) for size, _ in first])

    together = laid_out([(size, 0) for size, _ in first] + [(size, 1) for size, _ in more])

    assert together.spots[: len(first)] == alone.spots
    assert together.chunk_bytes[: len(alone.chunk_bytes)] == alone.chunk_bytes


def test_small_tensors_fill_a_chunk_to_its_last_byte() -> None:
    layout = lay_out([2 * MIB] * 9, [0] * 9)

    assert [Spot(0, place * 2 * MIB) for place in range(8)] + [Spot(1, 0)] == list(layout.spots)
    assert layout.chunk_bytes == (CHUNK_BYTES, 2 * MIB)


def test_a_large_tensor_goes_on_at_the_beginning_of_the_next_chunk() -> None:
    layout = lay_out([CHUNK_BYTES + 5], [0])

    assert layout.chunk_bytes == (CHUNK_BYTES, PAGE_BYTES)
    assert parts(layout.spots[0], CHUNK_BYTES + 5, layout.chunk_bytes) == [(0, 0, CHUNK_BYTES), (1, 0, 5)]


def test_what_follows_a_large_tensor_does_not_move_into_its_last_chunk() -> None:
    layout = lay_out([OWN_BYTES, 8], [0, 0])

    assert layout.spots == (Spot(0, 0), Spot(1, 0))


def test_of_nothing_there_are_no_chunks() -> None:
    assert lay_out([], []) == Layout((), (), ())


def test_a_tensor_of_no_bytes_takes_no_stretch() -> None:
    layout = lay_out([0], [0])

    assert parts(layout.spots[0], 0, layout.chunk_bytes) == []


def test_bytes_beyond_the_last_chunk_are_an_error() -> None:
    with pytest.raises(IndexError):
        parts(Spot(0, PAGE_BYTES - 8), 9, [PAGE_BYTES])
