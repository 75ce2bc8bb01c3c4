"""A state as plain JSON: what `state_dict()` returns, with a number in the place of each tensor. No code is in it.

JSON's own types stay themselves; anything else is a node, an object whose key "$" says what it is. What is not listed
in docs/checkpoint-format.md is refused: to build it again, a reader would have to run code that a file names.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainer_hooks.checkpoint import leaves
from trainer_hooks.errors import Damaged, NotLoadable

if TYPE_CHECKING:
    import torch

MAX_DEPTH = 100
"""Of containers in containers: each takes up to three levels of JSON, and Python's parser ends near a thousand."""

FACTORIES: Mapping[str, Callable[[], Any] | None] = {
    "none": None, "int": int, "float": float, "list": list, "dict": dict, "set": set,
}  # fmt: skip
"""Of a defaultdict: what can be named without naming code."""

FIELDS: Mapping[str, frozenset[str]] = {
    kind: frozenset({"$", *names})
    for names, kinds in (
        (("i",), ("tensor",)),
        (("dtype", "shape", "data"), ("inline",)),
        (("of",), ("numpy.ndarray",)),
        (("dtype", "data"), ("numpy",)),
        (("items",), ("tuple", "set", "frozenset", "dict", "OrderedDict", "Counter", "torch.Size")),
        (("items", "max"), ("deque",)),
        (("items", "factory"), ("defaultdict",)),
        (("hex",), ("int",)),
        (("value",), ("float",)),
        (("parts",), ("complex",)),
        (("data",), ("bytes",)),
        (("name",), ("torch.dtype", "torch.device")),
    )
    for kind in kinds
}
"""Of a node, by its kind. An OrderedDict may have one more, `metadata`."""

_AS_THEY_ARE = (str, bool, type(None))
_MAPPINGS = ("dict", "OrderedDict", "Counter", "defaultdict")


def encode(value: Any, tensors: list[torch.Tensor] | None, *, at: str = "") -> Any:
    """`value` as plain JSON; its tensors are appended to `tensors`, or written into the JSON where that is `None`.

    Tensors that are the same memory, seen in the same way, are appended once. What is appended may be the live memory,
    or require gradients; a DTensor is appended as such. `at` says in messages where `value` is.

    Raises: NotLoadable: something in it could not be read back without running code.
    """
    import torch

    with torch.no_grad():
        return _Encoder(tensors).plain(value, at, 0)


