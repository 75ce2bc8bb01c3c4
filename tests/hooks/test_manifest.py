"""A manifest is what was written, for its folder, and without contradiction; all else is damage, and found cheaply."""

from __future__ import annotations

import json
import math
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_hooks.checkpoint import manifest as manifests
from trainer_hooks.checkpoint.layout import CHUNK_BYTES, PAGE_BYTES, Spot
from trainer_hooks.checkpoint.manifest import Chunk, Manifest, Piece, Stored, decode, encode, hash_of, is_dense, seal
from trainer_hooks.errors import Damaged, NotLoadable

NAME = "step-7-a2"


def a_manifest(**changes: Any) -> Manifest:
    whole = Stored("float32", (3, 4), (Piece((0, 0), (3, 4), Spot(0, 0)),))
    turned = Stored("bfloat16", (2, 3), (Piece((0, 0), (2, 3), Spot(0, 64)),), strides=(1, 2))
    halves = (Piece((0, 0), (1, 8), Spot(1, 0)), Piece((1, 0), (2, 8), Spot(2, 0)))
    base = Manifest(
        step=7,
        attempt=2,
        run_id="r",
        created_at=datetime(2025, 11, 21, 9, 30, tzinfo=UTC),
        torch="2.13.0",
        world_size=2,
        cursor={"batch": 7, "spent_usd": "1.20"},
        state={"model": {"w": {"$": "tensor", "i": 0}}, "optimizer": {"lr": 0.1, "z": None, "a": [1, 2.5]}},
        ranks=[{"now": 1}, {"now": 2}],
        tensors=(whole, turned, Stored("float64", (3, 8), halves), Stored("int8", (), (Piece((), (), Spot(0, 128)),))),
        chunks=tuple(Chunk(f"{number:032x}", PAGE_BYTES) for number in range(3)),
        metrics={"loss": 0.5},
    )
    return replace(base, **changes)


def body_of(manifest: Manifest) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(encode(manifest))
    del body["digest"]
    return body


def forged(**changes: Any) -> bytes:
    """By somebody who knows the format: digest and certificate fit."""
    return resealed(body_of(a_manifest()) | changes)


def resealed(body: Any) -> bytes:
    with suppress(AttributeError, KeyError, TypeError, ValueError):
        parts = [body[name] for name in ("cursor", "state", "ranks", "tensors", "chunks")]
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
        body = body | {"certificate": hash_of(text.encode())}
    return signed(json.dumps(body, separators=(",", ":")))


def signed(text: str) -> bytes:
    """JSON of an object, in whatever spelling, with a digest that fits."""
    head = text[:-1].encode()
    return head + f',"digest":"{hash_of(head)}"}}'.encode()


def test_what_was_encoded_is_decoded() -> None:
    assert decode(encode(a_manifest()), name=NAME) == a_manifest()


def test_the_order_of_keys_is_kept() -> None:
    manifest = a_manifest(state={"z": {"b": 1, "a": 2}, "a": {}})

    back = decode(encode(manifest), name=NAME)

    assert list(back.state) == ["z", "a"]
    assert list(back.state["z"]) == ["b", "a"]


def test_the_certificate_does_not_depend_on_the_order_of_keys() -> None:
    assert a_manifest(state={"a": 1, "b": 2}).certificate == a_manifest(state={"b": 2, "a": 1}).certificate


