"""What starts machines: this computer, and SkyPilot; what each is asked for, and the supervisor that asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.adapters.system_clock import SystemClock
from launcher.core.prices.pricing import LOCAL
from launcher.core.runs.state import Attempt, RunState, job_name, run_uri_of
from launcher.errors import InputError, NothingFeasible, Problem

if TYPE_CHECKING:
    from launcher.adapters.local_backend import LocalBackend
    from launcher.adapters.local_market import Market
    from launcher.adapters.skypilot_backend import SkyPilotBackend
    from launcher.adapters.skypilot_task import Site
    from launcher.core.offers import Offer
    from launcher.core.prices.options import Option
    from launcher.core.spec import RunSpec
    from launcher.ports import Backend, LaunchRequest
    from launcher.supervisor import Supervisor
    from launcher.wiring import Wiring


def backend(wiring: Wiring, state: RunState) -> Backend:
    """This machine, and SkyPilot beside it for a run that may go elsewhere."""
    from launcher.adapters.fleet import Fleet

    local = _local_backend(wiring, state, market=wiring.market(state.spec))
    is_local = state.spec.market is not None or not wiring.has_skypilot or state.spec.providers == [LOCAL]
    return local if is_local else Fleet(local, _clusters(wiring))


def _local_backend(wiring: Wiring, state: RunState, *, market: Market | None) -> LocalBackend:
    from launcher.adapters.local_backend import LocalBackend

    folder = wiring.settings.state_folder / "machines"
    return LocalBackend(folder, clock=wiring.run_clock(state), market=market)


def _clusters(wiring: Wiring) -> SkyPilotBackend:
    from launcher.adapters.aws_reservations import demand_room
    from launcher.adapters.skypilot_backend import SkyPilotBackend

    return SkyPilotBackend(
        wiring.settings.state_folder / "clusters",
        site=lambda request: _site(wiring, request.placement.offer),
        clock=SystemClock(),
        demand_room=demand_room,
        provision_seconds=wiring.settings.provision_seconds,
    )


def _site(wiring: Wiring, offer: Offer) -> Site:
    """What this machine and the user's inventory add to a request for `offer`."""
    from launcher.adapters.skypilot_task import Site
    from launcher.adapters.skypilot_zones import aws_zone_names
    from launcher.core.prices.inventory import pool_of, reservation_config

    hooks = find_spec("trainer_hooks")
    assert hooks is not None
    assert hooks.origin is not None  # it is in the same distribution
    return Site(
        hooks=str(Path(hooks.origin).parent),
        pool=pool_of(wiring.terms, offer),
        config=reservation_config(wiring.terms, offer),
        zones=aws_zone_names(wiring.settings.catalogs) if offer.provider == "aws" else {},
    )


def _is_here(offer: Offer) -> bool:
    return offer.provider == LOCAL or offer.simulated


def demand_runnable(wiring: Wiring, spec: RunSpec, offer: Offer, *, checking: Callable[[], None]) -> None:
    """Let SkyPilot try the credentials for the place, unless it has; `checking` is called before that takes long.

    Raises: NothingFeasible: nobody here can start a machine there. InputError: it could not save anything.
    """
    if spec.market is not None or offer.provider == LOCAL:
        return
    if not wiring.has_skypilot:
        raise NothingFeasible(
            f'machines of {offer.provider} are started through SkyPilot: pip install "spotlaunch[sky]" '
            f'"skypilot[{offer.provider}]"; --simulate SEED runs it here against a drawn spot market'
        )
    if not _reaches_run_folder(spec, offer):
        message = f"machines of {offer.provider} cannot reach run folders on this computer's disk"
        fix = "write checkpoint: {uri: s3://bucket/folder} in train.yaml, or runs_uri in the settings"
        raise InputError([Problem("L141", message, "", fix)])
    from launcher.adapters.skypilot_clouds import read_clouds

    clouds = read_clouds(wiring.settings.clouds_record)
    if clouds is None or clouds.barred(offer.provider):
        checking()
        clouds = wiring.check_clouds()
    if barred := clouds.barred(offer.provider):
        raise NothingFeasible(barred)


def _can_start(wiring: Wiring, spec: RunSpec, offer: Offer) -> bool:
    if offer.provider == LOCAL and wiring.moved:
        return False  # this machine is not the one that the user owns
    if spec.market is not None or offer.provider == LOCAL:
        return True
    return wiring.has_skypilot and _reaches_run_folder(spec, offer)


def _reaches_run_folder(spec: RunSpec, offer: Offer) -> bool:
    """Whether the machine does: in a bucket, or on a disk that a Slurm cluster's nodes share."""
    from launcher.core.prices.traffic import checkpoint_home

    home = checkpoint_home(spec, offer)
    return home is not None and (offer.provider == "slurm" or ("://" in home and not home.startswith("file:")))


