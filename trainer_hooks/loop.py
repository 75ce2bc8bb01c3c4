"""Where a training stands in its data, and how to stand there again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from typing import Any

from trainer_hooks.checkpoint import rng
from trainer_hooks.errors import CheckpointMismatch
from trainer_hooks.meter import say
from trainer_hooks.notice.signals import CalmWorker
from trainer_hooks.ranks import Ranks


@dataclass(slots=True, kw_only=True)
class Cursor:
    """Counted up at every safe point, kept in the manifest.

    `loop` is the number of the `session(…)` call that is running, or, between two, that comes next.
    """

    loop: int = 0
    is_inside: bool = False
    epoch: int = 0  # of this loop
    batch: int = 0  # of this epoch: how many are finished, on each of `world_size` ranks
    epoch_batches: int | None = None  # how many this epoch has on each, if the loader knows
    world_size: int = 1
    loop_steps: int = 0
    passes: int = 0  # over any data, begun before this epoch, in all loops: what samplers are told

    def open_epoch(self, loader: Any, *, world_size: int) -> None:
        """On another number of ranks, `batch` becomes what is about the same part of the data, rather less than more.

        The epoch's length says how the script deals it out now: in shorter shares, or in smaller batches.
        """
        epoch_batches = _length(loader)
        if self.world_size != world_size:
            part = Fraction(self.world_size, world_size)
            if epoch_batches is not None and self.epoch_batches:
                part = Fraction(epoch_batches, self.epoch_batches)
            self.batch = int(self.batch * part)
        self.epoch_batches, self.world_size = epoch_batches, world_size

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Cursor:
        return cls(**{field.name: raw[field.name] for field in fields(cls) if field.name in raw})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one loop; one of the two is set."""

    steps: int | None
    epochs: int | None

    def are_reached(self, cursor: Cursor) -> bool:
        return self.is_last_step(cursor) or (self.epochs is not None and cursor.epoch >= self.epochs)

    def is_last_step(self, cursor: Cursor) -> bool:
        """Known only of a loop that counts steps: how long an epoch is shows when it is over."""
        return self.steps is not None and cursor.loop_steps >= self.steps


