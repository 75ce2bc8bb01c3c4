"""The checkpoints of a run folder as somebody sees them who does not train: what there is, whether it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCheckpoint:
    """`readable`: its manifest is whole, which says nothing of its data; `unfinished`: it was never committed."""

    name: str
    step: int
    attempt: int
    state: Literal["readable", "damaged", "unfinished"]
    why: str = ""  # damaged
    created_at: datetime | None = None
    bytes: int | None = None
    added_bytes: int | None = None  # that no older checkpoint has
    world_size: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """`checkpoints`: the newest first."""

    uri: str
    checkpoints: tuple[StoredCheckpoint, ...]
    stored_bytes: int  # of all data in the folder
    unreferenced_bytes: int | None  # that belong to none of them; None: one is damaged, so nobody can tell


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Of one checkpoint, after all of its data was read; `why` is empty where it is whole."""

    name: str
    bytes: int | None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    name: str
    files: tuple[str, ...]
    skipped: tuple[Verdict, ...]  # newer ones that are damaged


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a removal left, and what it took away."""

    kept: tuple[str, ...]
    removed: tuple[str, ...]
    stored_bytes: int
    freed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """A checkpoint that another folder has as well now; `copied_bytes` were not there before."""

    name: str
    bytes: int
    copied_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Which checkpoints stay: `newest` of them (`None`: all), one in every so many steps, the best by a metric."""

    newest: int | None
    every_steps: int | None = None
    best: tuple[str, Literal["min", "max"], int] | None = None
