"""A state comes back from JSON as it was, to the last bit; what could not is refused before it is saved."""

from __future__ import annotations

import enum
import json
import math
import os
import re
import reprlib
import subprocess
import sys
from collections import Counter, OrderedDict, UserDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR, AveragedModel

from trainer_hooks.checkpoint import rng
from trainer_hooks.checkpoint.manifest import ITEM_BYTES
from trainer_hooks.checkpoint.tree import MAX_DEPTH, decode, encode, walk
from trainer_hooks.errors import Damaged, NotLoadable

FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")


def round_trip(value: Any) -> Any:
    """Through the text of a manifest; tensors in copies, as if they came from chunks."""
    tensors: list[torch.Tensor] = []
    text = json.dumps(encode(value, tensors), allow_nan=False)
    return decode(json.loads(text), [tensor.detach().clone() for tensor in tensors])


def is_same(a: Any, b: Any) -> bool:
    """Of equal type, value, order and bits, all the way down."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and _bits(a) == _bits(b)
    if type(a) is not type(b):
        return False
    match a:
        case np.ndarray():
            return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
        case np.generic():
            return bool(a.dtype == b.dtype and a.tobytes() == b.tobytes())
        case float():
            return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
        case complex():
            return is_same(a.real, b.real) and is_same(a.imag, b.imag)
        case dict():
            return (
                is_same(list(a.items()), list(b.items()))
                and is_same(getattr(a, "_metadata", None), getattr(b, "_metadata", None))
                and getattr(a, "default_factory", None) is getattr(b, "default_factory", None)
            )
        case set() | frozenset():
            theirs = {value: value for value in b}
            return bool(a == b) and all(is_same(value, theirs[value]) for value in a)
        case deque():
            return a.maxlen == b.maxlen and is_same(list(a), list(b))
        case list() | tuple():
            return len(a) == len(b) and all(map(is_same, a, b))
    return bool(a == b)


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy().tobytes()


# Python's own types

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**40), max_value=10**40)
    | st.floats()
    | st.complex_numbers()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.sampled_from(["$", "", "i", "tensor", torch.float8_e4m3fn, torch.device("cuda:3"), torch.Size([2, 0])])
    | st.sampled_from([np.float32(0.1), np.int64(-3), np.bool_(True), np.complex64(1 + 2j), np.uint16(9)])
)
no_nan = scalars.filter(lambda value: value == value)  # two nans are two keys
keys = st.recursive(no_nan, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=3)
tensors_of_any_kind = st.builds(
    lambda dtype, shape, seed: (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 99).to(
        getattr(torch, dtype)
    ),
    st.sampled_from([name for name in ITEM_BYTES if name not in ("complex32", "float8_e8m0fnu")]),
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(0, 99),
)
arrays = st.builds(
    lambda dtype, shape: np.arange(math.prod(shape)).astype(dtype).reshape(shape),
    st.sampled_from(["?", "<i4", "<u2", "<f2", "<f8", "<c8", "|u1"]),
    st.lists(st.integers(0, 3), max_size=3),
)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    items = st.lists(inner, max_size=4)
    mappings = st.dictionaries(keys, inner, max_size=4)
    return (
        items
        | items.map(tuple)
        | items.map(deque)
        | items.map(lambda values: deque(values, maxlen=5))
        | st.dictionaries(st.text(max_size=3) | st.just("$"), inner, max_size=4)
        | mappings
        | mappings.map(OrderedDict)
        | mappings.map(Counter)
        | st.builds(defaultdict, st.sampled_from([None, int, float, list, dict, set]), mappings)
        | st.sets(keys, max_size=4)
        | st.frozensets(keys, max_size=4)
    )


states = st.recursive(scalars | tensors_of_any_kind | arrays, _containers, max_leaves=12)


@given(states)
def test_any_nesting_of_the_known_types_comes_back_to_the_bit(state: Any) -> None:
    assert is_same(state, round_trip(state))


@given(states)
def test_the_text_has_no_tensor_bytes_unless_they_are_asked_for(state: Any) -> None:
    inline = json.loads(json.dumps(encode(state, None), allow_nan=False))

    assert list(walk(inline)) == []
    assert is_same(state, decode(inline, []))


@given(states)
def test_a_walk_meets_every_tensor_in_the_order_of_its_number(state: Any) -> None:
    tensors: list[torch.Tensor] = []
    plain = json.loads(json.dumps(encode(state, tensors)))

    first_met = list(dict.fromkeys(number for _, number in walk(plain)))

    assert list(range(len(tensors))) == first_met


@pytest.mark.parametrize(
    "value",
    [
        -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan, complex(-0.0, math.inf),
        2**63, -(2**64),
        {True: "a", 2: "b"}, {1: "a"}, {"1": "a"}, {1.0: "a"}, {None: 0}, {(1, ("x",)): [()]}, {b"k": b"\x00\xff"},
        {"$": "tensor", "i": 0}, {"$": {"$": "tuple", "items": []}}, {"b": 1, "a": 2}, "\ud800", "",
        np.array([1, 2], dtype=np.int32)[::-1], np.arange(6).reshape(2, 3).T, np.array(1.5), np.float64(0.1),
        torch.Size([]), torch.bfloat16, torch.device("cpu"), deque([1], maxlen=1), deque(maxlen=0),
    ],
    ids=lambda value: reprlib.repr(value).encode("ascii", "replace").decode(),
)  # fmt: skip
def test_a_corner_of_a_type_comes_back(value: Any) -> None:
    assert is_same(value, round_trip(value))


def test_an_integer_of_more_digits_than_python_reads_comes_back() -> None:
    for value in (10**5000, -(10**5000)):
        assert value == round_trip(value)


def test_a_read_only_array_comes_back() -> None:
    array = np.arange(4.0)
    array.flags.writeable = False

    assert is_same(array, round_trip(array))


@pytest.mark.parametrize("dtype", ITEM_BYTES)
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_every_dtype_of_the_format_comes_back_to_the_bit(dtype: str) -> None:
    raw = torch.arange(3 * ITEM_BYTES[dtype], dtype=torch.uint8) % 2
    tensor = raw.view(getattr(torch, dtype))

    assert is_same(tensor, round_trip(tensor))
    assert is_same(tensor, decode(encode(tensor, None), []))


@pytest.mark.system
def test_a_set_reads_the_same_in_processes_with_other_hash_seeds() -> None:
    script = (
        "from trainer_hooks.checkpoint.tree import encode;"
        "print(encode([{'lion', 'newt', 'yak', ('a', 1)}, frozenset('spam')], None))"
    )

    texts = {
        subprocess.run(
            [sys.executable, "-c", script], env=os.environ | {"PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in ("1", "2", "3")
    }

    assert len(texts) == 1


# Tensors


def test_tied_weights_are_one_tensor_and_come_back_as_one() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model[1].weight = model[0].weight
    tensors: list[torch.Tensor] = []

    back = decode(encode(model.state_dict(), tensors), tensors)

    assert len(tensors) == 3
    assert back["0.weight"] is back["1.weight"]


def test_a_second_encoding_into_the_same_list_finds_the_tensors_of_the_first() -> None:
    model = torch.nn.Linear(4, 4)
    tensors: list[torch.Tensor] = []

    first = encode(model.state_dict(), tensors)

    assert first == encode(model.state_dict(), tensors)
    assert len(tensors) == 2


@pytest.mark.parametrize(
    "other",
    [
        lambda one: one.view(torch.int32),
        lambda one: one.T,
        lambda one: one[:1],
        lambda one: one.clone(),
        lambda one: one.view(4),
    ],
    ids=["dtype", "strides", "shape", "memory", "dimensions"],
)
def test_memory_that_is_seen_in_another_way_is_another_tensor(other: Callable[[torch.Tensor], torch.Tensor]) -> None:
    one = torch.rand(2, 2)
    state = [one, other(one)]

    back = round_trip(state)

    assert is_same(state, back)
    assert back[0] is not back[1]


def test_empty_tensors_are_not_taken_for_each_other() -> None:
    state = [torch.empty(0), torch.empty(0, dtype=torch.int8), torch.empty(2, 0), torch.empty(0)]
    tensors: list[torch.Tensor] = []
    encode(state, tensors)

    assert len(tensors) == 4
    assert is_same(state, round_trip(state))


def test_the_live_memory_is_appended_and_not_a_copy() -> None:
    parameter = torch.nn.Parameter(torch.rand(3))
    tensors: list[torch.Tensor] = []

    encode({"w": parameter}, tensors)

    assert tensors[0].data_ptr() == parameter.data_ptr()


@pytest.mark.parametrize("tensor", [torch.ones(1).as_strided((1,), (0,)), torch.ones(1).as_strided((1, 1), (7, 3))])
def test_a_tensor_of_one_item_may_have_any_strides(tensor: torch.Tensor) -> None:
    assert is_same(tensor, decode(encode(tensor, None), []))


def test_a_lazy_conjugate_is_kept_as_the_value_it_stands_for() -> None:
    tensor = torch.tensor([1 + 2j, 3 - 4j])

    assert torch.equal(torch.tensor([1 - 2j, 3 + 4j]), round_trip(tensor.conj()))
    assert torch.equal(torch.tensor([-2.0, 4.0]), round_trip(tensor.conj().imag))
    assert torch.equal(torch.tensor([1 - 2j, 3 + 4j]), decode(encode(tensor.conj(), None), []))
    assert torch.equal(torch.tensor([1 - 2j, 3 + 4j]), round_trip([tensor, tensor.conj()])[1])


def test_a_buffer_comes_back_as_its_values() -> None:
    assert is_same(torch.ones(2), round_trip(torch.nn.Buffer(torch.ones(2))))


@pytest.fixture
def mesh() -> Iterator[Any]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_a_sharded_tensor_stays_the_leaf_that_it_is(mesh: Any) -> None:
    sharded = distribute_tensor(torch.rand(4, 2), mesh, [Shard(0)])
    parameter = torch.nn.Parameter(sharded)
    tensors: list[torch.Tensor] = []

    plain = encode({"w": sharded, "same": parameter, "detached": sharded.detach()}, tensors)

    assert list(walk(plain)) == [("w", 0), ("same", 0), ("detached", 0)]
    assert isinstance(tensors[0], DTensor)


TIED_ON_TWO_RANKS = """
import sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from trainer_hooks.checkpoint.tree import encode

dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
mesh = init_device_mesh("cpu", (2,))
odd, other, even = (distribute_tensor(torch.ones(rows, 3), mesh, [Shard(0)]) for rows in (1, 1, 4))
tensors = []
print(encode([odd, odd.detach(), other, even, even.detach()], tensors), len(tensors))
dist.destroy_process_group()
"""


@pytest.mark.system
def test_two_ranks_number_their_tensors_alike_though_one_has_an_empty_shard(tmp_path: Path) -> None:
    """Of one row, the second rank holds nothing, and cannot see by its memory which tensors are tied."""
    command = [sys.executable, "-c", TIED_ON_TWO_RANKS, str(tmp_path / "meeting")]
    ranks = [subprocess.Popen([*command, rank], stdout=subprocess.PIPE, text=True) for rank in "01"]

    first, second = (rank.communicate(timeout=120)[0] for rank in ranks)

    assert first == second
    assert first.endswith("4\n")  # the even one, tied, is one of them


def test_one_shard_of_two_tensors_is_two_leaves(mesh: Any) -> None:
    local = torch.rand(2, 2)
    tensors: list[torch.Tensor] = []

    encode([DTensor.from_local(local, mesh, [one]) for one in (Shard(0), Shard(1), Replicate())], tensors)

    assert len(tensors) == 3


def test_a_sharded_tensor_that_is_not_summed_up_is_refused(mesh: Any) -> None:
    with pytest.raises(NotLoadable, match="w is a DTensor whose value is still to be summed"):
        encode({"w": DTensor.from_local(torch.rand(2), mesh, [Partial()])}, [])


def test_a_sharded_tensor_has_no_place_in_the_text(mesh: Any) -> None:
    with pytest.raises(NotLoadable, match="DTensor"):
        encode(distribute_tensor(torch.rand(4), mesh, [Shard(0)]), None)


# What is refused


class Colour(enum.IntEnum):
    RED = 1


class Named(str):
    __slots__ = ()


class Own(dict[str, int]):
    pass


class Wrapped(torch.Tensor):
    pass


Point = namedtuple("Point", "x y")  # noqa: PYI024  # the kind that user code has


def _with_attribute() -> OrderedDict[str, int]:
    value = OrderedDict(a=1)
    value.owner = "me"  # type: ignore[attr-defined]
    return value


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (lambda x: x, "function"), (print, "builtin"), (int, "type"), (object(), "object"), (Colour.RED, "Colour"),
        (Named("x"), "Named"), (Own(a=1), "Own"), (Point(1, 2), "Point"), (UserDict(), "UserDict"),
        (bytearray(b"x"), "bytearray"), (np.array(["x"]), "ndarray"), (np.array([object()]), "ndarray"),
        (np.array([1], dtype=">i4"), "ndarray"), (np.datetime64("2025-01-01"), "datetime64"),
        (np.ma.array([1]), "MaskedArray"),
        (torch.Generator(), "Generator"), (torch.nn.Linear(1, 1), "Linear"), (defaultdict(lambda: 1), "defaultdict"),
        (_with_attribute(), "owner"), (torch.rand(2).to_sparse(), "sparse"), (torch.empty(2, device="meta"), "meta"),
        (torch.rand(2).as_subclass(Wrapped), "Wrapped"), (torch.empty(2, dtype=torch.bits8), "bits8"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_what_cannot_come_back_is_refused_by_name_and_place(value: Any, found: str) -> None:
    with pytest.raises(NotLoadable, match=rf"^optimizer/state/0/1/x is (a|an) .*{found}.*Let state_dict\(\) return"):
        encode({"optimizer": {"state": {0: [0, OrderedDict(x=value)]}}}, [])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a_nested_tensor_is_refused(layout: torch.layout) -> None:
    with pytest.raises(NotLoadable, match=r"[nN]ested"):
        encode(torch.nested.nested_tensor([torch.rand(1), torch.rand(2)], layout=layout), [])


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_quantised_tensor_is_refused() -> None:
    quantised = torch._empty_affine_quantized([2], scale=1.0, zero_point=0, dtype=torch.qint8)

    with pytest.raises(NotLoadable, match="qint8"):
        encode(quantised, [])


@pytest.mark.parametrize("key", [torch.ones(1), (1, torch.ones(1)), frozenset([torch.ones(1)])])
def test_a_tensor_as_a_key_is_refused(key: Any) -> None:
    for state in ({key: 1}, {key}):
        with pytest.raises(NotLoadable, match="a key in x is a tensor"):
            encode({"x": state}, [])


def test_a_state_that_contains_itself_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["me"] = loop

    with pytest.raises(NotLoadable, match="contains itself"):
        encode(loop, [])


def test_the_deepest_state_that_is_taken_is_read_back() -> None:
    state: Any = np.arange(2)
    for _ in range(MAX_DEPTH):
        state = {0: state}

    assert is_same(state, round_trip(state))
    with pytest.raises(NotLoadable, match="deeper than 100"):
        encode([state], [])


# What is no tree


@pytest.mark.parametrize(
    "plain",
    [
        {"$": "tensor", "i": 2},
        {"$": "tensor", "i": -1},
        {"$": "tensor", "i": True},
        {"$": "tensor", "i": 0.0},
        {"$": "tensor"},
        {"$": "tensor", "i": 0, "j": 0},
        {"$": "code", "name": "os.system"},
        {"$": None},
        {"$": []},
        {"$": {}},
        {"$": "tuple", "items": {"a": 1}},
        {"$": "tuple", "items": "ab"},
        {"$": "set", "items": [[]]},
        {"$": "set", "items": [1, 1]},
        {"$": "set", "items": [1, True]},
        {"$": "set", "items": [{"$": "tensor", "i": 0}]},
        {"$": "dict", "items": [[1, 2], [1, 3]]},
        {"$": "dict", "items": [[1]]},
        {"$": "dict", "items": [[[], 1]]},
        {"$": "dict", "items": [1]},
        {"$": "dict", "items": [[{"$": "tuple", "items": [{"$": "tensor", "i": 0}]}, 1]]},
        {"$": "defaultdict", "factory": "eval", "items": []},
        {"$": "defaultdict", "factory": [], "items": []},
        {"$": "deque", "items": [1, 2], "max": 1},
        {"$": "deque", "items": [], "max": -1},
        {"$": "deque", "items": [], "max": 10**30},
        {"$": "deque", "items": [], "max": True},
        {"$": "int", "hex": "0x10"},
        {"$": "int", "hex": "1_0"},
        {"$": "int", "hex": 5},
        {"$": "int", "hex": ""},
        {"$": "float", "value": "1.5"},
        {"$": "float", "value": "infinity"},
        {"$": "float", "value": []},
        {"$": "complex", "parts": [1.0]},
        {"$": "complex", "parts": [1, 2]},
        {"$": "complex", "parts": "12"},
        {"$": "complex", "parts": [{"$": "bytes"}, 1.0]},
        {"$": "bytes", "data": "$$"},
        {"$": "bytes", "data": "YQ"},
        {"$": "bytes", "data": 3},
        {"$": "bytes", "data": "é"},
        {"$": "torch.Size", "items": [-1]},
        {"$": "torch.Size", "items": [2**60]},
        {"$": "torch.Size", "items": [0, 2**62]},
        {"$": "torch.Size", "items": 3},
        {"$": "torch.dtype", "name": "nn"},
        {"$": "torch.dtype", "name": "torch.float32"},
        {"$": "torch.dtype", "name": 1},
        {"$": "torch.device", "name": "toaster"},
        {"$": "torch.device", "name": "cuda:99999"},
        {"$": "torch.device", "name": 0},
        {"$": "numpy", "dtype": "|O8", "data": "AAAAAAAAAAA="},
        {"$": "numpy", "dtype": "<f4", "data": "AAAA"},
        {"$": "numpy", "dtype": "<f4", "data": "AAAAAAAAAAA="},
        {"$": "numpy", "dtype": "<f4", "data": ""},
        {"$": "numpy.ndarray", "of": [1]},
        {"$": "numpy.ndarray", "of": {"$": "tuple", "items": []}},
        {"$": "numpy.ndarray", "of": {"$": "tensor", "i": 1}},
        {"$": "numpy.ndarray", "of": None},
        {"$": "inline", "dtype": "float32", "shape": [1], "data": ""},
        {"$": "inline", "dtype": "O", "shape": [], "data": ""},
        {"$": "inline", "dtype": "float32", "shape": [2**40, 2**40, 0], "data": ""},
        {"$": "inline", "dtype": "float32", "shape": [0] * 65, "data": ""},
        {"$": "inline", "dtype": "float32", "shape": [True], "data": "AAAAAA=="},
        {"$": "inline", "dtype": [], "shape": [], "data": ""},
        {"$": "inline", "dtype": "uint8", "shape": {}, "data": "AA=="},
        (1, 2),
        {1},
        b"x",
        math.nan,
        math.inf,
        object(),
        {"a": {"b": [object()]}},
    ],
    ids=lambda plain: re.sub(" at 0x.*", "", repr(plain))[:60],  # the same in every process
)
def test_what_encode_does_not_write_is_damage(plain: Any) -> None:
    tensors = [torch.ones(1), torch.ones(1, dtype=torch.bfloat16)]

    with pytest.raises(Damaged):
        decode({"state": [plain]}, tensors)


def test_a_nesting_without_end_is_damage() -> None:
    plain: Any = []
    for _ in range(100_000):
        plain = [plain]

    with pytest.raises(Damaged):
        decode(plain, [])
    with pytest.raises(Damaged):
        list(walk(plain))
    while plain:  # Python's own clean-up of it would take as much stack
        plain = plain.pop()


def _mutated(plain: Any, choose: Any) -> Any:
    """One place of a tree replaced by something from another place, or by nonsense."""
    path: list[tuple[Any, Any]] = []
    at = box = [plain]
    while isinstance(at, list | dict) and at and (not path or choose.draw(st.booleans())):
        key = choose.draw(st.sampled_from(list(at) if isinstance(at, dict) else range(len(at))))
        path.append((at, key))
        at = at[key]
    holder, key = path[-1]
    nonsense: list[Any] = [
        None,
        True,
        -1,
        2**70,
        0.5,
        "",
        "tensor",
        [],
        {},
        [[]],
        {"$": "tensor", "i": 0},
        {"$": "dict", "items": []},
    ]
    what = choose.draw(st.sampled_from(nonsense))
    if isinstance(holder, dict) and choose.draw(st.booleans()):
        del holder[key]
    else:
        holder[key] = what
    return box[0]


@settings(max_examples=300)
@given(states, st.data())
def test_a_changed_tree_is_read_or_is_damage_and_nothing_else(state: Any, choose: st.DataObject) -> None:
    tensors: list[torch.Tensor] = []
    plain = _mutated(json.loads(json.dumps(encode(state, tensors))), choose)

    for read in (lambda: decode(plain, tensors), lambda: list(walk(plain))):
        with suppress(Damaged):
            read()


# Real states


def trained(make: Callable[[Any], torch.optim.Optimizer]) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    optimizer = make(model.parameters())

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value: torch.Tensor = model(torch.linspace(0, 1, 20).reshape(5, 4)).square().sum()
        value.backward()  # type: ignore[no-untyped-call]  # torch
        return value

    for _ in range(3):
        optimizer.step(loss)  # type: ignore[arg-type]  # torch: it takes any closure
    return model, optimizer


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, amsgrad=True), lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1)),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), torch.optim.Adafactor,
        lambda p: torch.optim.LBFGS(p, history_size=2), lambda p: torch.optim.RMSprop(p, centered=True),
        torch.optim.Rprop, torch.optim.NAdam, torch.optim.Adagrad,
    ],
    ids=["AdamW", "AdamW with a tensor as lr", "SGD", "Adafactor", "LBFGS", "RMSprop", "Rprop", "NAdam", "Adagrad"],
)  # fmt: skip
def test_an_optimizer_goes_on_from_json_as_if_nothing_had_been(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    model, optimizer = trained(make)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    back = round_trip(state)

    assert is_same(state, back)
    other = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    other.load_state_dict(back["model"])
    again = make(other.parameters())
    again.load_state_dict(back["optimizer"])
    assert is_same(state, {"model": other.state_dict(), "optimizer": again.state_dict()})


class Warmup:
    """A schedule that is an object: torch keeps its attributes."""

    def __init__(self) -> None:
        self.steps = 3

    def __call__(self, epoch: int) -> float:
        return min(1.0, epoch / self.steps)


def _chained(optimizer: Any) -> Any:
    return lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    )


def _sequential(optimizer: Any) -> Any:
    both = [lr_scheduler.ConstantLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    return lr_scheduler.SequentialLR(optimizer, both, milestones=[2])


SCHEDULERS: Mapping[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "LambdaLR of an object": lambda o: lr_scheduler.LambdaLR(o, Warmup()),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 1, 4]),
    "ConstantLR": lr_scheduler.ConstantLR,
    "LinearLR": lr_scheduler.LinearLR,
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": _sequential,
    "PolynomialLR": lr_scheduler.PolynomialLR,
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "ChainedScheduler": _chained,
    "ReduceLROnPlateau": lr_scheduler.ReduceLROnPlateau,
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.1, 1.0),
    "CyclicLR with a function": lambda o: lr_scheduler.CyclicLR(o, 0.1, 1.0, scale_fn=lambda x: 0.5**x),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=9),
    "SWALR": lambda o: SWALR(o, swa_lr=0.1),
}


def test_every_scheduler_of_torch_is_among_those_that_are_tried() -> None:
    there = {
        name
        for name, value in vars(lr_scheduler).items()
        if isinstance(value, type) and issubclass(value, lr_scheduler.LRScheduler) and not name.endswith("LRScheduler")
    }

    assert there <= set(SCHEDULERS)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_goes_on_from_json(name: str) -> None:
    def scheduler() -> Any:
        _, optimizer = trained(lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9))
        return SCHEDULERS[name](optimizer)

    def step(one: Any) -> Any:
        one.optimizer.step() if hasattr(one, "optimizer") else None
        one.step(*([0.5] if name == "ReduceLROnPlateau" else []))
        return one.get_last_lr()

    undisturbed, resumed = scheduler(), scheduler()
    step(undisturbed)
    step(undisturbed)

    back = round_trip([undisturbed.state_dict(), undisturbed.optimizer.state_dict() if name else None])
    resumed.load_state_dict(back[0])
    resumed.optimizer.load_state_dict(back[1])

    assert is_same(undisturbed.state_dict(), resumed.state_dict())
    assert step(undisturbed) == step(resumed)


def test_the_scaler_and_the_averaged_model_come_back() -> None:
    model, _ = trained(lambda p: torch.optim.SGD(p, lr=0.1))
    averaged = AveragedModel(model, use_buffers=True)
    averaged.update_parameters(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(torch.ones(()))

    for state in (averaged.state_dict(), scaler.state_dict()):
        assert is_same(state, round_trip(state))


def test_the_versions_of_a_models_modules_come_back() -> None:
    """Without them, BatchNorm takes the state for one of torch 0.4 and starts to count its batches anew."""
    model, _ = trained(lambda p: torch.optim.SGD(p, lr=0.1))

    back = round_trip(model.state_dict())

    assert model.state_dict()._metadata == back._metadata  # type: ignore[attr-defined]
    assert back._metadata["1"] == {"version": 2}


def test_the_state_of_a_loader_that_keeps_its_place_comes_back() -> None:
    """As torchdata's StatefulDataLoader nests it: workers, fetchers, samplers, and a generator's bytes."""
    sampler = {"samples_yielded": 12, "generator": torch.Generator().get_state(), "sampler_iter_state": None}
    state = {
        "_snapshot": {
            "_snapshot_step": 3,
            "_last_yielded_worker_id": 1,
            "_main_snapshot": {"_num_workers": 2, "_sampler_iter_state": sampler, "_base_seed": 2**62 + 1},
            "_worker_snapshots": {f"worker_{n}": {"fetcher_state": {"ended": False}, "seen": {n}} for n in range(2)},
        },
        "_steps_since_snapshot": 0,
        "_order": np.random.default_rng(0).permutation(50),
    }

    assert is_same(state, round_trip(state))


@pytest.mark.parametrize("kind", ["PCG64", "MT19937", "Philox", "SFC64"])
def test_a_numpy_generator_goes_on_from_json(kind: str) -> None:
    generator = np.random.Generator(getattr(np.random, kind)(5))
    generator.random(3)

    back = getattr(np.random, kind)()
    back.state = round_trip(generator.bit_generator.state)

    assert generator.random() == np.random.Generator(back).random()


def test_a_legacy_numpy_state_comes_back() -> None:
    state = np.random.RandomState(3).get_state()

    assert is_same(state, round_trip(state))


def test_the_random_state_of_a_process_fits_into_the_text_and_comes_back() -> None:
    numbers: Any = list(range(20))
    loader: Any = torch.utils.data.DataLoader(numbers, shuffle=True, generator=torch.Generator().manual_seed(1))
    before = rng.capture(loader)
    undisturbed = _draws(loader)

    rng.restore(decode(json.loads(json.dumps(encode(before, None))), []), loader)

    assert undisturbed == _draws(loader)


def _draws(loader: Any) -> list[Any]:
    import random

    return [
        random.random(),
        random.gauss(),
        np.random.rand(),
        np.random.randn(),
        torch.rand(1).item(),
        *map(int, loader),
    ]