def limits(steps: int | None, epochs: int | None) -> Limits:
    """Raises: ValueError: both are given, or one is less than 1."""
    if steps is not None and epochs is not None:
        raise ValueError(f"steps={steps} and epochs={epochs} are both given; give one of them")
    for name, value in (("steps", steps), ("epochs", epochs)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; give 1 or more")
    return Limits(steps=steps, epochs=1 if steps is None and epochs is None else epochs)


@dataclass(frozen=True, slots=True)
class Place:
    """Of one rank, at a safe point: what `Cursor` cannot say in numbers. Kept in the checkpoint as plain types."""

    now: Mapping[str, Any]  # random state
    epoch_start: Mapping[str, Any] | None  # before iter(loader); None outside an epoch
    loader: Mapping[str, Any] | None  # state of a loader that has one

    def to_plain(self) -> dict[str, Any]:
        return {"now": self.now, "epoch_start": self.epoch_start, "loader": self.loader}

    @classmethod
    def from_plain(cls, raw: Mapping[str, Any]) -> Place:
        return cls(raw["now"], raw.get("epoch_start"), raw.get("loader"))


class Batches:
    """One epoch's iterator, opened at its beginning or where an earlier attempt left it."""

    def __init__(self, loader: Any, cursor: Cursor, place: Place | None) -> None:
        self._loader = loader
        _set_epoch(loader, cursor.passes)
        if place is None or place.epoch_start is None:
            if place is not None:
                _restore_random(place, loader)
            self._epoch_start: Mapping[str, Any] = rng.capture(loader)
            self._iterator: Iterator[Any] = iter(loader)
            return
        self._epoch_start = place.epoch_start
        self._iterator = self._reopen(cursor, place)

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Any:
        return next(self._iterator)

    def place(self) -> Place:
        """Where we are now: to be taken at a safe point."""
        state = self._loader.state_dict() if _is_stateful(self._loader) else None
        return Place(rng.capture(self._loader), self._epoch_start, state)

    def _reopen(self, cursor: Cursor, place: Place) -> Iterator[Any]:
        """The order matters: `iter()` draws seeds from the random state of the epoch's start, as it did then;
        skipped batches draw from it, too; only then is it set to what it was at the safe point.
        """
        rng.restore(self._epoch_start, self._loader)
        knows_its_place = place.loader is not None and _is_stateful(self._loader)
        if knows_its_place:
            self._loader.load_state_dict(place.loader)
        iterator: Iterator[Any] = iter(self._loader)
        for done in range(0 if knows_its_place else cursor.batch):
            if next(iterator, _END) is _END:
                raise CheckpointMismatch(
                    f"the loader ends after {done} batches, the checkpoint was made after {cursor.batch} of this "
                    "epoch. Give it the same data and batch size, or start over in another run folder (run_uri=…)"
                )
        _restore_random(place, self._loader)
        return iterator


_END = object()


def _restore_random(place: Place, loader: Any) -> None:
    """Set the random state of the safe point, and see that it is set: the last part of the checkpoint's certificate."""
    rng.restore(place.now, loader)
    if lacking := rng.differing(place.now, loader):
        say(
            f"spotlaunch: WARNING: the random state of {', '.join(lacking)} does not come back as it was saved, so "
            "this training may differ from an undisturbed one; give the loader the same generators, and the process "
            "as many GPUs"
        )


class Pace:
    """Mean duration of this attempt's steps; those beside a save are counted apart, and pauses not at all."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._seconds = self._beside_seconds = 0.0
        self._steps = self._beside_steps = 0
        self._is_beside = False  # a save was being written when the step began

    def rest(self) -> None:
        """What was before now is not part of the next step."""
        self._since = time.monotonic()

    def begin_save(self) -> None:
        """Steps beside the save that begins now are counted from here."""
        self._beside_seconds, self._beside_steps, self._is_beside = 0.0, 0, True

    def tick(self, now: float, *, is_saving: bool) -> None:
        """A step ended."""
        if self._since is None:
            pass
        elif self._is_beside:
            self._beside_seconds += now - self._since
            self._beside_steps += 1
        else:
            self._seconds += now - self._since
            self._steps += 1
        self._since, self._is_beside = now, is_saving

    @property
    def step_seconds(self) -> float | None:
        if self._steps:
            return self._seconds / self._steps
        return self._beside_seconds / self._beside_steps if self._beside_steps else None

    def slowed_seconds(self) -> float:
        """By how much the steps beside the newest save were longer than others; one that goes on counts so far."""
        if not self._steps:
            return 0.0
        usual = self._seconds / self._steps
        going_on = time.monotonic() - self._since if self._is_beside and self._since is not None else 0.0
        return max(0.0, self._beside_seconds - self._beside_steps * usual) + max(0.0, going_on - usual)


def calm_workers(loader: Any) -> None:
    """Workers of a DataLoader must outlive a signal that goes to every process of the job."""
    if getattr(loader, "num_workers", 0) > 0 and hasattr(loader, "worker_init_fn"):
        then = loader.worker_init_fn
        if not isinstance(then, CalmWorker):
            loader.worker_init_fn = CalmWorker(then)


def warn_of_persistent_workers(loader: Any, cursor: Cursor, place: Place | None) -> None:
    """Their random state runs on from epoch to epoch, and dies with them."""
    if place is not None and cursor.passes > 0 and getattr(loader, "persistent_workers", False):
        say(
            "spotlaunch: this loader has persistent_workers=True: what its dataset draws at random may differ from "
            "an undisturbed run after this resume; set it to False if that matters"
        )


def place_of_rank(places: Any, ranks: Ranks) -> Place:
    """Raises: CheckpointMismatch: the checkpoint does not say where any rank was."""
    try:
        of_ranks = [Place.from_plain(place) for place in places]
        rank = ranks.rank if ranks.can_agree else 0
        if len(of_ranks) == ranks.group_size:
            return of_ranks[rank]
        place = _place_among_others(of_ranks, rank)
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise CheckpointMismatch("the checkpoint was not written by a session; start over in another folder") from error
    if ranks.is_first:
        say(
            f"spotlaunch: the checkpoint is of {len(of_ranks)} ranks, there are {ranks.group_size} now: the training "
            "goes on after as much of the data, but random numbers differ from an undisturbed run"
        )
    return place


def _place_among_others(of_ranks: Sequence[Place], rank: int) -> Place:
    """Without a loader's own state: it is of a share of the data that is dealt out anew now.

    A rank that was not there draws random numbers of its own, unless all drew the same ones.
    """
    if rank < len(of_ranks):
        return replace(of_ranks[rank], loader=None)
    first, others = of_ranks[0], of_ranks[1:]
    if others and all(bool((one.now["torch"] == first.now["torch"]).all()) for one in others):
        return replace(first, loader=None)
    start = first.epoch_start
    return Place({**first.now, "branch": rank}, None if start is None else {**start, "branch": rank}, None)


def _length(loader: Any) -> int | None:
    """Not a DataLoader's own: once asked for it, that of an IterableDataset complains where it was not right."""
    owners = (getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None), loader)
    try:
        return len(next(owner for owner in owners if owner is not None))
    except (TypeError, NotImplementedError):
        return None


def _is_stateful(loader: Any) -> bool:
    return callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))


def _set_epoch(loader: Any, epoch: int) -> None:
    """Samplers that shuffle by epoch number, as torch's DistributedSampler does, have to be told."""
    for owner in (getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
        set_epoch = getattr(owner, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)
