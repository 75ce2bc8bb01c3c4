"""What has nothing in it, as plain JSON and back: numbers that JSON lacks, bytes, torch's and numpy's small types.

Here, too, is which tensors and arrays a checkpoint can hold: those that are the bytes of one strided memory.
"""

from __future__ import annotations

import base64
import math
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from trainer_hooks.checkpoint.manifest import ITEM_BYTES, MAX_DIMENSIONS
from trainer_hooks.errors import Damaged

if TYPE_CHECKING:
    import torch

MAX_DECIMAL_BITS = 8192
"""Of an integer that is written in digits: Python reads back no more than 4,300 of them."""

NUMPY_DTYPES = frozenset({"|b1", "|i1", "|u1"}) | {
    f"<{kind}" for kind in ("i2", "u2", "f2", "i4", "u4", "f4", "i8", "u8", "f8", "c8", "c16")
}
"""Those that torch has, too: an array is kept as a tensor."""

_NON_FINITE = ("inf", "-inf", "nan")
_HEX = re.compile(r"-?[1-9a-f][0-9a-f]*")
_DEVICE = re.compile(r"[a-z]{1,20}(:[0-9]{1,4})?")


@cache
def encoders() -> Mapping[type, Callable[[Any], Any]]:
    """By exact type: a subclass may hold more than its value."""
    import torch

    return {
        int: lambda value: value if value.bit_length() <= MAX_DECIMAL_BITS else {"$": "int", "hex": f"{value:x}"},
        float: _encode_float,
        complex: lambda value: {"$": "complex", "parts": [_encode_float(value.real), _encode_float(value.imag)]},
        bytes: lambda value: {"$": "bytes", "data": _base64(value)},
        torch.Size: lambda value: {"$": "torch.Size", "items": list(value)},
        torch.dtype: lambda value: {"$": "torch.dtype", "name": dtype_name(value)},
        torch.device: lambda value: {"$": "torch.device", "name": str(value)},
    }


def decoders() -> Mapping[str, Callable[[Mapping[str, Any]], Any]]:
    """By the kind of a node. They raise Damaged, or what Python and torch raise at arguments that make no sense."""
    return {
        "int": lambda node: _decode_int(node["hex"]),
        "float": lambda node: _decode_float(node["value"]),
        "complex": lambda node: _decode_complex(node["parts"]),
        "bytes": lambda node: _bytes(node["data"]),
        "torch.Size": lambda node: _decode_size(node["items"]),
        "torch.dtype": lambda node: _dtypes()[node["name"]],
        "torch.device": lambda node: _decode_device(node["name"]),
        "numpy": lambda node: _decode_scalar(node["dtype"], node["data"]),
        "inline": lambda node: _decode_inline(node["dtype"], node["shape"], node["data"]),
    }


def encode_scalar(value: Any) -> Any:
    """A numpy number, as its little-endian bytes."""
    return {"$": "numpy", "dtype": value.dtype.str, "data": _base64(value.tobytes())}


def encode_inline(value: torch.Tensor) -> Any:
    """A tensor's bytes, row by row, within the JSON: for the few kilobytes of a generator's state."""
    import torch

    # What has one item or none counts as contiguous with any strides, and `view` would refuse them: hence a new memory.
    rows = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    raw = rows.reshape(-1).view(torch.uint8).numpy().tobytes()
    return {"$": "inline", "dtype": dtype_name(value.dtype), "shape": list(value.shape), "data": _base64(raw)}


def why_not_plain(value: torch.Tensor) -> str:
    """What keeps a tensor from being the bytes of one strided memory, as words after "is"; empty where nothing does."""
    import torch

    local: Any = value
    if is_sharded(value):
        if any(placement.is_partial() for placement in value.placements):  # type: ignore[attr-defined]  # a DTensor
            return "a DTensor whose value is still to be summed up over the ranks"
        local = value.to_local()  # type: ignore[attr-defined]  # a DTensor
    if type(local) not in (torch.Tensor, torch.nn.Parameter):
        return f"a {type(local).__module__}.{type(local).__qualname__}, a tensor with more to it than its numbers"
    if local.layout is not torch.strided or local.is_nested:
        return "a sparse or nested tensor"
    if local.device.type == "meta":
        return "a tensor on the device meta, which has no values"
    if local.is_quantized or dtype_name(local.dtype) not in ITEM_BYTES:
        return f"a tensor of {local.dtype}"
    return ""


