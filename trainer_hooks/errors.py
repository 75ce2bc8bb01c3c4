"""The tree of errors that a training script can meet.

HooksError                   base; the message says what was wanted, what was found, what to do
├── CheckpointsDamaged       there are checkpoints, and none of them verifies
├── CheckpointMismatch       a checkpoint is whole, but is not of these objects
├── NotLoadable              a component's state could be written, but not be read back without running code
├── Torn                     the audit found that a state changed while it was copied
└── SavingFailed             several saves in a row failed
Superseded                   a newer attempt of the run exists; the session turns it into exit code 75
Damaged                      one file or manifest is not what was written; the store turns to an older checkpoint
"""

from __future__ import annotations


class HooksError(Exception):
    """Base of every error that a user is meant to read."""


class CheckpointsDamaged(HooksError):
    """Going on would silently start from zero."""


class CheckpointMismatch(HooksError):
    """The script changed since the checkpoint was written."""


class NotLoadable(HooksError):
    """Raised at the first save, so that it is not found out at the resume."""


class Torn(HooksError):
    """What was copied is not what there was at the safe point: it must not be committed."""


class SavingFailed(HooksError):
    """Training on without being able to save is not worth its price."""


class Superseded(Exception):
    """Another, newer attempt of this run has begun."""


class Damaged(Exception):
    """What lies in a checkpoint is not what was written."""