@pytest.mark.parametrize(
    "changes",
    [
        {"cursor": {"batch": 8}},
        {"state": {}},
        {"ranks": [{"now": 2}, {"now": 1}]},
        {"chunks": tuple(Chunk(f"{number:032x}", PAGE_BYTES) for number in (0, 1, 3))},
        {"tensors": a_manifest().tensors[:3]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_certificate_changes_with_all_that_a_resume_restores(changes: dict[str, Any]) -> None:
    assert a_manifest(**changes).certificate != a_manifest().certificate


def test_the_certificate_is_of_the_state_and_not_of_the_writer() -> None:
    other = a_manifest(run_id="x", attempt=9, step=8, world_size=1, torch="3.0", metrics={})

    assert other.certificate == a_manifest().certificate


def test_a_metric_that_json_lacks_does_not_keep_a_checkpoint_from_being_written() -> None:
    raw = encode(a_manifest(metrics={"loss": math.nan, "best": 1.0, "worst": -math.inf}))

    assert decode(raw, name=NAME).metrics == {"best": 1.0}


def test_a_state_too_large_for_a_reader_is_refused_by_the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "MAX_VALUES", 1000)

    with pytest.raises(NotLoadable, match="long lists as tensors"):
        encode(a_manifest(state={"sampler": list(range(1000))}))


def test_a_chunk_that_two_tensors_name_is_counted_once() -> None:
    twice = (Chunk("0" * 32, PAGE_BYTES), Chunk("1" * 32, 2 * PAGE_BYTES), Chunk("0" * 32, PAGE_BYTES))

    assert a_manifest(chunks=twice).bytes == 3 * PAGE_BYTES


# Accidents


@given(st.data())
def test_no_byte_can_change_unseen(choose: st.DataObject) -> None:
    raw = bytearray(encode(a_manifest()))
    place = choose.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= choose.draw(st.integers(1, 255))

    with pytest.raises(Damaged):
        decode(bytes(raw), name=NAME)


@given(st.integers(0, len(encode(a_manifest())) - 1))
def test_no_end_can_be_missing_or_zero(kept: int) -> None:
    raw = encode(a_manifest())

    for damaged in (raw[:kept], raw[:kept] + bytes(len(raw) - kept), raw + b"\n"):
        with pytest.raises(Damaged):
            decode(damaged, name=NAME)


def test_a_manifest_in_the_folder_of_another_checkpoint_is_none() -> None:
    with pytest.raises(Damaged, match="step 7, attempt 2"):
        decode(encode(a_manifest()), name="step-8-a2")


# Forgeries

PIECE = [[0], [1], 0, 0]


def chunks(first: list[Any]) -> list[list[Any]]:
    """Large enough for the tensors: nothing else is wrong than the first."""
    return [first, ["1" * 32, PAGE_BYTES], ["2" * 32, PAGE_BYTES]]


def tensor(**changes: Any) -> list[Any]:
    return [{"dtype": "float32", "shape": [1], "pieces": [PIECE]} | changes]


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "spotlaunch-checkpoint/2"},
        {"format": ["x"] * 1000},
        {"step": -1},
        {"step": True},
        {"step": 7.0},
        {"step": 2**53},
        {"attempt": None},
        {"run_id": 5},
        {"created_at": "2025-11-21T09:30:00"},
        {"created_at": "yesterday"},
        {"created_at": 0},
        {"world_size": "2"},
        {"torch": None},
        {"state": [["a", 1]]},
        {"state": "ab"},
        {"ranks": "ab"},
        {"ranks": {"a": 1}},
        {"cursor": []},
        {"metrics": {"loss": "1"}},
        {"metrics": {"loss": True}},
        {"metrics": {"loss": 10**400}},
        {"metrics": []},
        {"chunks": chunks(["0" * 31, PAGE_BYTES])},
        {"chunks": chunks(["../../etc/passwd", PAGE_BYTES])},
        {"chunks": chunks(["A" * 32, PAGE_BYTES])},
        {"chunks": chunks(["0" * 32 + "\n", PAGE_BYTES])},
        {"chunks": chunks([5, PAGE_BYTES])},
        {"chunks": chunks(["0" * 32, 0])},
        {"chunks": chunks(["0" * 32, PAGE_BYTES + 1])},
        {"chunks": chunks(["0" * 32, CHUNK_BYTES + PAGE_BYTES])},
        {"chunks": chunks(["0" * 32])},
        {"chunks": {}},
        {"tensors": {}},
        {"tensors": [[]]},
        {"tensors": tensor(dtype="object")},
        {"tensors": tensor(dtype=[])},
        {"tensors": tensor(shape="1")},
        {"tensors": tensor(shape=[-1])},
        {"tensors": tensor(shape=[2**40, 2**40, 0], pieces=[])},
        {"tensors": tensor(shape=[1] * 65, pieces=[[[0] * 65, [1] * 65, 0, 0]])},
        {"tensors": tensor(shape=[2**50], pieces=[[[0], [2**50], 0, 0]])},
        {"tensors": tensor(pieces=[[[0], [1], 3, 0]])},
        {"tensors": tensor(pieces=[[[0], [1], 0, PAGE_BYTES + 4]])},
        {"tensors": tensor(pieces=[[[0], [1], 2, PAGE_BYTES]])},
        {"tensors": tensor(pieces=[[[0], [1], 0, -4]])},
        {"tensors": tensor(pieces=[[[0], [1], 0, 2]])},
        {"tensors": tensor(pieces=[[[1], [1], 0, 0]])},
        {"tensors": tensor(pieces=[[[0, 0], [1, 1], 0, 0]])},
        {"tensors": tensor(pieces=[PIECE, PIECE])},
        {"tensors": tensor(pieces=[])},
        {"tensors": tensor(pieces=[[[0], [1], 0]])},
        {"tensors": tensor(pieces="abcd")},
        {"tensors": tensor(shape=[0], pieces=[[[0], [0], 9, 0]])},
        {"tensors": tensor(shape=[2], pieces=[[[0], [2], 0, 0]], strides=[2])},
        {"tensors": tensor(shape=[2], pieces=[[[0], [2], 0, 0]], strides=[0])},
        {"tensors": tensor(shape=[2], pieces=[[[0], [1], 0, 0], [[1], [1], 0, 64]], strides=[1])},
        {"tensors": tensor(shape=[1024], pieces=[[[0], [1024], 0, 0]]) * 4},
    ],
    ids=lambda changes: repr(changes)[:70],
)
def test_a_forgery_that_contradicts_itself_is_damage(changes: dict[str, Any]) -> None:
    assert decode(forged(), name=NAME) == a_manifest()  # the forger knows the trade

    with pytest.raises(Damaged) as caught:
        decode(forged(**changes), name=NAME)

    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("missing", sorted(set(body_of(a_manifest()))))
