"""The random state of a process, in types that `tree.encode` takes.

{"python": [version, [ints], gauss], "numpy": [name, key, pos, has_gauss, gauss] | None,
 "torch": tensor, "cuda": [tensor per device] | None, "generators": {where in the loader: tensor}}

With "branch": number, it is what a rank begins with that was not there before, derived from another one's state.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_GENERATORS = ("generator", "sampler.generator", "batch_sampler.generator", "batch_sampler.sampler.generator")


def capture(loader: object = None) -> dict[str, Any]:
    """The state of every generator that a training step usually draws from, the loader's own among them."""
    import torch

    version, internal, gauss = random.getstate()
    return {
        "python": [version, list(internal), gauss],
        "numpy": _capture_numpy(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None,  # type: ignore[no-untyped-call]  # torch
        "generators": {where: generator.get_state() for where, generator in _generators(loader).items()},
    }


def restore(state: Mapping[str, Any], loader: object = None) -> None:
    """Set every generator that `capture` saw and that is here, too."""
    import torch

    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    _restore_numpy(state["numpy"])
    torch.set_rng_state(state["torch"])
    for device, device_state in enumerate(state["cuda"] or ()):
        if device < torch.cuda.device_count():
            torch.cuda.set_rng_state(device_state, device)
    for where, generator in _generators(loader).items():
        if where in state["generators"]:
            generator.set_state(state["generators"][where])
    if "branch" in state:
        _branch_off(state["branch"])


def differing(state: Mapping[str, Any], loader: object = None) -> list[str]:
    """Which generators of `state` are not as they were there, right after `restore`; they were not to be found here."""
    if "branch" in state:
        return []
    now = capture(loader)
    generators = state["generators"]
    found = [name for name in ("python", "numpy", "torch", "cuda") if state[name] is not None]
    return [name for name in found if not _are_same(state[name], now[name])] + [
        where for where in generators if not _are_same(generators[where], now["generators"].get(where))
    ]


def _are_same(one: Any, other: Any) -> bool:
    import torch

    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_are_same(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other)


def _branch_off(number: int) -> None:
    """Other random numbers than those of this state, and the same ones whenever it is restored."""
    import torch

    seed = int(torch.randint(2**31, ()).item()) + number
    random.seed(seed)
    torch.manual_seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed)


def _capture_numpy() -> list[Any] | None:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    name, key, pos, has_gauss, gauss = numpy.random.get_state()
    return [str(name), [int(word) for word in key], int(pos), int(has_gauss), float(gauss)]


def _restore_numpy(state: list[Any] | None) -> None:
    if state is None:
        return
    import numpy

    name, key, pos, has_gauss, gauss = state
    numpy.random.set_state((name, numpy.array(key, dtype=numpy.uint32), pos, has_gauss, gauss))


def _generators(loader: object) -> dict[str, torch.Generator]:
    """The generators that a DataLoader and its samplers were given, by where they are."""
    import torch

    found = {where: _attribute(loader, where) for where in _GENERATORS}
    return {where: value for where, value in found.items() if isinstance(value, torch.Generator)}


def _attribute(subject: object, path: str) -> object:
    for name in path.split("."):
        subject = getattr(subject, name, None)
    return subject
