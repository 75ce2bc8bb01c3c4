"""The session's checkpoints in one hand: what a resume finds, what is saved of what, and what is done at the end."""

from __future__ import annotations

import math
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
from trainer_hooks.checkpoint.save import Costs, Save, Wanted
from trainer_hooks.checkpoint.saver import Saver
from trainer_hooks.checkpoint.store import Loaded, Owner, Store, load_newest_of
from trainer_hooks.checkpoint.tiers import Shipper
from trainer_hooks.errors import Damaged
from trainer_hooks.journal import Journal
from trainer_hooks.meter import say
from trainer_hooks.protocol import checkpoint_name
from trainer_hooks.ranks import Board, Ranks
from trainer_hooks.rendezvous import PARTING_SECONDS
from trainer_hooks.schedule import SaveCost, is_due, least_loss_seconds
from trainer_hooks.settings import Settings
from trainer_hooks.storage import LocalStorage, Storage

DECIDING_SECONDS = 30.0
CLOSING_SECONDS = 120.0
"""At the end of a process, for what is still being written; whoever ends it meanwhile loses only that."""
FAILED_SECONDS = 10.0
"""The same where a group's training failed: a rank that is dead will never deliver its part."""


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
        if settings.local is not None and not _is_one_machine(ranks):
            say("spotlaunch: checkpoint.local is for trainings on one machine; saving to the run folder only")
        elif settings.local is not None:
            local = Store(LocalStorage(Path(settings.local)), owner=owner, retention=retention)
            self._tiers = [local, remote]
            shipper = Shipper(local, remote)
        self._board = Board(ranks)
        self._saver = Saver(
            self._tiers[0], journal, ranks, settings=settings, shipper=shipper, slowed_seconds=slowed_seconds
        )
        self._shipper = shipper
        self._fences = Fences(objects, self._saver.fence)
        self._slowed_seconds = slowed_seconds
        self._found_bytes = 0
        self._has_told_of_loss = False

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
        return self._saver.failure

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
        found = self._load()
        if found is None:
            return None
        tier, loaded = found
        state.apply(self._objects, loaded.components, checkpoint=loaded.name)
        differing = verify_restored(loaded.manifest, state.capture(self._objects, spent=()))
        for name in differing if loaded.manifest.world_size == 1 else set(differing) - {state.GRADIENTS}:
            say(
                f"spotlaunch: WARNING: {name} does not come back from checkpoint {loaded.name} as it was saved, so "
                f"this training may differ from an undisturbed one; let {name}.load_state_dict() restore all that "
                f"{name}.state_dict() returns"
            )
        self._found_bytes = loaded.manifest.bytes
        self._bring_found(loaded, tier)
        if loaded.manifest.attempt == self._tiers[0].owner.attempt:
            self._saver.committed_step = loaded.manifest.step
        return loaded

    def has(self, step: int) -> bool:
        """Whether this attempt has saved that step, or is about to. All ranks have the same answer."""
        save = self._saver.current
        return self._saver.committed_step == step or (save is not None and save.wanted.step == step)

    def is_due(self, steps: int, *, step_seconds: float) -> bool:
        """Whether so many steps since the last save began call for the next one. Rank 0's to say."""
        cost, stakes = self._save_cost(), self._settings.stakes
        if cost is not None and not self._has_told_of_loss:
            self._tell_of_loss(least_loss_seconds(step_seconds=step_seconds, cost=cost))
        return is_due(self._settings.every, steps=steps, step_seconds=step_seconds, cost=cost, stakes=stakes)

    def begin(self, wanted: Wanted) -> None:
        """A save at a safe point. Raises: NotLoadable."""
        components = state.capture(self._objects, spent=self._fences.spent_gradients())
        gradients = frozenset(id(gradient) for gradient in components.get(state.GRADIENTS, {}).values())
        self._saver.begin(wanted, components, replace(self._fences.ownership(), each_ranks_own=gradients))

    def wait(self) -> None:
        """Until the save in flight is over, well or not, so that another one may begin."""
        self._saver.wait_for_turn()

    def safe_point(self) -> None:
        """A step is over, and what had to be saved of it was taken."""
        self._fences.safe_point()

    def finish(self, wanted: Wanted, *, tries: int) -> None:
        """Save, and return when the save is durable everywhere, or has failed so many times."""
        for _ in range(tries):
            self._saver.wait()  # whether one in flight fails shows on each rank at another moment
            self._begin_or_ship(wanted)
            self._saver.wait()
            self._saver.wait_shipped()
            if self._saver.is_settled or self.superseded:
                return

    def hurry(self) -> None:
        """A notice was heard: from now on nothing is removed, which would only cost time."""
        self._saver.is_urgent = True

    def evacuate(self, wanted: Wanted, *, seconds_left: float | None) -> str:
        """The machine is going: save what there is time for. Rank 0 decides for all; its reason is returned."""
        self.hurry()
        key = f"evacuate/{wanted.step}"
        if self._ranks.is_first:
            action = decide(self._situation(wanted, seconds_left))
            self._board.announce(key, f"{action.plan}\n{action.why}".encode())
        plan, _, why = self._board.wait(key, timeout_seconds=DECIDING_SECONDS).decode().partition("\n")
        match Plan(plan):
            case Plan.NOTHING:
                return why
            case Plan.FINISH:
                pass
            case Plan.NEW:
                self._saver.give_up()
                self._saver.wait()
                self._begin_or_ship(wanted)
            case Plan.FINISH_THEN_NEW | Plan.LOCAL_ONLY:
                self._saver.wait()
                self._begin_or_ship(wanted)
        self._saver.wait()
        if Plan(plan) is Plan.LOCAL_ONLY:
            self._saver.give_up()  # whoever finds that disk ships it
        else:
            self._saver.wait_shipped()
        saved = self._saver.committed_step if Plan(plan) is Plan.LOCAL_ONLY else self._saver.durable_step
        return f"{'nothing' if saved is None else f'step {saved:,}'} is saved; {why}"

    def close(self, *, has_failed: bool = False) -> None:
        """What is in flight is finished. May be repeated."""
        is_alone = not self._ranks.can_agree
        self._saver.close(timeout_seconds=CLOSING_SECONDS if is_alone or not has_failed else FAILED_SECONDS)
        self._board.close(timeout_seconds=PARTING_SECONDS)
        self._fences.remove()

    def _save_cost(self) -> SaveCost | None:
        """Of the last save, by the training time that it took and not by how long it was written."""
        costs, shipper = self._saver.costs, self._shipper
        if costs is None:
            return None
        safe_seconds = costs.durable_seconds
        if shipper is not None and shipper.bytes_per_second and not self._settings.local_survives:
            safe_seconds += costs.written_bytes / shipper.bytes_per_second
        return SaveCost(
            lost_seconds=costs.lost_seconds(self._slowed_seconds()),
            durable_seconds=costs.durable_seconds,
            safe_seconds=safe_seconds,
        )

    def _tell_of_loss(self, least_seconds: float) -> None:
        """Once, where the money that may be lost does not last for a step and a save."""
        covered, hourly = self._settings.stakes.max_loss_seconds, self._settings.price.usd_per_hour
        if least_seconds <= covered or hourly is None:
            return
        self._has_told_of_loss = True
        asked_usd, least_usd = (float(hourly) * seconds / 3600 for seconds in (covered, least_seconds))
        say(
            f"spotlaunch: WARNING: checkpoint.max_loss is ${asked_usd:,.2f} and cannot be kept: as steps and saves are "
            f"now, an interruption may cost ${math.ceil(least_usd * 100) / 100:,.2f} of machine time; save to a faster "
            "place or allow more"
        )

    def _begin_or_ship(self, wanted: Wanted) -> None:
        """What is committed on the local disk need not be written again. No save is in flight."""
        if self.has(wanted.step):
            self._saver.ship_again()
        else:
            self.begin(wanted)

    def _load(self) -> tuple[int, Loaded] | None:
        """What to go on from, and its tier."""
        if self._ranks.is_first or not self._ranks.can_agree:
            found = load_newest_of(self._tiers, fetch=self._fetch)
            self._ranks.broadcast((found[0], found[1].name) if found else None)
            return found
        told = self._ranks.broadcast(None)
        if told is None:
            return None
        return told[0], self._tiers[told[0]].load(told[1], fetch=self._fetch, is_first=False)

    def _bring_found(self, loaded: Loaded, tier: int) -> None:
        """What an earlier attempt left on the local disk only would be lost with this machine."""
        if tier == len(self._tiers) - 1:
            self._saver.durable_step = loaded.manifest.step
        elif self._ranks.is_first:
            try:
                self._tiers[-1].manifest(loaded.name)
                self._saver.durable_step = loaded.manifest.step
            except (OSError, Damaged):
                self._saver.ship_found(loaded.manifest)

    def _fetch(self, reader: Reader) -> Sequence[Any]:
        manifest = reader.manifest
        state.check(self._objects, manifest.state, checkpoint=checkpoint_name(manifest.step, manifest.attempt))
        targets = Targets({**self._objects, state.GRADIENTS: state.parameters(self._objects)})
        own = OwnTargets(targets, f"{state.GRADIENTS}/", self._ranks, manifest.world_size)
        return read_tensors(reader, manifest.state, manifest.tensors, own)

    def _situation(self, wanted: Wanted, seconds_left: float | None) -> Situation:
        """With a local disk, what counts is the run folder behind it: a machine takes its disk along."""
        costs, shipper = self._saver.costs, self._shipper
        speed = costs.bytes_per_second if costs else None
        return Situation(
            step=wanted.step,
            saved_step=self._saver.durable_step,
            seconds_left=seconds_left,
            new_bytes=costs.written_bytes if costs else self._found_bytes,
            remote_speed=speed if shipper is None else shipper.bytes_per_second,
            in_flight=self._in_flight(),
            capture_seconds=costs.capture_seconds if costs else 0.0,
            local_speed=speed if shipper is not None else None,
            local_survives=self._settings.local_survives,
        )

    def _in_flight(self) -> InFlight | None:
        """On its way to the run folder, and the bytes that are still to be written there."""
        cargo = self._shipper.cargo if self._shipper is not None else None
        if cargo is not None:
            return InFlight(step=cargo.manifest.step, bytes_left=cargo.left_bytes)
        save = self._saver.current
        if save is None:
            return None
        return InFlight(step=save.wanted.step, bytes_left=self._left_bytes(save))

    def _left_bytes(self, save: Save) -> int:
        """It will write about as much as the one before; what is known already goes by in no time."""
        usual = self._saver.costs.written_bytes if self._saver.costs else save.total_bytes
        if self._shipper is not None:
            return usual
        left = usual - save.written_bytes
        return min(save.left_bytes, left) if left > 0 else save.left_bytes


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
