"""Compute Engine's advice on Spot VMs, by machine type and zone.

    advice.capacityHistory    price and preemptions of the last days
    advice.capacity           whether a request would succeed now, and how long most machines would run

Credentials and project are those that google-auth finds (`gcloud auth application-default login`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from importlib import import_module
from threading import Lock
from typing import Any

from launcher.adapters.feeds.https import ask_json
from launcher.adapters.feeds.port import FeedSilent, Question
from launcher.core.prices.feeds import Place, Signal

_ENDPOINT = "https://compute.googleapis.com"
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_PRICES, _CAPACITY = "price", "capacity"
_SPOT: Mapping[str, Any] = {"scheduling": {"provisioningModel": "SPOT"}}
_CAPACITY_SECONDS = 600.0  # that advice on the present is worth something


class GcpFeed:
    """`login` gives a token and the project that asks."""

    provider = "gcp"

    def __init__(self, login: Callable[[], tuple[str, str]] | None = None, *, endpoint: str = _ENDPOINT) -> None:
        self._login = login or _Login()
        self._endpoint = endpoint

    def questions(self, places: Sequence[Place]) -> tuple[Question, ...]:
        """Two for each type in each zone. Of N1 machines with GPUs attached the API says nothing (its docs)."""
        asked = [(place, str(place[2])) for place in places if place[2] is not None and "+" not in place[3]]
        prices = (Question(about=_PRICES, where=zone, places=(place,)) for place, zone in asked)
        capacity = (
            Question(about=_CAPACITY, where=zone, places=(place,), kept_seconds=_CAPACITY_SECONDS)
            for place, zone in asked
        )
        return (*prices, *capacity)

    def ask(self, question: Question, now: datetime) -> tuple[Signal, ...]:
        try:
            return (self._capacity(question, now) if question.about == _CAPACITY else self._history(question, now),)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FeedSilent(f"Compute Engine answered something unknown: {error!r}") from error

    def _history(self, question: Question, now: datetime) -> Signal:
        """REST reference, compute v1, advice.capacityHistory."""
        (place,) = question.places
        properties = {"machineType": place[3], **_SPOT}
        location = {"location": f"zones/{question.where}"}
        body = {"instanceProperties": properties, "locationPolicy": location, "types": ["PRICE", "PREEMPTION"]}
        answer = self._answer("capacityHistory", place, body)
        price, share = _newest(answer.get("priceHistory", ())), _newest(answer.get("preemptionHistory", ()))
        return Signal(
            place=place,
            at=now,
            source="GCP capacity history",
            usd_per_hour=None if price is None else _usd(price["listPrice"]),
            preempted_share=None if share is None else float(share["preemptionRate"]),
        )

    def _capacity(self, question: Question, now: datetime) -> Signal:
        """REST reference, compute v1, advice.capacity. It takes one selection of machine types in a request."""
        (place,) = question.places
        body = {
            "distributionPolicy": {"targetShape": "ANY_SINGLE_ZONE", "zones": [{"zone": f"zones/{question.where}"}]},
            "instanceFlexibilityPolicy": {"instanceSelections": {"wanted": {"machineTypes": [place[3]]}}},
            "instanceProperties": _SPOT,
            "size": 1,
        }
        advice = self._answer("capacity", place, body).get("recommendations", ())
        scores = advice[0]["scores"] if advice else {}
        uptime = scores.get("estimatedUptime")
        return Signal(
            place=place,
            at=now,
            source="GCP capacity advice",
            obtainability=float(scores["obtainability"]) if "obtainability" in scores else None,
            uptime_seconds=None if uptime is None else float(uptime.removesuffix("s")),
        )

    def _answer(self, method: str, place: Place, body: Mapping[str, Any]) -> Any:
        token, project = self._login()
        url = f"{self._endpoint}/compute/v1/projects/{project}/regions/{place[1]}/advice/{method}"
        return ask_json(url, body=body, token=token)


def _newest(records: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Of today or yesterday: intervals are days in Pacific Time."""
    return max(records, key=lambda record: datetime.fromisoformat(record["interval"]["startTime"]), default=None)


def _usd(money: Mapping[str, Any]) -> Decimal | None:
    """google.type.Money: `units` as text, and `nanos`, 10⁻⁹ of them; what is 0 is left out."""
    if money.get("currencyCode", "USD") != "USD":
        return None
    return Decimal(money.get("units", 0)) + Decimal(money.get("nanos", 0)).scaleb(-9)


class _Login:
    """Asked for once; what failed is not tried again for each question."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._credentials: Any = None
        self._project = ""
        self._failure = ""

    def __call__(self) -> tuple[str, str]:
        with self._lock:
            if self._failure:
                raise FeedSilent(self._failure)
            try:
                self._refresh()
            except FeedSilent as error:
                self._failure = str(error)
                raise
            return self._credentials.token, self._project

    def _refresh(self) -> None:
        try:
            auth, transport = import_module("google.auth"), import_module("google.auth.transport.requests")
        except ImportError as error:
            raise FeedSilent("google-auth is not installed: pip install spotlaunch[gcs]") from error
        try:
            if self._credentials is None:
                self._credentials, project = auth.default(scopes=[_SCOPE])
                self._project = project or ""
            if not self._credentials.valid:
                self._credentials.refresh(transport.Request())
        except auth.exceptions.GoogleAuthError as error:
            raise FeedSilent(f"no Google credentials: {error}") from error
        if not self._project:
            raise FeedSilent("no Google project is known; set GOOGLE_CLOUD_PROJECT")
