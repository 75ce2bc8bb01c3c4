"""Which process of the training this is, and how the processes talk beside it: to decide, and to save, together.

Nothing of that is a collective, which would stand between those of the training (see `rendezvous`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trainer_hooks.errors import HooksError
from trainer_hooks.rendezvous import Post, looks, open_post

AGREE_EVERY_SECONDS = 1.0
MAX_STEPS_BETWEEN = 1000

DECISION_SECONDS = 600.0
"""That a rank waits for the first one's decision: as long as NCCL waits in a collective, if nobody says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """`can_agree`: there is a process group, so a decision is taken together."""

    rank: int = 0
    world_size: int = 1
    can_agree: bool = False

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def group_size(self) -> int:
        """How many make one training. Without a group, every process is one by itself."""
        return self.world_size if self.can_agree else 1

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value. A collective."""
        if not self.can_agree:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


class Agreement:
    """One decision for all ranks, at the same step everywhere: the highest of what they ask for.

    It falls at check steps, about one a second; between two of them a call compares three integers. At a check step
    rank 0 decides and publishes, together with the next check step; the others wait for that. They cannot wait for
    each other in a circle: rank 0 comes to a check step once all have done their share of the collectives before it,
    which whoever waits at that step has, and to publish it needs nobody. A wish of another rank is put into the store
    at once, and rank 0 meets it at its next decision.

    Making one is a collective; raises, later: HooksError: the ranks are at different steps. TimeoutError: rank 0
    did not decide. ConnectionError: the store is gone, with the process that served it.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._post = open_post(ranks)
        self._asked = 0  # by this rank, since the last decision
        self._asks = 0  # of this rank so far
        self._wish: tuple[int, Any] = (0, None)  # the highest that rank 0 knows of
        self._answered: dict[int, int] = {}  # how many asks of each rank were read
        self._heard = 0  # asks of all ranks
        self._granted = (0, -1)  # the last decision that was not 0, and its step
        self._checks = 0
        self._next_step = 0
        self.note: Any = None  # of the last decision: JSON that came with the highest wish

    def reach(self, asked: int, *, step: int, steps_to_next: int, note: Any = None) -> int:
        """Every rank calls it at every step; rank 0 decides how many steps go by until the next decision."""
        if self._post is None:
            self.note = note
            return asked
        if asked > self._asked:
            self._ask(self._post, int(asked), step, note)
        if step < self._next_step:
            return 0
        if self._ranks.is_first:
            decision = self._decide(self._post, step, steps_to_next)
        else:
            decision = self._await(self._post, step)
        self._checks += 1
        self._next_step = step + decision["steps"]
        self.note = decision["note"]
        self._asked = 0
        verdict: int = decision["verdict"]
        return verdict

    def close(self, *, timeout_seconds: float) -> None:
        """Rank 0 may serve the store: it waits until the others have read the last decision, or the time is over."""
        if self._post is not None:
            self._post.drain(timeout_seconds)

    def _ask(self, post: Post, asked: int, step: int, note: Any) -> None:
        self._asked = asked
        if self._ranks.is_first:
            self._wish = max(self._wish, (asked, note), key=lambda wish: wish[0])
            return
        self._asks += 1
        ask = {"number": self._asks, "asked": asked, "step": step, "note": note}
        post.write(f"ask/{self._ranks.rank}", json.dumps(ask).encode())
        post.count("asks", 1)

    def _decide(self, post: Post, step: int, steps_to_next: int) -> Mapping[str, Any]:
        self._hear(post)
        verdict, note = self._wish
        self._wish = (0, None)
        if verdict:
            self._granted = (verdict, step)
        decision = {"step": step, "steps": max(1, steps_to_next), "verdict": verdict, "note": note}
        post.publish(f"check/{self._checks}", json.dumps(decision).encode())
        return decision

    def _hear(self, post: Post) -> None:
        """The others' wishes; one that a decision has met since it was uttered is not met twice."""
        count = post.count("asks", 0)
        if count == self._heard:
            return
        self._heard = count
        for rank in range(1, self._ranks.world_size):
            raw = post.read(f"ask/{rank}")
            ask = json.loads(raw) if raw is not None else {"number": 0}
            if ask["number"] <= self._answered.get(rank, 0):
                continue
            self._answered[rank] = ask["number"]
            granted, at_step = self._granted
            if ask["step"] > at_step or ask["asked"] > granted:
                self._wish = max(self._wish, (ask["asked"], ask["note"]), key=lambda wish: wish[0])

    def _await(self, post: Post, step: int) -> Mapping[str, Any]:
        raw = post.wait(f"check/{self._checks}", timeout_seconds=DECISION_SECONDS)
        if raw is None:
            raise TimeoutError(
                f"rank {self._ranks.rank} has waited {DECISION_SECONDS:.0f} s at step {step:,} for rank 0 to come to "
                "that step; it hangs, or does something long that the others do not do"
            )
        decision: dict[str, Any] = json.loads(raw)
        if decision["step"] != step:
            raise HooksError(
                f"rank {self._ranks.rank} is at step {step:,}, rank 0 was at step {decision['step']:,} when it decided "
                "for all; give every rank the same number of steps (as many batches, session(…) called alike)"
            )
        return decision


