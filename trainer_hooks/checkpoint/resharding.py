"""A checkpoint's tensors as this rank's objects need them, whatever number of ranks wrote them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from trainer_hooks.checkpoint import tree
from trainer_hooks.checkpoint.leaves import is_sharded
from trainer_hooks.checkpoint.manifest import Stored
from trainer_hooks.checkpoint.reader import Box
from trainer_hooks.checkpoint.shards import Shape, local_pieces, state_of
from trainer_hooks.errors import CheckpointMismatch
from trainer_hooks.ranks import Ranks

if TYPE_CHECKING:
    import torch
    from torch.distributed.tensor import DTensor


class Reading(Protocol):
    """What is needed of a `reader.Reader`."""

    def read_boxes(self, wanted: Mapping[int, Box]) -> dict[int, torch.Tensor]: ...


@dataclass(frozen=True, slots=True)
class Target:
    """The box that this rank needs, and the live DTensor that the box becomes a shard of."""

    like: DTensor
    box: Box

    def wrap(self, local: torch.Tensor) -> DTensor:
        return rewrap(local, self.like)


class Targets:
    """Which tensors of a checkpoint become DTensors on this rank, as the live objects have them.

    A value may also be a mapping of tensors, as gradients are kept. What an optimizer will hold is not there before its
    first step: a tensor of a parameter's shape is sharded as the parameter, any other that is no single number is
    whole on every rank of its mesh.
    """

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self._leaves: dict[str, DTensor] = {}
        self._parameters: dict[str, DTensor] = {}  # by the beginning of their state's path
        for name, thing in objects.items():
            if callable(getattr(thing, "state_dict", None)) and isinstance(getattr(thing, "param_groups", None), list):
                self._parameters |= dict(_parameters(f"{name}/state/", thing.param_groups))
            else:
                self._leaves |= dict(_sharded_leaves(name, thing))

    def is_sharded(self, where: str) -> bool:
        return where in self._leaves

    def of(self, where: str, shape: Shape) -> Target | None:
        """`where` as `tree.walk` says it. Raises: CheckpointMismatch: the live tensor has another shape."""
        if (leaf := self._leaves.get(where)) is not None:
            if tuple(leaf.shape) != shape:
                raise CheckpointMismatch(f"{where} has the shape {tuple(leaf.shape)} here, {shape} in the checkpoint")
            return _target(leaf)
        parameter = self._parameters.get("/".join(where.split("/")[:3])) if self._parameters else None
        if parameter is None or (not shape and parameter.dim() > 0):
            return None
        return _target(parameter) if shape == tuple(parameter.shape) else _whole(parameter, shape)


@dataclass(frozen=True, slots=True)
class OwnTarget:
    """Of a tensor that every rank had one of: this rank's, or, on another number of ranks, the mean of all.

    Gradients are averaged over the ranks in the end, so the mean of the means is what it would have been.
    """

    box: Box

    def wrap(self, local: torch.Tensor) -> torch.Tensor:
        return local[0] if len(local) == 1 else local.mean(0)


@dataclass(frozen=True, slots=True)
class OwnTargets:
    """`targets`, but for what lies below `prefix` and is not sharded."""

    targets: Targets
    prefix: str
    ranks: Ranks
    saved_world_size: int

    def of(self, where: str, shape: Shape) -> Target | OwnTarget | None:
        if not where.startswith(self.prefix) or self.saved_world_size == 1 or self.targets.is_sharded(where):
            return self.targets.of(where, shape)
        if self.saved_world_size == self.ranks.world_size:
            return OwnTarget(Box((self.ranks.rank, *(0 for _ in shape[1:])), (1, *shape[1:])))
        return OwnTarget(Box(tuple(0 for _ in shape), shape))


def read_tensors(
    reader: Reading, state: Mapping[str, Any], stored: Sequence[Stored], targets: Targets | OwnTargets
) -> list[torch.Tensor | None]:
    """What `tree.decode` wants beside `state`: DTensors where `targets` has one. `None`: `state` does not use it."""
    wanted = {number: targets.of(where, stored[number].shape) for where, number in reversed([*tree.walk(state)])}
    found = reader.read_boxes({number: _box(target, stored[number]) for number, target in wanted.items()})
    tensors: list[torch.Tensor | None] = [None] * len(stored)
    for number, target in wanted.items():
        tensors[number] = found[number] if target is None else target.wrap(found[number])
    return tensors


def rewrap(local: torch.Tensor, like: DTensor) -> DTensor:
    """`local` as this rank's shard of a tensor that is laid out like `like`. No communication."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def _parameters(prefix: str, groups: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, DTensor]]:
    """The DTensors among an optimizer's parameters, numbered as its `state_dict()` does."""
    numbers: dict[int, int] = {}
    for parameter in (parameter for group in groups for parameter in group["params"]):
        number = numbers.setdefault(id(parameter), len(numbers))
        if is_sharded(parameter):
            yield f"{prefix}{number}", parameter


def _sharded_leaves(name: str, thing: Any) -> Iterator[tuple[str, DTensor]]:
    found: list[Any] = []
    plain = tree.encode(thing if isinstance(thing, Mapping) else state_of(thing), found)
    for where, number in tree.walk({name: plain}):
        if is_sharded(found[number]):
            yield where, found[number]


def _box(target: Target | OwnTarget | None, stored: Stored) -> Box:
    return Box((0,) * len(stored.shape), stored.shape) if target is None else target.box


def _target(like: DTensor) -> Target:
    held = local_pieces(like)
    if len(held.offset) != held.local.dim():  # this rank is not in its mesh
        return Target(like, Box(held.offset, (0,) * len(held.offset)))
    return Target(like, Box(held.offset, tuple(held.local.shape)))


def _whole(parameter: DTensor, shape: Shape) -> Target:
    import torch
    from torch.distributed.tensor import DTensor, Replicate

    mesh = parameter.device_mesh
    empty = torch.empty(shape, device=parameter.to_local().device)
    like = DTensor.from_local(empty, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return Target(like, Box((0,) * len(shape), shape))
