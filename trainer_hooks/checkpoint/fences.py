"""What stands between a snapshot and an optimizer's step: hooks that the session installs, so that nobody forgets them.

`register_step_pre_hook` fires for fused and foreach steps, and when a GradScaler steps. Version counters of tensors
would not do: fused optimizers write without counting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import ref

from trainer_hooks.checkpoint.image import address_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Ownership:
    """Addresses of the storages that change in a step only, and of those that are never trained; and ids of tensors
    that differ between ranks which hold all else alike.
    """

    owned: frozenset[int] = frozenset()
    frozen: frozenset[int] = frozenset()
    each_ranks_own: frozenset[int] = frozenset()


class Fences:
    """Around the step of every optimizer among the session's objects; what they do not own is nobody's."""

    def __init__(self, objects: Mapping[str, Any], fence: Callable[[], None]) -> None:
        import torch

        candidates = [getattr(thing, "optimizer", thing) for thing in objects.values()]  # Accelerate wraps one
        candidates += list(objects.values())
        self._objects = objects
        self._guarded: list[_Guarded] = []
        for optimizer in {id(one): one for one in candidates if isinstance(one, torch.optim.Optimizer)}.values():
            if hasattr(optimizer, "_optimizer_step_pre_hooks"):  # else a wrapper that never called super().__init__
                self._guarded.append(_Guarded(optimizer, fence))

    def ownership(self) -> Ownership:
        """As of now: optimizers make their state in their first step."""
        owned = frozenset(address_of(tensor) for one in self._guarded for tensor in one.owned())
        frozen: set[int] = set()
        for thing in self._objects.values():
            parameters = getattr(thing, "parameters", None)
            if not callable(parameters):
                continue
            addresses = {address_of(parameter): parameter.requires_grad for parameter in parameters()}
            if addresses.keys() & owned:  # beside trained ones; a moving average is a module of its own
                frozen |= {address for address, is_trained in addresses.items() if not is_trained}
        return Ownership(owned, frozenset(frozen) - owned)

    def spent_gradients(self) -> set[int]:
        """Of which parameters (by id) the gradients are spent, and will be cleared before they are added to."""
        return {id(parameter) for one in self._guarded if one.is_spent for parameter in one.parameters()}

    def safe_point(self) -> None:
        """A step of the training is over."""
        for one in self._guarded:
            one.has_stepped = False

    def remove(self) -> None:
        for one in self._guarded:
            one.remove()


class _Guarded:
    """One optimizer. It also watches whether the script clears the gradients between two steps.

    One gradient is looked at for all: it is cleared if its object is another one at the next step. A script that once
    did not clear it may do so again.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, fence: Callable[[], None]) -> None:
        self._optimizer = optimizer
        self._fence = fence
        self._sample: tuple[Any, Any] | None = None  # a parameter, and a reference to the gradient that was spent
        self._clears: bool | None = None  # not known yet
        self.has_stepped = False
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    @property
    def is_spent(self) -> bool:
        return self.has_stepped and self._clears is True

    def parameters(self) -> Iterator[torch.Tensor]:
        return (parameter for group in self._optimizer.param_groups for parameter in group["params"])

    def owned(self) -> Iterator[torch.Tensor]:
        import torch

        yield from self.parameters()
        for state in self._optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, *args: object) -> None:
        self._fence()
        if self._sample is not None:
            parameter, spent = self._sample
            is_cleared = spent() is None or parameter.grad is not spent()
            self._clears = is_cleared and self._clears is not False

    def _after(self, *args: object) -> None:
        self.has_stepped = True
        parameter = next((one for one in self.parameters() if one.grad is not None), None)
        self._sample = None if parameter is None else (parameter, ref(parameter.grad))
