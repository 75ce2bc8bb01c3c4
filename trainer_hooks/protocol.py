"""The contract between launcher and trainer: environment, run folder, journal records, exit codes.

Standard library only: both sides import it, and neither imports the other. Layout of a run folder
(any fsspec URI, `LAUNCH_RUN_URI`):

    journal/<attempt>/<segment>.jsonl       immutable objects, only added, written by rank 0
    chunks/<hash>                           bytes of checkpoints, each written once
    checkpoints/step-<N>-a<attempt>/        its `manifest.json` is written last
    control/stop, control/checkpoint        appear when the launcher wants a graceful end, or a save now
    control/ready-<attempt>                 written by an attempt that is set up and waits to relieve another one
    control/go-<attempt>                    written by the launcher when that other one has ended: take over

Readers ignore kinds, fields and files they do not know, so either side may be the newer one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import PurePosixPath
from typing import Any, Literal, TypeVar

N = TypeVar("N")
A = TypeVar("A")

VERSION = 1

EXIT_DONE = 0
EXIT_RESCHEDULE = 75
"""EX_TEMPFAIL of sysexits.h: everything is saved, start me again."""

CAP_SECONDS = 15.0
"""Of its own time, that a trainer keeps in hand before its cap, beside a save: a step, the exit, the next poll."""

MANIFEST = "manifest.json"
SNAPSHOTS = ("overlap", "lazy", "blocking")
NOTICE_SOURCES = ("ec2", "gce", "azure", "signal", "file")
AUTO = "auto"

EndReason = Literal["completed", "preempted", "stopped", "out_of_budget", "failed"]
SnapshotMode = Literal["overlap", "lazy", "blocking"]
BestMode = Literal["min", "max"]


class ProtocolError(ValueError):
    """A `LAUNCH_*` variable does not say what the contract wants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """Checkpoints that are kept for what the training had reached: the `count` best by a logged metric."""

    metric: str
    mode: BestMode = "min"
    count: int = 1

    def __str__(self) -> str:
        return f"{self.metric}:{self.mode}:{self.count}"

    @classmethod
    def parse(cls, text: str) -> Best:
        """Inverse of `str`; mode and count may be left out: `loss`, `accuracy:max`, `loss:min:3`.

        Raises: ValueError.
        """
        match = re.fullmatch(r"([^:\n]+)(?::(min|max)(?::([1-9]\d{0,5}))?)?", text)
        if match is None:
            raise ValueError("a metric's name without a colon, min or max, and a count are wanted, e.g. loss:min:1")
        return cls(metric=match[1], mode="max" if match[2] == "max" else "min", count=int(match[3] or 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointTerms:
    """How a run is saved. Whoever starts a training without a launcher may set these variables alone."""

    checkpoint_every_steps: int | Literal["auto"] = "auto"
    checkpoint_keep: int = 2
    checkpoint_keep_every_steps: int | None = None  # beside those, the first at or after each multiple
    checkpoint_keep_best: Best | None = None
    checkpoint_snapshot: SnapshotMode = "overlap"
    checkpoint_audit: bool = False
    checkpoint_local: str | None = None  # absolute path of a folder on a fast local disk
    checkpoint_local_survives: bool = False  # the next attempt finds what lies there
    checkpoint_max_loss_usd: Decimal | None = None  # of machine time, that an interruption may cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract(CheckpointTerms):
    """What the launcher tells one attempt, carried by `LAUNCH_*` variables."""

    run_id: str
    attempt: int
    run_uri: str
    notice: tuple[str, ...] = ("signal",)
    notice_seconds: float | None = None
    price_usd_per_hour: Decimal | None = None  # the whole placement, all nodes
    interruptions_per_hour: float | None = None  # of the whole placement: it is taken, or a node breaks
    spent_usd: Decimal = Decimal(0)  # by the run, before this attempt
    cap_usd: Decimal | None = None
    relieves: int | None = None  # the attempt that trains now: wait for its end before the run folder is touched

    def to_environment(self) -> dict[str, str]:
        """The variables that carry this contract; what is `None` is left out."""
        values: dict[str, object] = {
            "LAUNCH_PROTOCOL": VERSION,
            "LAUNCH_RUN_ID": self.run_id,
            "LAUNCH_ATTEMPT": self.attempt,
            "LAUNCH_RUN_URI": self.run_uri,
            "LAUNCH_CHECKPOINT_EVERY_STEPS": self.checkpoint_every_steps,
            "LAUNCH_CHECKPOINT_KEEP": self.checkpoint_keep,
            "LAUNCH_CHECKPOINT_KEEP_EVERY_STEPS": self.checkpoint_keep_every_steps,
            "LAUNCH_CHECKPOINT_KEEP_BEST": self.checkpoint_keep_best,
            "LAUNCH_CHECKPOINT_SNAPSHOT": self.checkpoint_snapshot,
            "LAUNCH_CHECKPOINT_AUDIT": int(self.checkpoint_audit),
            "LAUNCH_CHECKPOINT_LOCAL": self.checkpoint_local,
            "LAUNCH_CHECKPOINT_LOCAL_SURVIVES": int(self.checkpoint_local_survives),
            "LAUNCH_CHECKPOINT_MAX_LOSS_USD": self.checkpoint_max_loss_usd,
            "LAUNCH_NOTICE": ",".join(self.notice),
            "LAUNCH_NOTICE_SECONDS": self.notice_seconds,
            "LAUNCH_PRICE_USD_PER_HOUR": self.price_usd_per_hour,
            "LAUNCH_INTERRUPTIONS_PER_HOUR": self.interruptions_per_hour,
            "LAUNCH_SPENT_USD": self.spent_usd,
            "LAUNCH_CAP_USD": self.cap_usd,
            "LAUNCH_RELIEVES": self.relieves,
        }
        return {name: str(value) for name, value in values.items() if value is not None}

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Contract | None:
        """The contract in `environ`, or `None` where no launcher started this process.

        Raises: ProtocolError: a variable is malformed, or the launcher speaks an unknown version.
        """
        if "LAUNCH_PROTOCOL" not in environ:
            return None
        version = _number(environ, "LAUNCH_PROTOCOL", int)
        if version != VERSION:
            raise ProtocolError(
                f"LAUNCH_PROTOCOL is {version}; these hooks speak {VERSION}: "
                "install the trainer_hooks that came with the launcher"
            )
        terms = checkpoint_terms(environ)
        return cls(
            **{each.name: getattr(terms, each.name) for each in fields(terms)},
            run_id=_text(environ, "LAUNCH_RUN_ID"),
            attempt=_number(environ, "LAUNCH_ATTEMPT", int),
            run_uri=_text(environ, "LAUNCH_RUN_URI"),
            notice=tuple(filter(None, environ.get("LAUNCH_NOTICE", "signal").split(","))),
            notice_seconds=_number_or(environ, "LAUNCH_NOTICE_SECONDS", float, None),
            price_usd_per_hour=_number_or(environ, "LAUNCH_PRICE_USD_PER_HOUR", Decimal, None),
            interruptions_per_hour=_interruptions_per_hour(environ),
            spent_usd=_number_or(environ, "LAUNCH_SPENT_USD", Decimal, Decimal(0)),
            cap_usd=_number_or(environ, "LAUNCH_CAP_USD", Decimal, None),
            relieves=_number_or(environ, "LAUNCH_RELIEVES", int, None),
        )


def checkpoint_terms(environ: Mapping[str, str]) -> CheckpointTerms:
    """`LAUNCH_CHECKPOINT_*`, whoever set them; what is not set has its default.

    Raises: ProtocolError: a variable is malformed.
    """
    every = environ.get("LAUNCH_CHECKPOINT_EVERY_STEPS", AUTO)
    return CheckpointTerms(
        checkpoint_every_steps="auto" if every == AUTO else _number(environ, "LAUNCH_CHECKPOINT_EVERY_STEPS", int),
        checkpoint_keep=_number_or(environ, "LAUNCH_CHECKPOINT_KEEP", int, 2),
        checkpoint_keep_every_steps=_keep_every_steps(environ),
        checkpoint_keep_best=_keep_best(environ),
        checkpoint_snapshot=_snapshot(environ),
        checkpoint_audit=_switch(environ, "LAUNCH_CHECKPOINT_AUDIT"),
        checkpoint_local=_local(environ),
        checkpoint_local_survives=_switch(environ, "LAUNCH_CHECKPOINT_LOCAL_SURVIVES"),
        checkpoint_max_loss_usd=_max_loss_usd(environ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The trainer is up; `step` is where it goes on (0: from the beginning)."""

    step: int
    resumed_from: str | None = None  # the checkpoint's name
    lost_steps: int = 0  # steps that damaged newer checkpoints held


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Heartbeat: `step` steps are finished. At most one every 15 s."""

    step: int
    step_seconds: float | None = None  # mean of this attempt, saves left out
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A checkpoint's manifest is durable. A step may have two records: first of the local disk, then of the folder."""

    step: int
    name: str
    bytes: int  # of the checkpoint, whether they had to be written or not
    seconds: float  # that the training stood still
    lost_seconds: float | None = None  # of training altogether: stood still, and slower steps while it was written
    durable_seconds: float | None = None  # from the safe point to the commit
    written_bytes: int | None = None  # that were not in the folder before
    stored_bytes: int | None = None  # of all checkpoints that are kept, shared chunks counted once
    kept: int | None = None  # how many are
    local_only: bool = False  # on the machine's own disk, not yet in the run folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A preemption was announced; `seconds_left` as the source stated it, if it did."""

    source: str
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The last record of an attempt: why the training stopped, and at which step."""

    reason: EndReason
    step: int
    step_seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


Record = Started | Step | Committed | Notice | Ended

_KINDS: dict[str, type[Record]] = {
    "started": Started,
    "step": Step,
    "committed": Committed,
    "notice": Notice,
    "ended": Ended,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_ADDED = {"lost_seconds", "durable_seconds", "written_bytes", "stored_bytes", "kept", "local_only"}
"""Fields that came after the first release: left out of a line where they say nothing, as it did."""


def encode(record: Record, *, at: datetime) -> str:
    """One line of a journal segment, without its newline."""
    head = {"v": VERSION, "at": at.astimezone(UTC).isoformat(), "kind": _NAMES[type(record)]}
    return json.dumps(head | _plain(record), separators=(",", ":"))


def decode(line: str) -> tuple[datetime, Record] | None:
    """The record of one line and its instant; `None` for what this version does not know or cannot read."""
    try:
        raw = json.loads(line)
        kind = _KINDS[raw["kind"]]
        at = datetime.fromisoformat(raw["at"]).astimezone(UTC)
        known = {f.name: raw[f.name] for f in fields(kind) if f.name in raw}
        return at, kind(**known)
    except (KeyError, TypeError, ValueError):
        return None


def journal_folder(attempt: int) -> str:
    return f"journal/{attempt:03d}"


def segment_name(segment: int) -> str:
    return f"{segment:08d}.jsonl"


def control_ready(attempt: int) -> str:
    return f"control/ready-{attempt}"


def control_go(attempt: int) -> str:
    return f"control/go-{attempt}"


def checkpoint_name(step: int, attempt: int) -> str:
    return f"step-{step}-a{attempt}"


def parse_checkpoint_name(name: str) -> tuple[int, int] | None:
    """`(step, attempt)` of a checkpoint folder's name, `None` for any other name."""
    match = re.fullmatch(r"step-(\d{1,18})-a(\d{1,9})", name)
    return (int(match[1]), int(match[2])) if match else None


CHECKPOINTS = "checkpoints"
CONTROL_STOP = "control/stop"
CONTROL_CHECKPOINT = "control/checkpoint"


def _plain(record: Record) -> dict[str, Any]:
    silent = {
        each.name for each in fields(record) if each.name in _ADDED and getattr(record, each.name) == each.default
    }
    return {name: value for name, value in asdict(record).items() if name not in silent}


def _keep_every_steps(environ: Mapping[str, str]) -> int | None:
    steps = _number_or(environ, "LAUNCH_CHECKPOINT_KEEP_EVERY_STEPS", int, None)
    if steps is not None and steps < 1:
        raise ProtocolError(f"LAUNCH_CHECKPOINT_KEEP_EVERY_STEPS is {steps}; give 1 or more")
    return steps


def _keep_best(environ: Mapping[str, str]) -> Best | None:
    text = environ.get("LAUNCH_CHECKPOINT_KEEP_BEST")
    try:
        return None if text is None else Best.parse(text)
    except ValueError as error:
        raise ProtocolError(f"LAUNCH_CHECKPOINT_KEEP_BEST is {text!r}; {error}") from error


def _snapshot(environ: Mapping[str, str]) -> SnapshotMode:
    text = environ.get("LAUNCH_CHECKPOINT_SNAPSHOT", "overlap")
    match text:
        case "overlap" | "lazy" | "blocking":
            return text
        case _:
            raise ProtocolError(f"LAUNCH_CHECKPOINT_SNAPSHOT is {text!r}; give one of {', '.join(SNAPSHOTS)}")


def _local(environ: Mapping[str, str]) -> str | None:
    text = environ.get("LAUNCH_CHECKPOINT_LOCAL")
    if text is not None and not PurePosixPath(text).is_absolute():
        raise ProtocolError(f"LAUNCH_CHECKPOINT_LOCAL is {text!r}; give an absolute path, e.g. /mnt/nvme/checkpoints")
    return text


def _max_loss_usd(environ: Mapping[str, str]) -> Decimal | None:
    usd = _number_or(environ, "LAUNCH_CHECKPOINT_MAX_LOSS_USD", Decimal, None)
    if usd is not None and not (usd.is_finite() and usd > 0):
        raise ProtocolError(f"LAUNCH_CHECKPOINT_MAX_LOSS_USD is {usd}; give more than 0")
    return usd


def _interruptions_per_hour(environ: Mapping[str, str]) -> float | None:
    rate = _number_or(environ, "LAUNCH_INTERRUPTIONS_PER_HOUR", float, None)
    if rate is not None and not (math.isfinite(rate) and rate >= 0):
        raise ProtocolError(f"LAUNCH_INTERRUPTIONS_PER_HOUR is {rate}; give 0 or more")
    return rate


def _switch(environ: Mapping[str, str], name: str) -> bool:
    text = environ.get(name, "0").lower()
    if text not in {"0", "1", "false", "true"}:
        raise ProtocolError(f"{name} is {environ[name]!r}; give 1 or 0")
    return text in {"1", "true"}


def _text(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "")
    if not value:
        raise ProtocolError(f"{name} is missing; the launcher sets it together with LAUNCH_PROTOCOL")
    return value


def _number(environ: Mapping[str, str], name: str, kind: Callable[[str], N]) -> N:
    try:
        return kind(_text(environ, name))
    except (ValueError, InvalidOperation) as error:
        if isinstance(error, ProtocolError):
            raise
        raise ProtocolError(f"{name} is {environ[name]!r}; a number is wanted") from error


def _number_or(environ: Mapping[str, str], name: str, kind: Callable[[str], N], absent: A) -> N | A:
    return _number(environ, name, kind) if name in environ else absent