def decode(plain: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """What `encode` was given. Tensors come back as plain ones, those of equal number as one object.

    Raises: Damaged: `encode` does not write such a thing.
    """
    try:
        return _Decoder(tensors).value(plain, 0)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise Damaged(f"the state is not readable ({type(error).__name__}: {str(error)[:200]})") from error


def walk(plain: Any) -> Iterator[tuple[str, int]]:
    """`(where, number)` of each reference to a tensor, in the order in which `encode` met them.

    `where` joins keys and positions with "/", as in "model/layer.weight". It is for people: two may read alike.
    Raises: Damaged: `encode` does not write such a thing.
    """
    try:
        yield from _walk(plain, "", 0)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Damaged(f"the state is not readable ({type(error).__name__})") from error


class _Encoder:
    def __init__(self, tensors: list[torch.Tensor] | None) -> None:
        self._tensors = tensors
        self._numbers = {leaves.identity(tensor): number for number, tensor in enumerate(tensors or ())}
        self._leaves = leaves.encoders()
        self._containers: Mapping[type, Callable[[Any, str, int], Any]] = {
            list: self._items,
            tuple: lambda value, at, depth: {"$": "tuple", "items": self._items(value, at, depth)},
            deque: lambda value, at, depth: (
                {"$": "deque", "max": value.maxlen, "items": self._items(value, at, depth)}
            ),
            set: lambda value, at, depth: {"$": "set", "items": self._members(value, at, depth)},
            frozenset: lambda value, at, depth: {"$": "frozenset", "items": self._members(value, at, depth)},
            dict: self._dict,
            OrderedDict: self._ordered,
            Counter: lambda value, at, depth: {"$": "Counter", "items": self._pairs(value, at, depth)},
            defaultdict: self._defaultdict,
        }

    def plain(self, value: Any, at: str, depth: int) -> Any:
        kind = type(value)
        if kind in _AS_THEY_ARE:
            return value
        if (leaf := self._leaves.get(kind)) is not None:
            return leaf(value)
        if (container := self._containers.get(kind)) is None:
            return self._array(value, at)
        if depth >= MAX_DEPTH:
            raise NotLoadable(
                f"{at[:200]} … is nested deeper than {MAX_DEPTH} levels, or contains itself. "
                "Let state_dict() return a flat dict"
            )
        return container(value, at, depth + 1)

    def _items(self, values: Iterable[Any], at: str, depth: int) -> list[Any]:
        return [
            value if type(value) in _AS_THEY_ARE else self.plain(value, _join(at, place), depth)
            for place, value in enumerate(values)
        ]

    def _members(self, values: Iterable[Any], at: str, depth: int) -> list[Any]:
        """In an order that does not depend on the seed of this process's hashes: equal states, equal text."""
        return sorted((self._key(value, at, depth) for value in values), key=json.dumps)

    def _dict(self, value: Mapping[Any, Any], at: str, depth: int) -> Any:
        if "$" in value or not all(type(key) is str for key in value):
            return {"$": "dict", "items": self._pairs(value, at, depth)}
        return {key: self.plain(one, _join(at, key), depth) for key, one in value.items()}

    def _pairs(self, value: Mapping[Any, Any], at: str, depth: int) -> list[Any]:
        return [[self._key(key, at, depth), self.plain(one, _join(at, key), depth)] for key, one in value.items()]

    def _key(self, key: Any, at: str, depth: int) -> Any:
        plain = self.plain(key, f"a key in {at}", depth)
        if _has_tensor(key):
            raise NotLoadable(_refusal(f"a key in {at}", "a tensor"))
        return plain

    def _ordered(self, value: OrderedDict[Any, Any], at: str, depth: int) -> Any:
        """`Module.state_dict()` keeps the versions of its modules in an attribute, which loading looks at."""
        attributes = dict(vars(value))
        metadata = attributes.pop("_metadata", None)
        if attributes:
            raise NotLoadable(_refusal(at, f"an OrderedDict with attributes ({', '.join(attributes)[:80]})"))
        plain = {"$": "OrderedDict", "items": self._pairs(value, at, depth)}
        return plain if metadata is None else plain | {"metadata": self.plain(metadata, f"{at}._metadata", depth)}

    def _defaultdict(self, value: defaultdict[Any, Any], at: str, depth: int) -> Any:
        names = [name for name, factory in FACTORIES.items() if factory is value.default_factory]
        if not names:
            raise NotLoadable(_refusal(at, "a defaultdict with a function of its own for what is missing"))
        return {"$": "defaultdict", "factory": names[0], "items": self._pairs(value, at, depth)}

    def _array(self, value: Any, at: str) -> Any:
        import torch

        if isinstance(value, torch.Tensor):
            return self._tensor(value, at)
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.generic) and value.dtype.str in leaves.NUMPY_DTYPES:
            return leaves.encode_scalar(value)
        if numpy is not None and type(value) is numpy.ndarray and value.dtype.str in leaves.NUMPY_DTYPES:
            # A copy, as torch takes neither memory that is read-only nor strides that go backwards.
            return {"$": "numpy.ndarray", "of": self._tensor(torch.from_numpy(numpy.array(value)), at)}
        raise NotLoadable(_refusal(at, f"a {type(value).__module__}.{type(value).__qualname__}"))

    def _tensor(self, value: torch.Tensor, at: str) -> Any:
        wrong = leaves.why_not_plain(value)
        if wrong:
            raise NotLoadable(_refusal(at, wrong))
        if not leaves.is_sharded(value):
            value = value.resolve_conj().resolve_neg()  # marks on memory that holds something else than the value
        if self._tensors is not None:
            number = self._numbers.setdefault(leaves.identity(value), len(self._tensors))
            if number == len(self._tensors):
                self._tensors.append(value)
            return {"$": "tensor", "i": number}
        if leaves.is_sharded(value):
            raise NotLoadable(_refusal(at, "a DTensor in what each rank keeps for itself"))
        return leaves.encode_inline(value)