def request_document(wiring: Wiring, state: RunState, attempt: Attempt) -> dict[str, Any]:
    """What a backend is asked for, word by word: the SkyPilot task, or the orders of a machine of this computer."""
    from launcher.adapters.skypilot_task import skypilot_task

    offer = attempt.placement.offer
    request = _request(wiring, state, attempt, time_scale=state.submitted.time_scale)
    if not _is_here(offer):
        return skypilot_task(request, _site(wiring, offer))
    env = dict(sorted(request.env.items()))
    asked = {"setup": request.setup, "run": request.run, "workdir": request.workdir, "envs": env}
    return {"name": request.job, "place": offer.key} | {key: value for key, value in asked.items() if value}


def _request(wiring: Wiring, state: RunState, attempt: Attempt, *, time_scale: float) -> LaunchRequest:
    from launcher.adapters.attempt_env import attempt_environment
    from launcher.core.runs.machine import LaunchRequest
    from launcher.core.runs.state import spent_usd

    spec, spent = state.spec, spent_usd(state, attempt.requested_at)
    hourly = attempt.placement.usd_per_hour
    return LaunchRequest(
        job=job_name(state.run_id, attempt.number),
        placement=attempt.placement,
        setup=spec.setup,
        run=spec.run,
        workdir=str(wiring.moved.workdir) if wiring.moved else state.submitted.workdir,
        env=attempt_environment(
            spec,
            run_id=state.run_id,
            attempt=attempt.number,
            run_uri=run_uri_of(state, attempt.number),
            placement=attempt.placement,
            spent_usd=spent,
            cap_usd=state.approved_usd,
            time_scale=time_scale,
            relieves=attempt.relieves,
        ),
        tags=spec.tags,
        paid_seconds=float((state.approved_usd - spent) / hourly) * 3600 / time_scale,
    )


def output_paths(wiring: Wiring, state: RunState) -> dict[int, Path]:
    """Files with what the run's attempts printed here, by attempt, oldest first."""
    local, clusters = _local_backend(wiring, state, market=None), _clusters(wiring)  # a path depends on no market
    sides = {a.number: local if _is_here(a.placement.offer) else clusters for a in state.attempts}
    return {number: side.output_path(job_name(state.run_id, number)) for number, side in sides.items()}


def supervisor(wiring: Wiring, run_id: str) -> Supervisor:
    """Of a run in the ledger, under the terms of its submit. Raises: NoSuchRun."""
    from launcher.adapters.checkpoint_store import CheckpointFolder
    from launcher.supervisor import Supervisor

    state = wiring.state(run_id)
    wiring = wiring.of(state)
    clock = wiring.run_clock(state)
    return Supervisor(
        run_id=run_id,
        ledger=wiring.ledger,
        backend=backend(wiring, state),
        journal=cache(lambda uri: wiring.journal(state, uri)),
        replicate=lambda old, new: CheckpointFolder(old).replicate(CheckpointFolder(new)),
        run_uri=lambda state, option: wiring.run_uri(state.spec, run_id, option.placement.offer),
        clock=clock,
        rules=wiring.rules(state.spec),
        options=lambda state, _now: _options(wiring, state, clock),
        request=lambda state, attempt: _request(wiring, state, attempt, time_scale=clock.scale),
    )


def _options(wiring: Wiring, state: RunState, clock: SystemClock) -> Sequence[Option]:
    """The run's places at today's prices, at the pace that is measured, or that its user agreed to."""
    from launcher.core.estimates.survey import survey
    from launcher.core.estimates.workload import Measured
    from launcher.core.policy.standing import step_seconds

    spec, pace = state.spec, state.submitted.pace
    known = {"step_seconds": step_seconds(state), "setup_seconds": pace.setup_seconds}
    workload = spec.workload.model_copy(update=known)
    checkpoint = spec.checkpoint.model_copy(update={"save_seconds": pace.save_seconds})
    agreed = spec.model_copy(update={"workload": workload, "checkpoint": checkpoint})
    newest = state.checkpoint
    agreed_saves = Measured(
        durable_seconds=pace.closing_save_seconds,
        checkpoint_gb=newest.bytes / 1e9 if newest else pace.checkpoint_gb,
    )
    lying = [uri.removesuffix(f"/{state.run_id}") for uri in reversed(newest.run_uris)] if newest else []
    candidates, _ = survey(agreed, wiring.book(spec, clock), agreed_saves, now=clock.now(), lying=lying)
    return [c.option for c in candidates if _can_start(wiring, spec, c.option.placement.offer)]