class Board:
    """Where background threads leave data for the other ranks, several MB if need be. A key is used once.

    Making one is a collective. Every method raises ConnectionError where the store is gone.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._post = open_post(ranks)
        self._own: dict[str, bytes] = {}  # rank 0's parts need no store
        self._last = ("", b"")  # announcement that was read

    def deliver(self, key: str, data: bytes) -> None:
        """This rank's part of what rank 0 collects."""
        if self._post is None or self._ranks.is_first:
            self._own[key] = data
        else:
            self._post.write(_part(key, self._ranks.rank), data)

    def collect(
        self, key: str, *, timeout_seconds: float, cancelled: Callable[[], bool] = lambda: False
    ) -> list[bytes]:
        """On rank 0: what all ranks delivered, in order of rank.

        Raises: TimeoutError: it names those that did not. InterruptedError: it was cancelled.
        """
        for _ in looks(timeout_seconds):
            if self._has_all(key):
                return [self._own.pop(key), *self._fetched(key)]
            if cancelled():
                self._forget(key)
                raise InterruptedError(f"{key} is not wanted any more")
        missing = self._forget(key)
        ranks = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
        raise TimeoutError(f"{ranks} did not deliver {key} within {timeout_seconds:.0f} s")

    def announce(self, key: str, data: bytes) -> None:
        """On rank 0: what the others may `peek` at."""
        self._last = (key, data)
        if self._post is not None:
            self._post.publish(key, data)

    def peek(self, key: str) -> bytes | None:
        """The announcement, or `None` so far. Of several, only the newest may be asked for again."""
        if self._last[0] != key and self._post is not None and not self._ranks.is_first:
            data = self._post.take(key)
            if data is not None:
                self._last = (key, data)
        return self._last[1] if self._last[0] == key else None

    def wait(self, key: str, *, timeout_seconds: float) -> bytes:
        """The announcement. Raises: TimeoutError."""
        for _ in looks(timeout_seconds):
            data = self.peek(key)
            if data is not None:
                return data
        raise TimeoutError(f"rank 0 did not announce {key} within {timeout_seconds:.0f} s")

    def close(self, *, timeout_seconds: float) -> None:
        """Rank 0 may serve the store: it waits until the others have read what it announced, or the time is over."""
        if self._post is not None:
            self._post.drain(timeout_seconds)

    def _has_all(self, key: str) -> bool:
        return key in self._own and (self._post is None or self._post.has(self._theirs(key)))

    def _fetched(self, key: str) -> list[bytes]:
        return [] if self._post is None else [self._post.fetch(part) for part in self._theirs(key)]

    def _forget(self, key: str) -> list[int]:
        """Drop what was delivered; the ranks that did not deliver."""
        missing = [0] if self._own.pop(key, None) is None else []
        if self._post is None:
            return missing
        for rank, part in enumerate(self._theirs(key), start=1):
            if self._post.has([part]):
                self._post.fetch(part)
            else:
                missing.append(rank)
        return missing

    def _theirs(self, key: str) -> list[str]:
        return [_part(key, rank) for rank in range(1, self._ranks.world_size)]


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
    """A decision costs more than a step's bookkeeping, so it is taken about once a second."""
    if not step_seconds:
        return 1
    return max(1, min(MAX_STEPS_BETWEEN, int(AGREE_EVERY_SECONDS / step_seconds)))


def _part(key: str, rank: int) -> str:
    return f"{key}/part/{rank}"
