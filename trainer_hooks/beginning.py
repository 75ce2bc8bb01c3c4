"""Before a session's first step: which attempt this is, and what is said of the checkpoint that it goes on from."""

from __future__ import annotations

from trainer_hooks.checkpoint.store import Loaded, attempts
from trainer_hooks.meter import Price, say
from trainer_hooks.ranks import Ranks
from trainer_hooks.settings import Settings
from trainer_hooks.storage import Storage


def number_attempt(settings: Settings, storage: Storage, ranks: Ranks) -> int:
    """The launcher's, else one more than the run folder has seen; the same on every rank."""
    if settings.attempt is not None:
        return settings.attempt
    highest = max(attempts(storage), default=0) if ranks.is_first or not ranks.can_agree else 0
    return int(ranks.broadcast(highest + 1))


def tell_of_resume(loaded: Loaded, price: Price) -> None:
    """Loudly, what damaged checkpoints have cost."""
    for one in loaded.skipped:
        lost = max(0, one.step - loaded.manifest.step)
        say(
            f"spotlaunch: WARNING: checkpoint {one.name} is damaged and was skipped, {lost:,} steps"
            f"{_worth(lost, loaded.manifest.cursor.get('step_seconds'), price)} lost: {one.why}"
        )
    say(f"spotlaunch: resumed from {loaded.name}")


def _worth(steps: int, step_seconds: object, price: Price) -> str:
    if price.usd_per_hour is None or not isinstance(step_seconds, int | float):
        return ""
    return f" (about ${steps * step_seconds / 3600 * float(price.usd_per_hour):,.2f} at today's price)"
