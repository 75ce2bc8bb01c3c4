"""Places and markets as the policy reads them, for tests that ask it directly: hours, floats and short keys."""

from __future__ import annotations

import math
from typing import Any

from launcher.core.policy.guide import Guide
from launcher.core.policy.market import Market, Place
from launcher.core.policy.mdp import Idle, OnMachine, Sight
from tests.builders import an_option


def a_place(key: str, *, usd: float, is_spot: bool, **fields: Any) -> Place:
    """100 steps an hour; a set-up of 12 minutes, a save each quarter of an hour."""
    plain: dict[str, Any] = {
        "option": an_option(),
        "domain": key,
        "step_hours": 0.01,
        "interval_hours": 0.25,
        "setup_hours": 0.2,
        "durable_hours": 0.01,
        "closing_hours": 0.04,
        "arrival_usd": 0.0,
        "home": None,
        "scale": 1.0 if is_spot else 0.0,
        "opens_at": 0.0,
        "closes_at": math.inf,
        "lease_hours": math.inf,
    }
    return Place(key=key, usd_per_hour=usd, is_spot=is_spot, **plain | fields)


def spot(key: str = "a", usd: float = 3.0, **fields: Any) -> Place:
    return a_place(key, usd=usd, is_spot=True, **fields)


def firm(key: str = "od", usd: float = 10.0, **fields: Any) -> Place:
    return a_place(key, usd=usd, is_spot=False, **fields)


def a_market(*places: Place, advice: Guide | None = None, **fields: Any) -> Market:
    """10 h of work in 20 h; the fallback starts within one."""
    plain: dict[str, Any] = {"steps": 1000, "deadline": 20.0, "reserve_hours": 1.0, "poll_hours": 0.01}
    market = Market(places=places or (spot(), firm()), **plain | fields)
    if advice is not None:
        vars(market)["guide"] = advice  # instead of the one that is worked out when it is first asked
    return market


class Advice:
    """A guide that always says the same; it is asked about nothing but `sight`."""

    def __init__(
        self,
        *,
        up: Idle = "spot",
        down: Idle = "wait",
        asks: tuple[int, ...] = (),
        over: OnMachine = "hand_over",
        stay: OnMachine = "stay",
        slack_price: float = 0.0,
    ) -> None:
        self._up, self._down, self._asks, self._over, self._stay, self._price = up, down, asks, over, stay, slack_price

    def idle(self, *, work_hours: float, slack_hours: float, sight: Sight) -> Idle:
        return self._up if sight.is_up else self._down

    def asks(self, *, work_hours: float, slack_hours: float, sight: Sight) -> tuple[int, ...]:
        return self._asks

    def on_rung(self, rung: int, *, work_hours: float, slack_hours: float, sight: Sight) -> OnMachine:
        return self._over if sight.is_up else self._stay

    def on_fallback(self, *, work_hours: float, slack_hours: float, sight: Sight) -> OnMachine:
        return self._over if sight.is_up else self._stay

    def slack_price(self, *, work_hours: float, slack_hours: float) -> float:
        return self._price