def test_every_field_is_wanted(missing: str) -> None:
    body = body_of(a_manifest())
    del body[missing]

    with pytest.raises(Damaged):
        decode(seal(body), name=NAME)


def test_a_field_of_a_newer_writer_is_left_alone() -> None:
    assert decode(forged(host="a machine"), name=NAME) == a_manifest()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"step":7', '"step":7,"step":7'),
        ('"batch":7', '"batch":7,"batch":8'),
        ('"loss":0.5', '"loss":NaN'),
        ('"loss":0.5', '"loss":-Infinity'),
        ('"loss":0.5', '"loss":1e999'),
        ('"lr":0.1', '"lr":1e999'),
        ('"batch":7', '"batch":' + "9" * 5000),
        ('"batch":7', '"batch":' + "[" * 100_000 + "]" * 100_000),
        ('"batch":7', '"batch":' + '{"a":' * 400 + "1" + "}" * 400),
        ('"run_id":"r"', '"run_id":"\x01"'),
        ('{"format"', '[{"format"'),
    ],
    ids=lambda text: text[:20],
)
def test_json_that_programs_read_differently_or_not_at_all_is_damage(old: str, new: str) -> None:
    text = json.dumps(body_of(a_manifest()), separators=(",", ":"))
    assert old in text

    with pytest.raises(Damaged):
        decode(signed(text.replace(old, new, 1)), name=NAME)


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"null", b"\xff\xfe", bytes(100), b'{"digest":""}'])
def test_what_is_no_manifest_at_all_is_damage(raw: bytes) -> None:
    for one in (raw, raw[:-1] + f',"digest":"{hash_of(raw[:-1])}"}}'.encode()):
        with pytest.raises(Damaged):
            decode(one, name=NAME)


def test_text_in_another_encoding_is_damage() -> None:
    head = json.dumps(body_of(a_manifest()))[:-1].replace('"r"', '"\xe9"').encode("latin-1")

    with pytest.raises(Damaged):
        decode(head + f',"digest":"{hash_of(head)}"}}'.encode(), name=NAME)


nonsense: st.SearchStrategy[Any] = st.sampled_from(
    [
        None,
        True,
        False,
        -1,
        0,
        1,
        2**31,
        2**53,
        2**64,
        10**400,
        0.5,
        -0.0,
        1e308,
        "",
        "a",
        "float32",
        [],
        {},
        [[]],
        [0],
        {"a": []},
    ]
)


@settings(max_examples=400)
@given(st.data())
def test_a_changed_manifest_is_read_or_is_damage_and_nothing_else(choose: st.DataObject) -> None:
    body = body_of(a_manifest())
    for _ in range(choose.draw(st.integers(1, 3))):
        _change(body, choose)

    with suppress(Damaged):
        back = decode(resealed(body), name=NAME)
        assert sum(tensor.bytes for tensor in back.tensors) <= sum(chunk.bytes for chunk in back.chunks)
        assert decode(encode(back), name=NAME) == back


