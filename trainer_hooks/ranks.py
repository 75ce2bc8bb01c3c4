"""Which process of the training this is, and how all of them agree on what happens at a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

AGREE_EVERY_SECONDS = 1.0
MAX_STEPS_BETWEEN = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """`can_agree`: there is a process group, so a decision is taken together."""

    rank: int = 0
    world_size: int = 1
    can_agree: bool = False

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in order of rank. A collective: all ranks call it, at the same step."""
        if not self.can_agree:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value. A collective."""
        if not self.can_agree:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


class Agreement:
    """The highest of what the ranks ask for, at the same step everywhere; between two agreements, 0."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._asked = 0  # by this rank, since the last time
        self._next_step = 0

    def reach(self, asked: int, *, step: int, steps_to_next: int) -> int:
        """Every rank calls it at every step; rank 0 decides how many steps go by until the next collective."""
        self._asked = max(self._asked, int(asked))
        if step < self._next_step:
            return 0
        answers = self._ranks.gather((self._asked, steps_to_next))
        self._asked = 0
        self._next_step = step + answers[0][1]
        return max(int(theirs) for theirs, _ in answers)


def find_ranks(environ: Mapping[str, str]) -> Ranks:
    """From the default process group if there is one, else from RANK and WORLD_SIZE as torchrun sets them.

    Without a group the ranks cannot agree: initialise it before the session is made.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        size = dist.get_world_size()
        return Ranks(rank=dist.get_rank(), world_size=size, can_agree=size > 1)
    told = environ.get("RANK", "0"), environ.get("WORLD_SIZE", "1")
    if not all(number.isdecimal() for number in told):
        return Ranks()
    return Ranks(rank=int(told[0]), world_size=max(1, int(told[1])))


def steps_until_agreement(step_seconds: float | None) -> int:
    """A collective costs more than a step's bookkeeping, so it takes place about once a second."""
    if not step_seconds:
        return 1
    return max(1, min(MAX_STEPS_BETWEEN, int(AGREE_EVERY_SECONDS / step_seconds)))
