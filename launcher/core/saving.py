"""What checkpoints cost a run: how long a save takes, how often it is made, how large it is, what keeping it costs."""

from __future__ import annotations

import math
from decimal import Decimal

from launcher.core.gravity import Tariffs, store_of
from launcher.core.offers import Offer
from launcher.core.options import Option
from launcher.core.pricing import LOCAL
from launcher.core.spec import RunSpec
from launcher.core.workload import Measured

# Nothing measured: an object store through one machine's network. Local disks wrote 1 to 4 GB/s.
WRITE_GB_PER_SECOND = 0.5
# One copy of the state at 20 GB/s: what a save costs a training that goes on while it is written.
LOST_SECONDS_PER_GB = 0.05
BYTES_PER_PARAM = 14  # bf16 weights, fp32 master weights and two Adam moments
CHECKPOINT_GB = 1.0  # where nothing is known
STORAGE_USD_PER_GB_MONTH = Decimal("0.07")  # the dearest store in the tariffs, where a store's own price is unknown

# For the interval `auto`; a test holds these to the hooks' own.
SECONDS_BETWEEN_PREEMPTIONS = 3 * 3600.0
MIN_INTERVAL_SECONDS, MAX_INTERVAL_SECONDS = 5.0, 1800.0
MAX_SAVING_SHARE, MAX_WRITING_SHARE = 0.05, 0.5


def save_interval_seconds(spec: RunSpec, option: Option) -> float:
    """Seconds of training between two checkpoints; `auto` as the hooks choose it (`trainer_hooks/schedule.py`).

    That is Young's √(2 · lost by a save · time between preemptions), held between sensible ends.
    """
    if isinstance(spec.checkpoint.every_steps, int):
        return spec.checkpoint.every_steps * option.step_seconds
    best = math.sqrt(2.0 * option.save_seconds * SECONDS_BETWEEN_PREEMPTIONS)
    return max(
        min(max(best, MIN_INTERVAL_SECONDS), MAX_INTERVAL_SECONDS),
        option.save_seconds * (1 / MAX_SAVING_SHARE - 1),
        option.durable_seconds / MAX_WRITING_SHARE,
    )


def save_seconds(spec: RunSpec, measured: Measured) -> tuple[float, str]:
    """Training time that one checkpoint costs, and where the number comes from."""
    if measured.save_seconds is not None:
        return measured.save_seconds, f"measured in {measured.num_runs} earlier runs"
    if spec.checkpoint.save_seconds is not None:
        return spec.checkpoint.save_seconds, "declared"
    gb, source = checkpoint_gb(spec, measured)
    if spec.checkpoint.snapshot == "blocking":
        return gb / WRITE_GB_PER_SECOND, f"size ({source}) at {WRITE_GB_PER_SECOND} GB/s, assumed"
    return gb * LOST_SECONDS_PER_GB, f"size ({source}) at {1 / LOST_SECONDS_PER_GB:g} GB/s, assumed"


def durable_seconds(spec: RunSpec, measured: Measured) -> float:
    """From a safe point until its checkpoint is committed; never less than what the training loses by it."""
    lost, _ = save_seconds(spec, measured)
    if measured.durable_seconds is not None:
        return max(lost, measured.durable_seconds)
    if measured.save_seconds is not None or spec.checkpoint.snapshot == "blocking":
        return lost  # runs that say nothing of it stood still until then
    return max(lost, checkpoint_gb(spec, measured)[0] / WRITE_GB_PER_SECOND)


def checkpoint_gb(spec: RunSpec, measured: Measured) -> tuple[float, str]:
    """Gigabytes of one checkpoint, and where the number comes from."""
    if measured.checkpoint_gb is not None:
        return measured.checkpoint_gb, f"measured in {measured.num_runs} earlier runs"
    if spec.checkpoint.size is not None:
        return spec.checkpoint.size, "declared"
    if spec.workload.model is not None:
        return spec.workload.model.params * BYTES_PER_PARAM / 1e9, f"{BYTES_PER_PARAM} bytes a parameter"
    return CHECKPOINT_GB, "assumed"


def storage_usd_per_gb_month(offer: Offer, tariffs: Tariffs, *, uri: str | None) -> tuple[Decimal, str, bool]:
    """Price of keeping checkpoints at `uri` (`None`: beside the GPU), its source, and whether it is assumed.

    The user's own disk costs nothing here.
    """
    store = store_of(uri)
    if store is None and (offer.provider == LOCAL or offer.simulated):
        return Decimal(0), "on this machine's disk", False
    provider = store or offer.provider
    known = tariffs.storage_usd_per_gb_month.get(provider)
    if known is not None:
        return known, f"{provider}'s standard class", False
    return STORAGE_USD_PER_GB_MONTH, f"{provider}'s own price is unknown: the dearest that is known", True
