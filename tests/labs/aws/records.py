"""What the API was asked, and the bill that follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Self

Action = Literal["RunInstances", "StopInstances", "TerminateInstances", "SpotInterruption", "Shutdown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What starts or ends machines: a call, EC2 itself (SpotInterruption), or the machine (Shutdown)."""

    at: datetime  # answered
    action: Action
    region: str
    instances: tuple[str, ...] = ()  # started or ended
    instance_type: str | None = None
    spot: bool | None = None
    zone: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None  # the API's code

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Self:
        at = datetime.fromtimestamp(said["at"], tz=UTC)
        return cls(**{**said, "at": at, "instances": tuple(said["instances"])})


@dataclass(frozen=True, slots=True)
class Billed:
    """One instance, from the answer to RunInstances to that to TerminateInstances, or to its end otherwise."""

    id: str
    instance_type: str
    spot: bool
    zone: str
    tags: Mapping[str, str]
    started_at: datetime
    ended_at: datetime | None

    def seconds(self, now: datetime | None = None) -> float:
        """Raises: ValueError: it runs, and no `now` is given."""
        end = self.ended_at or now
        if end is None:
            raise ValueError(f"{self.id} is running")
        return (end - self.started_at).total_seconds()


def bill(calls: Sequence[Call]) -> list[Billed]:
    """Every instance that was ever granted, oldest first."""
    ends = _ends(calls)
    granted = [call for call in calls if call.action == "RunInstances" and call.error is None]
    return [_billed(call, name, ends.get(name)) for call in granted for name in call.instances]


def _ends(calls: Iterable[Call]) -> dict[str, datetime]:
    ends: dict[str, datetime] = {}
    for call in calls:
        if call.action != "RunInstances" and call.error is None:
            for name in call.instances:
                ends.setdefault(name, call.at)
    return ends


def _billed(call: Call, name: str, ended_at: datetime | None) -> Billed:
    assert call.instance_type
    assert call.zone
    return Billed(name, call.instance_type, bool(call.spot), call.zone, call.tags, call.at, ended_at)
