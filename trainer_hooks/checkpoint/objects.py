"""The state of the user's objects: taken at a safe point, and put back all or none.

Gradients are state too: in the middle of an accumulation they hold batches that were already counted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trainer_hooks.checkpoint import shards
from trainer_hooks.errors import CheckpointMismatch

if TYPE_CHECKING:
    import torch

GRADIENTS = "hooks-gradients"
"""The hyphen keeps it from keyword names."""


def stateful(objects: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword objects of a session; `None` is left out.

    Raises: TypeError: one has no state. ValueError: its name is taken or strange.
    """
    given = {name: thing for name, thing in objects.items() if thing is not None}
    for name, thing in given.items():
        if not callable(getattr(thing, "state_dict", None)) or not callable(getattr(thing, "load_state_dict", None)):
            raise TypeError(
                f"Session({name}=…) is a {type(thing).__name__}; something with state_dict() and load_state_dict() "
                "is wanted. Settings are run_uri, checkpoint_every_steps and keep"
            )
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", name):
            raise ValueError(f"Session({name}=…): give a name of ASCII letters, digits and _")
    return given


def capture(objects: Mapping[str, Any], *, spent: Collection[int]) -> dict[str, Any]:
    """State by component, as live references.

    `spent` are the parameters (by id) whose gradients a step has used and the script will clear: they are left out.
    """
    components = {name: shards.state_of(thing) for name, thing in objects.items()}
    gradients = {
        key: parameter.grad
        for key, parameter in _parameters(objects)
        if parameter.grad is not None and id(parameter) not in spent
    }
    return components | ({GRADIENTS: gradients} if gradients else {})


def check(objects: Mapping[str, Any], components: Mapping[str, Any], *, checkpoint: str) -> None:
    """Raises: CheckpointMismatch: the checkpoint is of other objects than these. Nothing was touched."""
    there = {name for name in components if name != GRADIENTS}
    _demand(sorted(there - objects.keys()), "has {}, and Session(…) was not given it", checkpoint)
    _demand(sorted(objects.keys() - there), "has no {}, which Session(…) was given", checkpoint)
    unknown = components.get(GRADIENTS, {}).keys() - dict(_parameters(objects)).keys()
    _demand(sorted(unknown), "has gradients of {}, a parameter that is not here", checkpoint)


def apply(objects: Mapping[str, Any], components: Mapping[str, Any], *, checkpoint: str) -> None:
    """Put the state into the live objects.

    Raises: CheckpointMismatch: an object does not take its state; do not train on, some were already changed.
    """
    check(objects, components, checkpoint=checkpoint)
    for name, thing in objects.items():
        try:
            shards.load_into(thing, components[name])
        except Exception as error:  # whatever a user's own class may raise
            why = " ".join(str(error).split()).rstrip(".")  # torch's are a list over several lines
            raise CheckpointMismatch(
                f"{name} does not take its state from checkpoint {checkpoint}: {why}. "
                "If the script was changed on purpose, start over in another run folder (run_uri=…)"
            ) from error
    gradients = components.get(GRADIENTS, {})
    for key, parameter in _parameters(objects):
        saved = gradients.get(key)
        parameter.grad = None if saved is None else saved.to(parameter.device)


def parameters(objects: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """By the names that their gradients have in a checkpoint."""
    return dict(_parameters(objects))


def _parameters(objects: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each parameter once, under a name that is the same in every process."""
    seen: set[int] = set()
    for name, thing in objects.items():
        for key, parameter in _named(thing):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{name}.{key}", parameter


def _named(thing: Any) -> Iterator[tuple[str, torch.Tensor]]:
    thing = shards.unwrapped(thing)
    if callable(getattr(thing, "named_parameters", None)):
        yield from thing.named_parameters()
    elif isinstance(groups := getattr(thing, "param_groups", None), list):
        for number, group in enumerate(groups):
            yield from ((f"{number}.{at}", parameter) for at, parameter in enumerate(group["params"]))


def _demand(wrong: list[str], complaint: str, checkpoint: str) -> None:
    if wrong:
        raise CheckpointMismatch(
            f"checkpoint {checkpoint} {complaint.format(', '.join(wrong))}. Give Session(…) the same keywords as "
            "in the run that wrote it, or start over in another run folder (run_uri=…)"
        )
