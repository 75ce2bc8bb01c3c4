"""The session's checkpoints in one hand: what a resume finds, what is saved of what, and what is done at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer_hooks.checkpoint import objects as state
from trainer_hooks.checkpoint.certificate import verify_restored
from trainer_hooks.checkpoint.emergency import InFlight, Plan, Situation, decide
from trainer_hooks.checkpoint.fences import Fences
from trainer_hooks.checkpoint.reader import Reader
from trainer_hooks.checkpoint.resharding import OwnTargets, Targets, read_tensors
from trainer_hooks.checkpoint.retention import Retention
from trainer_hooks.checkpoint.saver import MAX_FAILURES_IN_ROW, Costs, Saver, Wanted
from trainer_hooks.checkpoint.store import Loaded, Owner, Store
from trainer_hooks.checkpoint.tiers import Shipper, load_newest
from trainer_hooks.journal import Journal
from trainer_hooks.meter import say
from trainer_hooks.protocol import checkpoint_name
from trainer_hooks.ranks import Board, Ranks
from trainer_hooks.settings import Settings
from trainer_hooks.storage import LocalStorage, Storage

DECIDING_SECONDS = 30.0
PARTING_SECONDS = 5.0
CLOSING_SECONDS = 120.0
"""At the end of a process, for what is still being written; whoever ends it meanwhile loses only that."""


class Keeper:
    """One per rank; all of them call it alike."""

    def __init__(
        self,
        objects: Mapping[str, Any],
        storage: Storage,
        journal: Journal,
        *,
        ranks: Ranks,
        settings: Settings,
        attempt: int,
        slowed_seconds: Callable[[], float],
    ) -> None:
        self._objects = objects
        self._ranks = ranks
        self._settings = settings
        owner = Owner(run_id=settings.run_id, attempt=attempt, world_size=ranks.world_size)
        retention = _retention(settings)
        remote = Store(storage, owner=owner, retention=retention)
        self._tiers = [remote]
        shipper = None
        if settings.local is not None and _is_one_machine(ranks):
            local = Store(LocalStorage(Path(settings.local)), owner=owner, retention=retention)
            self._tiers = [local, remote]
            shipper = Shipper(local, remote)
        self._board = Board(ranks)
        self._saver = Saver(
            self._tiers[0], journal, ranks, settings=settings, shipper=shipper, slowed_seconds=slowed_seconds
        )
        self._shipper = shipper
        self._fences = Fences(objects, self._saver.fence)
        self._found_step: int | None = None

    @property
    def is_saving(self) -> bool:
        return self._saver.current is not None

    @property
    def costs(self) -> Costs | None:
        return self._saver.costs

    @property
    def superseded(self) -> str:
        """Why this attempt must not write any more; empty where it may."""
        return self._saver.superseded

    @property
    def failure(self) -> str:
        """Too many saves in a row have failed: the last one's reason."""
        return self._saver.last_failure if self._saver.failures_in_row >= MAX_FAILURES_IN_ROW else ""

    def progress(self) -> str:
        """For the meter: what is being written, and how fast."""
        save = self._saver.current
        if save is None or not save.total_bytes:
            return ""
        seconds = max(time.monotonic() - save.started, 1e-3)
        return f"saving {save.done_bytes / save.total_bytes:.0%} at {save.done_bytes / seconds / 1e6:,.0f} MB/s"

    def restore(self) -> Loaded | None:
        """Put the newest checkpoint that verifies into the live objects; the same one on every rank.

        Raises: CheckpointsDamaged, CheckpointMismatch. OSError: the storage did not answer.
        """
        loaded = self._load()
        if loaded is None:
            return None
        state.apply(self._objects, loaded.components, checkpoint=loaded.name)
        differing = verify_restored(loaded.manifest, state.capture(self._objects, spent=()))
        for name in differing if loaded.manifest.world_size == 1 else set(differing) - {state.GRADIENTS}:
            say(
                f"spotlaunch: WARNING: {name} does not come back from checkpoint {loaded.name} as it was saved, so "
                f"this training may differ from an undisturbed one; let {name}.load_state_dict() restore all that "
                f"{name}.state_dict() returns"
            )
        self._found_step = loaded.manifest.step
        return loaded

    def has(self, step: int) -> bool:
        """Whether this attempt has saved that step, or is about to."""
        save = self._saver.current
        return self._tiers[0].has(step) or (save is not None and save.wanted.step == step)

    def begin(self, wanted: Wanted) -> None:
        """A save at a safe point. Raises: NotLoadable."""
        components = state.capture(self._objects, spent=self._fences.spent_gradients())
        gradients = frozenset(id(gradient) for gradient in components.get(state.GRADIENTS, {}).values())
        self._saver.begin(wanted, components, replace(self._fences.ownership(), each_ranks_own=gradients))

    def wait(self) -> None:
        """Until the save in flight is over, well or not."""
        self._saver.wait()

    def safe_point(self) -> None:
        """A step is over, and what had to be saved of it was taken."""
        self._fences.safe_point()

    def finish(self, wanted: Wanted, *, tries: int) -> None:
        """Save, and return when the save is durable everywhere, or has failed so many times."""
        for _ in range(tries):
            if not self.has(wanted.step):
                self.begin(wanted)
            self._saver.wait()
            self._saver.wait_shipped()
            if not self._saver.failures_in_row or self.superseded:
                return

    def evacuate(self, wanted: Wanted, *, seconds_left: float | None) -> str:
        """The machine is going: save what there is time for. Rank 0 decides for all; its reason is returned."""
        self._saver.is_urgent = True
        key = f"evacuate/{wanted.step}"
        if self._ranks.is_first:
            action = decide(self._situation(wanted, seconds_left))
            self._board.announce(key, f"{action.plan}\n{action.why}".encode())
        plan, _, why = self._board.wait(key, timeout_seconds=DECIDING_SECONDS).decode().partition("\n")
        match Plan(plan):
            case Plan.NOTHING:
                return why
            case Plan.FINISH:
                self._saver.wait()
            case Plan.NEW:
                self._saver.give_up()
                self.begin(wanted)
            case Plan.FINISH_THEN_NEW | Plan.LOCAL_ONLY:
                self.begin(wanted)
        self._saver.wait()
        if Plan(plan) is not Plan.LOCAL_ONLY:
            self._saver.wait_shipped()
        saved = self._saver.committed_step if Plan(plan) is Plan.LOCAL_ONLY else self._saver.durable_step
        return f"{'nothing' if saved is None else f'step {saved:,}'} is saved; {why}"

    def close(self) -> None:
        """What is in flight is finished. May be repeated."""
        self._saver.close(timeout_seconds=CLOSING_SECONDS)
        self._board.close(timeout_seconds=PARTING_SECONDS)
        self._fences.remove()

    def _load(self) -> Loaded | None:
        if self._ranks.is_first or not self._ranks.can_agree:
            found = load_newest(self._tiers, fetch=self._fetch)
            self._ranks.broadcast((found.tier, found.loaded.name) if found else None)
            return found.loaded if found else None
        told = self._ranks.broadcast(None)
        return None if told is None else self._tiers[told[0]].load(told[1], fetch=self._fetch, is_first=False)

    def _fetch(self, reader: Reader) -> Sequence[Any]:
        manifest = reader.manifest
        state.check(self._objects, manifest.state, checkpoint=checkpoint_name(manifest.step, manifest.attempt))
        targets = Targets({**self._objects, state.GRADIENTS: state.parameters(self._objects)})
        own = OwnTargets(targets, f"{state.GRADIENTS}/", self._ranks, manifest.world_size)
        return read_tensors(reader, manifest.state, manifest.tensors, own)

    def _situation(self, wanted: Wanted, seconds_left: float | None) -> Situation:
        """With a local disk, what counts is the run folder behind it: a machine takes its disk along."""
        save, costs, shipper = self._saver.current, self._saver.costs, self._shipper
        speed = costs.bytes_per_second if costs else None
        flying = InFlight(step=save.wanted.step, bytes_left=save.left_bytes) if save is not None else None
        if shipper is not None and shipper.cargo is not None:
            flying = InFlight(step=shipper.cargo.manifest.step, bytes_left=shipper.cargo.left_bytes)
        return Situation(
            step=wanted.step,
            saved_step=max((n for n in (self._found_step, self._saver.durable_step) if n is not None), default=None),
            seconds_left=seconds_left,
            new_bytes=costs.written_bytes if costs else 0,
            remote_speed=speed if shipper is None else shipper.bytes_per_second,
            in_flight=flying,
            capture_seconds=costs.stood_seconds if costs else 0.0,
            local_speed=speed if shipper is not None else None,
            local_survives=self._settings.local_survives,
        )


def _retention(settings: Settings) -> Retention:
    best = settings.keep_best
    if best is None:
        return Retention(keep=settings.keep, every_steps=settings.keep_every_steps)
    return Retention(
        keep=settings.keep,
        every_steps=settings.keep_every_steps,
        best=best.metric,
        best_mode=best.mode,
        best_keep=best.count,
    )


def _is_one_machine(ranks: Ranks) -> bool:
    """A disk of one machine is no place for what several hold: a resume on other ones would find a part of it."""
    here = os.environ.get("LOCAL_WORLD_SIZE", "")  # torchrun sets it
    return ranks.world_size == 1 or here == str(ranks.world_size)
