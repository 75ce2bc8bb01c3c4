"""Azure: retail prices, which need no credentials, and eviction rates of Resource Graph, which need them.

Credentials are those that azure-identity finds (`az login`); the account needs the role Reader.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from importlib import import_module
from threading import Lock
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from launcher.adapters.feeds.https import ask_json
from launcher.adapters.feeds.port import FeedSilent, Question, by_region
from launcher.core.prices.feeds import EvictedPercent, Place, Signal

_PRICES, _EVICTIONS = "price", "eviction rate"
_PRICE_ENDPOINT, _GRAPH_ENDPOINT = "https://prices.azure.com", "https://management.azure.com"
_MOST_PAGES = 10  # of 1,000 rows; a region's GPU machines fill less than one
_STEPS: Mapping[str, EvictedPercent] = {
    "0-5": (0, 5),
    "5-10": (5, 10),
    "10-15": (10, 15),
    "15-20": (15, 20),
    "20+": (20, None),
}


class AzureFeed:
    """`token` is for Azure Resource Manager."""

    provider = "azure"

    def __init__(
        self,
        token: Callable[[], str] | None = None,
        *,
        price_endpoint: str = _PRICE_ENDPOINT,
        graph_endpoint: str = _GRAPH_ENDPOINT,
    ) -> None:
        self._token = token or _Token()
        self._price_endpoint = price_endpoint
        self._graph_endpoint = graph_endpoint

    def questions(self, places: Sequence[Place]) -> tuple[Question, ...]:
        prices = by_region(_PRICES, places)
        return (*prices, Question(about=_EVICTIONS, where="", places=tuple(places))) if places else ()

    def ask(self, question: Question, now: datetime) -> tuple[Signal, ...]:
        try:
            if question.about == _PRICES:
                return tuple(self._prices(question, now))
            return tuple(self._evictions(question, now))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FeedSilent(f"Azure answered something unknown: {error!r}") from error

    def _prices(self, question: Question, now: datetime) -> Iterator[Signal]:
        """Microsoft Learn, "Azure Retail Prices overview". Of two prices for one machine, the higher one counts."""
        found: dict[str, Decimal] = {}
        for row in self._price_rows(question):
            begun = datetime.fromisoformat(row["effectiveStartDate"]) <= now
            is_linux = "Windows" not in row["productName"] and row["skuName"].endswith(" Spot")
            if begun and is_linux and row["type"] == "Consumption" and row["unitOfMeasure"] == "1 Hour":
                usd = Decimal(row["retailPrice"])
                found[row["armSkuName"]] = max(usd, found.get(row["armSkuName"], usd))
        for place in question.places:
            if place[3] in found:
                yield Signal(place=place, at=now, source="Azure retail prices", usd_per_hour=found[place[3]])

    def _price_rows(self, question: Question) -> Iterator[Mapping[str, Any]]:
        types = " or ".join(f"armSkuName eq '{instance_type}'" for instance_type in question.types)
        wanted = (
            f"serviceName eq 'Virtual Machines' and priceType eq 'Consumption' and armRegionName eq '{question.where}' "
            f"and contains(skuName, 'Spot') and ({types})"
        )
        asked = urlencode({"api-version": "2023-01-01-preview", "$filter": wanted}, quote_via=quote, safe="$")
        url: str | None = f"{self._price_endpoint}/api/retail/prices?{asked}"
        for _ in range(_MOST_PAGES):
            if url is None:
                return
            if urlsplit(url).hostname != urlsplit(self._price_endpoint).hostname:
                raise FeedSilent("Azure's next page of prices is on another host")
            answer = ask_json(url)
            yield from (row for row in answer["Items"] if row["currencyCode"] == "USD")
            url = answer["NextPageLink"]

    def _evictions(self, question: Question, now: datetime) -> Iterator[Signal]:
        """Microsoft Learn, "Use Azure Spot Virtual Machines", the queries for Resource Graph."""
        regions = ", ".join(f"'{region}'" for region in sorted({region for _, region, _, _ in question.places}))
        types = ", ".join(f"'{instance_type}'" for instance_type in question.types)
        query = (
            "SpotResources | where type =~ 'microsoft.compute/skuspotevictionrate/location' "
            f"| where location in~ ({regions}) | extend skuName = tostring(sku.name) | where skuName in~ ({types}) "
            "| project skuName, location, evictionRate = tostring(properties.evictionRate)"
        )
        rates = {(row["location"].lower(), row["skuName"].lower()): row["evictionRate"] for row in self._graph(query)}
        for place in question.places:
            percent = _STEPS.get(rates.get((place[1].lower(), place[3].lower()), ""))
            if percent is not None:
                yield Signal(place=place, at=now, source="Azure Resource Graph", evicted_percent=percent)

    def _graph(self, query: str) -> Iterator[Mapping[str, Any]]:
        """The whole tenant is asked: eviction rates are no subscription's."""
        token, options = self._token(), {"resultFormat": "objectArray", "$top": 1000}
        for _ in range(_MOST_PAGES):
            url = f"{self._graph_endpoint}/providers/Microsoft.ResourceGraph/resources?api-version=2022-10-01"
            answer = ask_json(url, body={"query": query, "options": options}, token=token)
            yield from answer["data"]
            if "$skipToken" not in answer:
                return
            options = {**options, "$skipToken": answer["$skipToken"]}


class _Token:
    def __init__(self) -> None:
        self._lock = Lock()
        self._credential: Any = None

    def __call__(self) -> str:
        try:
            identity, core = import_module("azure.identity"), import_module("azure.core.exceptions")
        except ImportError as error:
            raise FeedSilent("azure-identity is not installed: pip install spotlaunch[azure]") from error
        logging.getLogger("azure.identity").setLevel(
            logging.ERROR
        )  # it warns of each way it tried: one sentence will do
        try:
            with self._lock:
                self._credential = self._credential or identity.DefaultAzureCredential()
                return str(self._credential.get_token(f"{_GRAPH_ENDPOINT}/.default").token)
        except core.AzureError as error:
            raise FeedSilent(f"no Azure credentials: {str(error).splitlines()[0]}") from error
