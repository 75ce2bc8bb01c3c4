"""Compute Engine's `advice.capacityHistory`: price and preemptions of Spot VMs, by machine type and zone.

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
from launcher.core.feeds import Place, Signal

_ENDPOINT = "https://compute.googleapis.com"
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


class GcpFeed:
    """`login` gives a token and the project that asks."""

    provider = "gcp"

    def __init__(self, login: Callable[[], tuple[str, str]] | None = None, *, endpoint: str = _ENDPOINT) -> None:
        self._login = login or _Login()
        self._endpoint = endpoint

    def questions(self, places: Sequence[Place]) -> tuple[Question, ...]:
        """One for each type in each zone. Of N1 machines with GPUs attached the API says nothing (its docs)."""
        asked = [place for place in places if place[2] is not None and "+" not in place[3]]
        return tuple(Question(about="price", where=str(place[2]), places=(place,)) for place in asked)

    def ask(self, question: Question, now: datetime) -> tuple[Signal, ...]:
        """REST reference, compute v1, advice.capacityHistory."""
        (place,) = question.places
        token, project = self._login()
        url = f"{self._endpoint}/compute/v1/projects/{project}/regions/{place[1]}/advice/capacityHistory"
        body = {
            "instanceProperties": {"machineType": place[3], "scheduling": {"provisioningModel": "SPOT"}},
            "locationPolicy": {"location": f"zones/{question.where}"},
            "types": ["PRICE", "PREEMPTION"],
        }
        answer = ask_json(url, body=body, token=token)
        try:
            price, share = _newest(answer.get("priceHistory", ())), _newest(answer.get("preemptionHistory", ()))
            usd = None if price is None else _usd(price["listPrice"])
            preempted = None if share is None else float(share["preemptionRate"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FeedSilent(f"Compute Engine answered something unknown: {error!r}") from error
        source = "GCP capacity history"
        return (Signal(place=place, at=now, source=source, usd_per_hour=usd, preempted_share=preempted),)


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