def _change(body: dict[str, Any], choose: st.DataObject) -> None:
    """Somewhere, something is replaced, doubled or missing."""
    holder: Any = body
    key: Any = choose.draw(st.sampled_from(sorted(body))) if body else "step"
    while isinstance(holder.get(key) if isinstance(holder, dict) else holder[key], list | dict):
        inner = holder[key]
        if not inner or choose.draw(st.integers(0, 4)) == 0:
            break
        holder, key = (
            inner,
            choose.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner)))),
        )
    match choose.draw(st.sampled_from(["replace", "replace", "double", "drop"])):
        case "double" if isinstance(holder, list):
            holder.append(holder[key])
        case "drop" if key in holder or isinstance(holder, list):
            del holder[key]
        case _:
            holder[key] = choose.draw(nonsense)


# Pieces


@st.composite
def cut_boxes(draw: st.DrawFn) -> tuple[list[int], list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """A shape, and boxes that sharding could leave: slabs along one dimension, each cut along the next."""
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    boxes: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((), ())]
    for size in shape:
        grown = []
        for offset, box in boxes:
            cuts = [0, *sorted(draw(st.sets(st.integers(1, size - 1), max_size=2)) if size > 1 else []), size]
            grown += [((*offset, a), (*box, b - a)) for a, b in pairwise(cuts)]
        boxes = grown
    return shape, draw(st.permutations(boxes))


def sharded(shape: list[int], boxes: Any) -> bytes:
    pieces = [[list(offset), list(box), 0, 0] for offset, box in boxes]
    return forged(tensors=[{"dtype": "int8", "shape": shape, "pieces": pieces}])


@given(cut_boxes())
def test_boxes_that_fill_a_tensor_are_taken_in_any_order(cut: Any) -> None:
    shape, boxes = cut

    assert len(decode(sharded(shape, boxes), name=NAME).tensors[0].pieces) == len(boxes)


@given(cut_boxes(), st.data())
def test_a_box_too_few_too_many_or_elsewhere_is_damage(cut: Any, choose: st.DataObject) -> None:
    """A hole would be filled with whatever the memory held; an overlap could hide one, the counts being right."""
    shape, boxes = cut
    victim = choose.draw(st.integers(0, len(boxes) - 1))
    other = choose.draw(st.sampled_from(boxes))

    fewer = boxes[:victim] + boxes[victim + 1 :]
    doubled = [*boxes, other]
    for wrong in [fewer, doubled] + ([[*fewer, other]] if other != boxes[victim] else []):
        with pytest.raises(Damaged):
            decode(sharded(shape, wrong), name=NAME)


def test_an_empty_shard_beside_the_others_is_taken() -> None:
    """A rank beyond the last row of a small tensor holds nothing of it."""
    boxes = [((0, 0), (2, 3)), ((2, 0), (0, 3))]

    assert len(decode(sharded([2, 3], boxes), name=NAME).tensors[0].pieces) == 2


@pytest.mark.parametrize(
    ("shape", "strides", "is_it"),
    [
        ((2, 3), (3, 1), True),
        ((2, 3), (1, 2), True),
        ((2, 1, 3), (3, 77, 1), True),
        ((), (), True),
        ((0, 3), (3, 1), True),
        ((2, 3), (4, 1), False),
        ((2, 3), (0, 1), False),
        ((2, 2), (1, 1), False),
        ((2,), (2,), False),
        ((2,), (1, 1), False),
    ],
)
def test_dense_means_neither_gaps_nor_overlaps(shape: Any, strides: Any, is_it: bool) -> None:
    assert is_dense(shape, strides) is is_it


# Cost


def test_many_pieces_over_many_chunks_are_checked_one_by_one() -> None:
    """Each piece names all chunks: walking through them would take 100 million steps, and 10,000 do."""
    many, pages = 10_000, 10_000
    whole = {"dtype": "int8", "shape": [pages], "pieces": [[[0], [pages], 0, 0]]}
    wide = {"dtype": "int8", "shape": [pages * PAGE_BYTES], "pieces": [[[0], [pages * PAGE_BYTES], 0, 0]]}
    raw = forged(chunks=[["0" * 32, PAGE_BYTES]] * pages, tensors=[wide] + [whole] * many)

    with pytest.raises(Damaged, match="larger than its chunks"):
        decode(raw, name=NAME)


def test_a_manifest_of_countless_tiny_values_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "MAX_VALUES", 1 << 16)
    raw = seal(body_of(a_manifest(cursor={})) | {"cursor": {"x": [[]] * (1 << 18)}})

    tracemalloc.start()
    try:
        with pytest.raises(Damaged, match="fill the memory"):
            decode(raw, name=NAME)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 2 * len(raw)
