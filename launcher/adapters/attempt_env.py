"""The launcher's half of the contract that travels in the environment: one attempt's `LAUNCH_*` variables."""

from __future__ import annotations

from decimal import Decimal

from launcher.adapters.local_job import JOB_VARIABLE
from launcher.core.estimates.saving import interruptions_per_hour
from launcher.core.offers import Placement
from launcher.core.runs.state import job_name
from launcher.core.spec import RunSpec
from trainer_hooks.protocol import CAP_SECONDS, Best, Contract

_METADATA_SERVICES = {"aws": "ec2", "gcp": "gce", "azure": "azure"}


def attempt_environment(  # noqa: PLR0913  # one argument for each thing that only the caller knows of the attempt
    spec: RunSpec,
    *,
    run_id: str,
    attempt: int,
    run_uri: str,
    placement: Placement,
    spent_usd: Decimal,
    cap_usd: Decimal | None,
    time_scale: float,
    relieves: int | None = None,
) -> dict[str, str]:
    """The spec's variables, and over them what the trainer is told by the launcher.

    A trainer lives in real time: `time_scale` market seconds pass in each of its seconds, so it pays that
    many times the hourly price, is taken that many times as often, and has that many times less warning. What
    it keeps in hand before its cap is made up for, so that in market time it is the same.
    """
    hourly = placement.usd_per_hour
    in_hand = hourly * Decimal(str((time_scale - 1) * CAP_SECONDS)) / 3600
    saving = spec.checkpoint
    best = saving.keep_best
    contract = Contract(
        run_id=run_id,
        attempt=attempt,
        run_uri=run_uri,
        checkpoint_every_steps=saving.every_steps,
        checkpoint_keep=saving.keep,
        checkpoint_keep_every_steps=saving.keep_every_steps,
        checkpoint_keep_best=None if best is None else Best(metric=best.metric, mode=best.mode, count=best.count),
        checkpoint_snapshot=saving.snapshot,
        checkpoint_audit=saving.audit,
        checkpoint_local=saving.local,
        checkpoint_local_survives=saving.local_survives,
        checkpoint_max_loss_usd=saving.max_loss,
        notice=notice_sources(placement.offer.provider),
        notice_seconds=placement.offer.notice_seconds / time_scale,
        price_usd_per_hour=hourly * Decimal(str(time_scale)),
        interruptions_per_hour=interruptions_per_hour(placement) * time_scale,
        spent_usd=spent_usd,
        cap_usd=None if cap_usd is None else cap_usd + in_hand,
        relieves=relieves,
    )
    return {**spec.env, **contract.to_environment(), JOB_VARIABLE: job_name(run_id, attempt)}


def notice_sources(provider: str) -> tuple[str, ...]:
    """Where a trainer listens for a preemption: the provider's metadata service, and SIGTERM everywhere."""
    service = _METADATA_SERVICES.get(provider)
    return (service, "signal") if service else ("signal",)
