"""What checkpoints cost a run: how long a save takes, how often it is made, how large it is, what keeping it costs."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache

from launcher.core.estimates.daly import best_interval_seconds, expected_hours
from launcher.core.estimates.workload import Measured
from launcher.core.gravity import Tariffs, store_of
from launcher.core.hazards import (
    FRESH_PREEMPTIONS_PER_HOUR,
    LIFE_HAZARD,
    cumulated,
    fresh_preemptions_per_hour,
    lived_hours,
)
from launcher.core.offers import Capacity, Offer, Placement
from launcher.core.prices.options import Option
from launcher.core.prices.pricing import LOCAL
from launcher.core.spec import RunSpec

# Nothing measured: an object store through one machine's network. Local disks wrote 1 to 4 GB/s.
WRITE_GB_PER_SECOND = 0.5
# One copy of the state at 20 GB/s: what a save costs a training that goes on while it is written.
LOST_SECONDS_PER_GB = 0.05
BYTES_PER_PARAM = 14  # bf16 weights, fp32 master weights and two Adam moments
CHECKPOINT_GB = 1.0  # where nothing is known
STORAGE_USD_PER_GB_MONTH = Decimal("0.07")  # the dearest store in the tariffs, where a store's own price is unknown

# Machines break, also those that nobody takes. Llama 3 on 2,048 nodes of 8 H100: 419 unexpected interruptions in
# 54 days, one in 264 days of a node (arXiv 2407.21783). OPT-175B on 124 nodes of 8 A100: one in 7.5 h, that is 39 days
# of a node (https://glennklockwood.com/garden/job-reliability). The safe side of both: a save too many costs little.
NODE_DAYS_BETWEEN_FAILURES = 30
MACHINE_DAY_HOURS = 24.0  # over which a spot machine's hazard is averaged: it falls with age

# For the interval `auto`; a test holds these to the hooks' own.
MIN_INTERVAL_SECONDS, MAX_INTERVAL_SECONDS = 5.0, 1800.0
CHEAP_SAVING_SHARE, MAX_SAVING_SHARE, MAX_WRITING_SHARE = 0.01, 0.1, 0.5


def interruptions_per_hour(placement: Placement) -> float:
    """How often the whole placement is lost: taken, if it is spot, or one of its nodes breaks.

    Nodes multiply failures and not preemptions: spot is taken by the zone. One V100 stayed up for 0.7 to 10 h, four
    together for 1.8 to 8.5 h, sixteen for 1.7 to 2 h (traces of 2023, Wu et al., NSDI 2024).
    """
    failures = placement.nodes / (NODE_DAYS_BETWEEN_FAILURES * 24)
    return failures + _mean_preemptions_per_hour(fresh_preemptions_per_hour(placement.offer))


def save_interval_seconds(spec: RunSpec, option: Option) -> float:
    """Seconds of training between two checkpoints, as the hooks will choose it (`trainer_hooks/schedule.py`)."""
    return min(_wanted_seconds(spec, option), _covered_seconds(spec, option))


def interval_basis(spec: RunSpec, option: Option) -> tuple[str, str]:
    """That interval in words, and what it follows from."""
    wanted, covered = _wanted_seconds(spec, option), _covered_seconds(spec, option)
    every = spec.checkpoint.every_steps
    basis = f"auto: {_why_so_often(option, wanted)}" if every == "auto" else f"declared: every {every:,} steps"
    if spec.checkpoint.max_loss is None:
        return _minutes(wanted), basis
    limit, least_usd = f"checkpoint.max_loss ${spec.checkpoint.max_loss:,.2f}", unkept_loss_usd(spec, option)
    if least_usd is not None:
        value = f"{_minutes(min(wanted, covered))}; an interruption may cost ${least_usd:,.2f}"
        return value, f"{limit} cannot be kept: steps and saves take too long for it"
    if covered >= wanted:
        return _minutes(wanted), f"{basis}; within {limit}"
    return _minutes(covered), f"{limit}; without it {_minutes(wanted)} ({basis}) and {_longer(option, covered, wanted)}"


def unkept_loss_usd(spec: RunSpec, option: Option) -> Decimal | None:
    """Machine time that an interruption may cost however often is saved, where that is more than `max_loss`.

    It is a step or the shortest interval, and what is not durable yet.
    """
    seconds = max(option.step_seconds, _shortest_seconds(option)) + option.durable_seconds
    least_usd = option.placement.usd_per_hour * Decimal(str(seconds)) / 3600
    if spec.checkpoint.max_loss is None or least_usd <= spec.checkpoint.max_loss:
        return None
    return least_usd.quantize(Decimal("0.01"), ROUND_CEILING)


def _wanted_seconds(spec: RunSpec, option: Option) -> float:
    """Without a limit of money: as declared, or Daly's optimum within sensible ends.

    Its cost is the training that a save really takes; being written for longer only sets the shortest interval.
    """
    if isinstance(spec.checkpoint.every_steps, int):
        return spec.checkpoint.every_steps * option.step_seconds
    best = _best_seconds(option)
    longest = max(MAX_INTERVAL_SECONDS, option.save_seconds * (1 / CHEAP_SAVING_SHARE - 1))
    return max(min(best, longest), _shortest_seconds(option))


def _best_seconds(option: Option) -> float:
    return best_interval_seconds(option.save_seconds, 3600 / interruptions_per_hour(option.placement))


def _why_so_often(option: Option, seconds: float) -> str:
    mean = f"a node breaks once in {NODE_DAYS_BETWEEN_FAILURES} days, assumed"
    if option.placement.offer.capacity is Capacity.SPOT:
        mean = "mean of a machine's first day"
    bound = "" if seconds == _best_seconds(option) else ", within its bounds"
    return f"Daly's optimum for {interruptions_per_hour(option.placement):.2g} interruptions per hour ({mean}){bound}"


def _covered_seconds(spec: RunSpec, option: Option) -> float:
    """The longest interval of which `max_loss` covers the steps since the newest durable save."""
    hourly, usd = option.placement.usd_per_hour, spec.checkpoint.max_loss
    if usd is None or hourly <= 0:
        return math.inf
    return max(float(usd / hourly) * 3600 - option.durable_seconds, _shortest_seconds(option))


def _shortest_seconds(option: Option) -> float:
    saving, writing = option.save_seconds * (1 / MAX_SAVING_SHARE - 1), option.durable_seconds / MAX_WRITING_SHARE
    return max(MIN_INTERVAL_SECONDS, saving, writing)


def _longer(option: Option, seconds: float, other_seconds: float) -> str:
    """By how much saving so often changes the time to the end, in words."""
    hours, other = (_hours_per_hour(option, each) for each in (seconds, other_seconds))
    return f"{abs(hours / other - 1):.1%} {'less' if hours >= other else 'more'} machine time"


def _hours_per_hour(option: Option, interval_seconds: float) -> float:
    """Expected, of training that is done; until a save is durable, a restart begins behind the one before."""
    behind_seconds = option.setup_seconds + option.durable_seconds - option.save_seconds
    return expected_hours(
        1.0,
        interval_hours=interval_seconds / 3600,
        save_hours=option.save_seconds / 3600,
        restart_hours=behind_seconds / 3600,
        failures_per_hour=interruptions_per_hour(option.placement),
    )


@lru_cache(maxsize=256)
def _mean_preemptions_per_hour(fresh: float) -> float:
    """Of a machine that is used for a day at most; fewer than of a fresh one, whose hazard is `fresh`."""
    scale = fresh / FRESH_PREEMPTIONS_PER_HOUR
    taken = -math.expm1(-scale * cumulated(LIFE_HAZARD, MACHINE_DAY_HOURS))
    return taken / lived_hours(LIFE_HAZARD, scale, MACHINE_DAY_HOURS)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.3g} min"


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
