"""What a session works with: the script's arguments over the environment, where it is the run's folder the other way.

The environment is a launcher's contract, or `LAUNCH_CHECKPOINT_*` that somebody set by hand.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from trainer_hooks.meter import Price
from trainer_hooks.notice.sources import default_names
from trainer_hooks.protocol import (
    AUTO,
    Best,
    CheckpointTerms,
    Contract,
    ProtocolError,
    SnapshotMode,
    checkpoint_terms,
)
from trainer_hooks.schedule import SECONDS_BETWEEN_PREEMPTIONS, Every, Stakes

RUN_URI = "./spotlaunch-run"
MIN_KEEP = 2
"""The newest may be found damaged: one more must be left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    run_id: str
    attempt: int | None  # None: nobody counts attempts but the run folder
    relieves: int | None = None  # the attempt to wait for
    run_uri: str
    every: Every
    keep: int
    keep_every_steps: int | None = None
    keep_best: Best | None = None
    snapshot: SnapshotMode = "overlap"
    audit: bool = False
    local: str | None = None  # this run's own folder on a fast local disk, the first tier
    local_survives: bool = False  # the next attempt finds what lies there
    notice: tuple[str, ...]
    notice_seconds: float | None
    price: Price
    stakes: Stakes = field(default_factory=Stakes)


def resolve(environ: Mapping[str, str], *, run_uri: str | None, every: Every | None, keep: int | None) -> Settings:
    """The launcher decides where the run lies and which attempt this is; the script decides the rest if it does.

    Raises: ValueError: an argument makes no sense. ProtocolError: a variable does not.
    """
    contract = Contract.from_environment(environ)
    terms = contract or checkpoint_terms(environ)
    uri = contract.run_uri if contract else run_uri or RUN_URI
    run_id = contract.run_id if contract else uri.rstrip("/").rpartition("/")[2]
    price = Price(usd_per_hour=None, spent_usd=Decimal(0), cap_usd=None)
    if contract:
        price = Price(usd_per_hour=contract.price_usd_per_hour, spent_usd=contract.spent_usd, cap_usd=contract.cap_usd)
    return Settings(
        run_id=run_id,
        attempt=contract.attempt if contract else None,
        relieves=contract.relieves if contract else None,
        run_uri=uri,
        every=_every(every, terms),
        keep=_keep(keep, terms),
        keep_every_steps=terms.checkpoint_keep_every_steps,
        keep_best=terms.checkpoint_keep_best,
        snapshot=terms.checkpoint_snapshot,
        audit=terms.checkpoint_audit,
        local=None if terms.checkpoint_local is None else _own_folder(terms.checkpoint_local, run_id, uri),
        local_survives=terms.checkpoint_local_survives,
        notice=contract.notice if contract and "LAUNCH_NOTICE" in environ else default_names(),
        notice_seconds=contract.notice_seconds if contract else None,
        price=price,
        stakes=_stakes(terms, contract),
    )


def _every(asked: Every | None, terms: CheckpointTerms) -> Every:
    every = asked if asked is not None else terms.checkpoint_every_steps
    if every != AUTO and (not isinstance(every, int) or every < 1):
        raise ValueError(f"checkpoint_every_steps is {every!r}; give a number of steps, 1 or more, or 'auto'")
    return every


def _keep(asked: int | None, terms: CheckpointTerms) -> int:
    keep = asked if asked is not None else terms.checkpoint_keep
    if keep < MIN_KEEP:
        raise ValueError(f"keep is {keep}; give {MIN_KEEP} or more, so that a damaged checkpoint has one before it")
    return keep


def _stakes(terms: CheckpointTerms, contract: Contract | None) -> Stakes:
    between, rate = SECONDS_BETWEEN_PREEMPTIONS, contract.interruptions_per_hour if contract else None
    if rate is not None:
        between = 3600 / rate if rate > 0 else math.inf
    usd, hourly = terms.checkpoint_max_loss_usd, contract.price_usd_per_hour if contract else None
    if usd is None:
        return Stakes(seconds_between_interruptions=between)
    if hourly is None:
        raise ProtocolError(
            f"LAUNCH_CHECKPOINT_MAX_LOSS_USD is {usd}, but only a launcher says what an hour costs; "
            "give LAUNCH_CHECKPOINT_EVERY_STEPS instead"
        )
    covered = float(usd / hourly) * 3600 if hourly > 0 else math.inf
    return Stakes(seconds_between_interruptions=between, max_loss_seconds=covered)


def _own_folder(parent: str, run_id: str, run_uri: str) -> str:
    """Under `parent`, by the run's whole address: two runs on one machine may both be called `spotlaunch-run`."""
    address = run_uri.rstrip("/") if "://" in run_uri else str(Path(run_uri).absolute())
    return f"{parent.rstrip('/')}/{run_id}-{hashlib.sha256(address.encode()).hexdigest()[:12]}"
