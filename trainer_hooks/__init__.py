"""Hooks for a training script: exact resume, preemption notices, a journal and the cost of every step.

    from trainer_hooks import Session

Importing this package is cheap: torch and fsspec are imported when a `Session` is made.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if sys.version_info < (3, 11):  # noqa: UP036  # it travels to machines whose image brings a Python of its own
    found = ".".join(map(str, sys.version_info[:2]))
    raise ImportError(f"trainer_hooks needs Python 3.11 or newer, and this is {found}: let `setup` make an environment")

if TYPE_CHECKING:
    from trainer_hooks.errors import CheckpointMismatch, CheckpointsDamaged, HooksError, NotLoadable, SavingFailed
    from trainer_hooks.session import Session

__all__ = ["CheckpointMismatch", "CheckpointsDamaged", "HooksError", "NotLoadable", "SavingFailed", "Session"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "Session":
        from trainer_hooks.session import Session

        return Session
    from trainer_hooks import errors

    return getattr(errors, name)
