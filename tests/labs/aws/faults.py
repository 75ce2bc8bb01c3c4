"""What the API refuses, and how slowly it answers; changed by the test at any moment, from another thread."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """What a call to EC2 asks for, as far as faults look at it."""

    action: str
    region: str
    instance_type: str = ""
    spot: bool = False
    zone: str = ""


@dataclass(frozen=True, slots=True)
class Denial:
    """RunInstances is refused where all that is given matches; None matches everything."""

    spot: bool | None = None
    region: str | None = None
    zone: str | None = None
    instance_type: str | None = None
    code: str = "InsufficientInstanceCapacity"

    def matches(self, request: Request) -> bool:
        wanted = ("spot", "region", "zone", "instance_type")
        return all(getattr(self, name) in (None, getattr(request, name)) for name in wanted)


@dataclass(frozen=True, slots=True)
class Refusal:
    status: str
    code: str
    message: str


@dataclass(slots=True)
class _Trouble:
    calls: int
    seconds: float = 0.0
    action: str | None = None

    def strikes(self, request: Request) -> bool:
        if not self.calls or self.action not in (None, request.action):
            return False
        self.calls -= 1
        return True


class Faults:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.allow()

    def allow(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._denials: list[Denial] = []
            self._outage = _Trouble(0)
            self._delay = _Trouble(0)

    def deny(self, denial: Denial) -> None:
        with self._lock:
            self._denials.append(denial)

    def fail(self, calls: int, action: str | None) -> None:
        with self._lock:
            self._outage = _Trouble(calls, action=action)

    def slow(self, seconds: float, calls: int, action: str | None) -> None:
        with self._lock:
            self._delay = _Trouble(calls, seconds, action)

    def delay_seconds(self, request: Request) -> float:
        with self._lock:
            return self._delay.seconds if self._delay.strikes(request) else 0.0

    def refusal(self, request: Request) -> Refusal | None:
        with self._lock:
            if self._outage.strikes(request):
                return Refusal(
                    "503 Service Unavailable", "Unavailable", "The service is unavailable. Please try again."
                )
            if request.action != "RunInstances":
                return None
            denial = next((denial for denial in self._denials if denial.matches(request)), None)
        return Refusal("400 Bad Request", denial.code, _words(denial.code, request)) if denial else None


def _words(code: str, request: Request) -> str:
    """EC2's own (docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html)."""
    match code:
        case "InsufficientInstanceCapacity" if request.spot:
            return "There is no Spot capacity available that matches your request."
        case "InsufficientInstanceCapacity":
            return (
                f"We currently do not have sufficient {request.instance_type} capacity in the "
                f"Availability Zone you requested ({request.zone}). Our system will be working on provisioning "
                f"additional capacity."
            )
        case "MaxSpotInstanceCountExceeded":
            return "Max spot instance count exceeded"
        case "VcpuLimitExceeded":
            return f"You have requested more vCPU capacity than your current limit allows for {request.instance_type}."
        case _:
            return f"{code}: as the test wishes"