class _Decoder:
    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = tensors
        self._leaves = leaves.decoders()
        self._containers: Mapping[str, Callable[[Mapping[str, Any], int], Any]] = {
            "tuple": lambda node, depth: tuple(self._items(node, depth)),
            "deque": lambda node, depth: deque(self._items(node, depth), _maxlen(node["max"])),
            "set": lambda node, depth: set(_hashable(self._items(node, depth))),
            "frozenset": lambda node, depth: frozenset(_hashable(self._items(node, depth))),
            "dict": self._dict,
            "OrderedDict": self._ordered,
            "Counter": lambda node, depth: Counter(self._dict(node, depth)),
            "defaultdict": lambda node, depth: defaultdict(FACTORIES[node["factory"]], self._dict(node, depth)),
        }

    def value(self, plain: Any, depth: int) -> Any:
        kind = type(plain)
        if kind in _AS_THEY_ARE or kind is int or (kind is float and math.isfinite(plain)):
            return plain
        if depth > MAX_DEPTH + 1 or kind not in (list, dict):
            raise Damaged(f"the state holds a {kind.__name__}, {depth} levels deep")
        if kind is list:
            return [self.value(one, depth + 1) for one in plain]
        if "$" not in plain:
            return {key: self.value(one, depth + 1) for key, one in plain.items()}
        return self._node(_checked(plain), depth + 1)

    def _node(self, node: Mapping[str, Any], depth: int) -> Any:
        kind = node["$"]
        if kind == "tensor":
            return self._tensors[_number(node, len(self._tensors))]
        if kind == "numpy.ndarray":
            return self._array(node["of"], depth)
        if (leaf := self._leaves.get(kind)) is not None:
            return leaf(node)
        container = self._containers[kind](node, depth)
        if len(container) != len(node["items"]):
            raise Damaged(f"a {kind} of the state holds something twice")
        return container

    def _items(self, node: Mapping[str, Any], depth: int) -> list[Any]:
        return [self.value(one, depth) for one in _list(node["items"])]

    def _dict(self, node: Mapping[str, Any], depth: int) -> dict[Any, Any]:
        keys = _hashable([self.value(key, depth) for key, _ in _list(node["items"])])
        return dict(zip(keys, [self.value(one, depth) for _, one in node["items"]], strict=True))

    def _ordered(self, node: Mapping[str, Any], depth: int) -> OrderedDict[Any, Any]:
        value = OrderedDict(self._dict(node, depth))
        if "metadata" in node:
            value._metadata = self.value(node["metadata"], depth)  # type: ignore[attr-defined]  # where torch looks
        return value

    def _array(self, plain: Any, depth: int) -> Any:
        if _kind(plain) not in ("tensor", "inline"):
            raise Damaged("an array of the state is made of something that is no tensor")
        array = self.value(plain, depth).numpy()
        if array.dtype.str not in leaves.NUMPY_DTYPES:
            raise Damaged(f"the state holds an array of {array.dtype}")
        return array


def _walk(plain: Any, at: str, depth: int) -> Iterator[tuple[str, int]]:
    if depth > MAX_DEPTH + 1:
        raise Damaged(f"the state is nested {depth} levels deep")
    kind = _kind(plain)
    if kind is None:
        children = enumerate(plain) if type(plain) is list else plain.items() if type(plain) is dict else ()
        for key, one in children:
            yield from _walk(one, _join(at, key), depth + 1)
        return
    node = _checked(plain)
    if kind == "tensor":
        yield at, _number(node, sys.maxsize)
    elif kind == "numpy.ndarray":
        yield from _walk(node["of"], at, depth + 1)
    elif kind in _MAPPINGS:
        for key, one in _list(node["items"]):
            yield from _walk(one, _join(at, key if type(key) is not dict else json.dumps(key)), depth + 1)
        yield from _walk(node.get("metadata"), f"{at}._metadata", depth + 1)
    elif kind in ("tuple", "deque"):
        yield from _walk(_list(node["items"]), at, depth)


def _kind(plain: Any) -> Any:
    return plain.get("$") if type(plain) is dict else None


def _checked(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the fields that its kind has, and no others."""
    kind = node["$"]
    if node.keys() - ({"metadata"} if kind == "OrderedDict" else set()) != FIELDS[kind]:
        raise Damaged(f"a {kind} of the state has the wrong fields")
    return node


def _number(node: Mapping[str, Any], tensors: int) -> int:
    number = node["i"]
    if type(number) is not int or not 0 <= number < tensors:
        raise Damaged("the state refers to a tensor that is not there")
    return number


def _maxlen(value: Any) -> int | None:
    if value is not None and type(value) is not int:
        raise Damaged("the state holds a deque of no length")
    return value


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise Damaged(f"the state holds a {type(value).__name__} where a list is wanted")
    return value


def _hashable(values: list[Any]) -> list[Any]:
    if any(_has_tensor(value) for value in values):
        raise Damaged("the state has a tensor as a key")
    return values


def _has_tensor(key: Any) -> bool:
    """A tensor can be a key, but is equal to itself only: nobody could look it up again."""
    if type(key) in (tuple, frozenset):
        return any(_has_tensor(one) for one in key)
    return hasattr(key, "untyped_storage")


def _join(at: str, key: Any) -> str:
    return f"{at}/{key}" if at else str(key)


def _refusal(at: str, found: str) -> str:
    return (
        f"{at or 'the state'} is {found}, and cannot be read back without running code. Let state_dict() return "
        "tensors, numbers, strings, lists and dicts only (int(…), float(…), .tolist(), .to_dense(), "
        ".value of an enum); leave functions out"
    )