def is_sharded(value: Any) -> bool:
    """Whether this rank may hold a part of it only. A DTensor exists only where its module was imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def identity(value: torch.Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are the same memory, seen in the same way."""
    if is_sharded(value):
        return _identity_of_sharded(value)
    if value.numel() == 0:
        return (id(value),)
    return (value.data_ptr(), value.dtype, tuple(value.shape), value.stride(), value.device)


def _identity_of_sharded(value: Any) -> tuple[Any, ...]:
    """Every rank must come to the same answer, and a rank whose shard is empty has no memory to compare.

    So it is asked only where no rank's shard can be empty: where all are of one size.
    """
    ranks, dimensions = value.device_mesh.size(), [getattr(placement, "dim", None) for placement in value.placements]
    is_even = all(value.shape[dimension] % ranks == 0 for dimension in dimensions if dimension is not None)
    if not is_even or value.numel() == 0:
        return (id(value),)
    return (id(value.device_mesh), value.placements, tuple(value.shape), *identity(value.to_local()))


@cache
def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _encode_float(value: float) -> Any:
    return value if math.isfinite(value) else {"$": "float", "value": str(value)}


def _decode_float(value: Any) -> float:
    if value not in _NON_FINITE:
        _odd(value)
    return float(value)


def _decode_int(digits: str) -> int:
    if not _HEX.fullmatch(digits):
        raise Damaged("the state holds an integer that is none")
    return int(digits, 16)


def _decode_complex(parts: Any) -> complex:
    if not isinstance(parts, list):
        _odd(parts)
    real, imaginary = (_decode_float(part["value"]) if isinstance(part, dict) else part for part in parts)
    if type(real) is not float or type(imaginary) is not float:
        _odd(parts)
    return complex(real, imaginary)


def _decode_size(items: Any) -> torch.Size:
    import torch

    return torch.Size(_counts(items))


@cache
def _dtypes() -> Mapping[str, torch.dtype]:
    import torch

    return {dtype_name(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


def _decode_device(name: str) -> torch.device:
    import torch

    if not _DEVICE.fullmatch(name):
        _odd(name)
    return torch.device(name)


def _decode_scalar(dtype: str, data: str) -> Any:
    import numpy

    if dtype not in NUMPY_DTYPES:
        _odd(dtype)
    (value,) = numpy.frombuffer(_bytes(data), dtype=dtype)
    return value


def _decode_inline(dtype: str, shape: Any, data: str) -> torch.Tensor:
    import torch

    raw, item_bytes = bytearray(_bytes(data)), ITEM_BYTES[dtype]
    if math.prod(_counts(shape)) * item_bytes != len(raw):
        raise Damaged(f"a tensor of the state has {len(raw):,} bytes, which is not what its shape says")
    if not raw:
        return torch.empty(shape, dtype=_dtypes()[dtype])
    return torch.frombuffer(raw, dtype=torch.uint8).view(_dtypes()[dtype]).reshape(shape)


def _counts(values: Any) -> list[int]:
    if not isinstance(values, list) or len(values) > MAX_DIMENSIONS:
        _odd(values)
    if not all(type(value) is int and value >= 0 for value in values) or math.prod(map(_at_least_1, values)) >> 58:
        _odd(values)  # what has no items may claim a size that overflows torch's arithmetic
    return values


def _at_least_1(value: int) -> int:
    return max(value, 1)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(data: Any) -> bytes:
    if not isinstance(data, str):
        _odd(data)
    return base64.b64decode(data, validate=True)


def _odd(value: object) -> NoReturn:
    raise Damaged(f"the state holds a {type(value).__name__} that does not belong there")
