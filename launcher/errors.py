"""The tree of errors and their exit codes.

    LaunchError                 1    something went wrong; the message says what, and what to do
    ├── InputError              2    train.yaml, pricing.yaml, a market, a flag: all problems at once, each at file:line
    ├── NotConfirmed            3    nobody agreed to spend the money
    ├── OverBudget              5    the plan costs more than a cap or an approval allows
    ├── NothingFeasible         7    no placement can do it; every refusal carries its reason
    ├── PlanStale               8    the price moved or the offer is gone since the plan was made
    ├── RunFailed             100    the run ended, but not in success
    ├── NoSuchRun             102    the ledger knows no such run
    ├── LedgerConflict          1    another writer was first: read again
    ├── LedgerUnavailable       1    the ledger did not answer; nothing was recorded
    ├── LaunchRefused           1    a backend did not grant a machine; `reason` says why
    └── BackendError            1    a backend could not be asked; ask again later

The command line turns each into one message and its exit code; nothing else catches `LaunchError`
but the code that reacts to one of its kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

RefusalReason = Literal["no_capacity", "quota", "unavailable", "rejected"]


class LaunchError(Exception):
    """Base of every error that a user is meant to read."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with an input: what was wanted, what was found, where, how to fix it."""

    code: str  # stable, e.g. "L101"
    message: str
    where: str = ""  # file:line
    fix: str = ""


class InputError(LaunchError):
    """Everything wrong with one input, so that it is mended in one go."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{p.where}: {p.message}" if p.where else p.message for p in self.problems))


class NotConfirmed(LaunchError):
    exit_code = 3


class OverBudget(LaunchError):
    exit_code = 5


class NothingFeasible(LaunchError):
    exit_code = 7


class PlanStale(LaunchError):
    exit_code = 8


class RunFailed(LaunchError):
    exit_code = 100


class NoSuchRun(LaunchError):
    exit_code = 102


class LedgerConflict(LaunchError):
    """`append(after_seq)` found that another writer had appended since."""


class LedgerUnavailable(LaunchError):
    """The ledger cannot be read or written now; nothing of the call took effect."""


class LaunchRefused(LaunchError):
    """No machine was granted. `rejected`: the request is wrong; every other reason: try elsewhere or later."""

    def __init__(self, reason: RefusalReason, detail: str) -> None:
        self.reason: RefusalReason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")


class BackendError(LaunchError):
    """The backend did not answer; nothing is known about the machine."""
