"""What a session works with: the launcher's contract over the script's arguments, or defaults where neither speaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from trainer_hooks.meter import Price
from trainer_hooks.notice.sources import default_names
from trainer_hooks.protocol import AUTO, Contract
from trainer_hooks.schedule import Every

RUN_URI = "./spotlaunch-run"
MIN_KEEP = 2
"""The newest may be found damaged: one more must be left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    run_id: str
    attempt: int | None  # None: nobody counts attempts but the run folder
    run_uri: str
    every: Every
    keep: int
    notice: tuple[str, ...]
    notice_seconds: float | None
    price: Price


def resolve(environ: Mapping[str, str], *, run_uri: str | None, every: Every | None, keep: int | None) -> Settings:
    """The launcher decides where the run lies and which attempt this is; the script decides the rest if it does.

    Raises: ValueError: an argument makes no sense. ProtocolError: a variable does not.
    """
    contract = Contract.from_environment(environ)
    every = _every(every, contract)
    keep = keep if keep is not None else (contract.checkpoint_keep if contract else MIN_KEEP)
    if keep < MIN_KEEP:
        raise ValueError(f"keep is {keep}; give {MIN_KEEP} or more, so that a damaged checkpoint has one before it")
    if contract is None:
        return _alone(run_uri or RUN_URI, every, keep)
    return Settings(
        run_id=contract.run_id,
        attempt=contract.attempt,
        run_uri=contract.run_uri,
        every=every,
        keep=keep,
        notice=contract.notice if "LAUNCH_NOTICE" in environ else default_names(),
        notice_seconds=contract.notice_seconds,
        price=Price(usd_per_hour=contract.price_usd_per_hour, spent_usd=contract.spent_usd, cap_usd=contract.cap_usd),
    )


def _every(asked: Every | None, contract: Contract | None) -> Every:
    every = asked if asked is not None else (contract.checkpoint_every_steps if contract else "auto")
    if every != AUTO and (not isinstance(every, int) or every < 1):
        raise ValueError(f"checkpoint_every_steps is {every!r}; give a number of steps, 1 or more, or 'auto'")
    return every


def _alone(run_uri: str, every: Every, keep: int) -> Settings:
    return Settings(
        run_id=run_uri.rstrip("/").rpartition("/")[2],
        attempt=None,
        run_uri=run_uri,
        every=every,
        keep=keep,
        notice=default_names(),
        notice_seconds=None,
        price=Price(usd_per_hour=None, spent_usd=Decimal(0), cap_usd=None),
    )
