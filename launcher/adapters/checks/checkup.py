"""Everything that `launch doctor` asks, and of whom: nobody whom this user's files do not name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from launcher.adapters.checks import aws, bucket, clock, here, kubernetes, skypilot, slurm
from launcher.adapters.checks.examine import Question, Waiting, examine, problems
from launcher.adapters.object_ledger import is_object_store
from launcher.adapters.settings import Layered, load_settings
from launcher.adapters.skypilot_clouds import read_clouds
from launcher.adapters.yaml_input import load
from launcher.adapters.yaml_spec import load_spec
from launcher.core.doctor.checkup import Check
from launcher.core.gpus import GpuCatalog
from launcher.core.gravity import store_of
from launcher.core.offers import Offer, Price, Refusal
from launcher.core.prices.pricing import LOCAL, Terms
from launcher.core.spec import RunSpec
from launcher.errors import InputError

V = TypeVar("V")
Offers = Callable[[], Sequence[tuple[Offer, Price | Refusal]]]

_AWS_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")
_LEDGER = "check LAUNCH_LEDGER or ledger in launch.toml, that server, and this user's rights there"
_SKYPILOT = "`sky api info`, `sky check`; `sky api stop; sky api start` begins anew on this machine"
_MOST_REGIONS = 4  # whose quotas are looked up
# Servers that tell the time: of a bucket that is in use, else of a cloud that is.
_STORES = {"gcp": "https://storage.googleapis.com"}
_CLOUDS = {
    "aws": "https://sts.amazonaws.com",
    "gcp": "https://compute.googleapis.com",
    "azure": "https://management.azure.com",
}


def read_settings() -> tuple[Layered | None, tuple[Check, ...]]:
    """The settings, if they can be read, and what is odd about them."""
    try:
        layered = load_settings()
    except InputError as error:
        return None, problems("settings", error)
    return layered, tuple(here.settings_checks(layered, os.environ))


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """Of the user's files, and then of all that they name."""

    layered: Layered
    pricing: Path | None
    train: Path | None
    clouds: Collection[str]  # beside those that the files name
    gpus: GpuCatalog
    offers: Offers

    def run(self, waiting: Waiting) -> tuple[Check, ...]:
        """`waiting` is told who has not answered yet."""
        settings = self.layered.settings
        terms, of_terms = _file("pricing.yaml", self.pricing, lambda path: load(path, Terms))
        spec, of_spec = _file("train.yaml", self.train, lambda path: load_spec(path, self.gpus))
        record, of_record = _file("clouds", settings.clouds_record, read_clouds)
        wanted = _wanted(terms, spec, {*self.clouds, *(record.enabled if record else ())})
        prices = Question(name="prices", seconds=30, ask=lambda: _prices(self.offers))
        is_readable = terms is not None or self.pricing is None
        questions = [*([prices] if is_readable else []), *self._questions(terms or Terms(), spec, wanted)]
        broken = [check for check in of_record if check.state == "failed"]
        return (*of_terms, *of_spec, *broken, *examine(questions, waiting=waiting))

    def _questions(self, terms: Terms, spec: RunSpec | None, wanted: Collection[str]) -> Iterator[Question]:
        settings, written = self.layered.settings, self._written(spec)
        yield Question(name="state folder", seconds=15, ask=lambda: here.state_folder(settings))
        if here.is_sql(settings):
            yield Question(name="ledger", seconds=40, ask=lambda: here.sql_ledger(settings), fix=_LEDGER)
        yield Question(name="clock", seconds=20, ask=lambda: _clock(written, wanted))
        yield Question(
            name="SkyPilot", seconds=120, ask=lambda: skypilot.skypilot(wanted, settings.catalogs), fix=_SKYPILOT
        )
        if "aws" in wanted:
            yield Question(name="aws account", seconds=45, ask=lambda: aws.account(_regions(terms, spec), _gpus(spec)))
        yield from _clusters(terms)
        for uri in written:
            ask = partial(bucket.writable_folder, uri)
            yield Question(name=f"bucket {uri}", seconds=60, ask=ask)
        if spec is not None and spec.data is not None and "://" in (data := spec.data.uri):
            yield Question(name=f"data {data}", seconds=30, ask=lambda: bucket.readable_folder(data))

    def _written(self, spec: RunSpec | None) -> list[str]:
        """Folders that runs or the ledger are written to."""
        settings = self.layered.settings
        uris = [settings.runs_uri, settings.ledger if is_object_store(settings.ledger_url) else None]
        if spec is not None and self.train is not None:
            uri = spec.checkpoint.uri
            uris.append(uri if uri is None or "://" in uri else str(self.train.parent / Path(uri).expanduser()))
            uris += spec.checkpoint.buckets.values()
        return list(dict.fromkeys(uri.rstrip("/") for uri in uris if uri))


def _file(name: str, path: Path | None, read: Callable[[Path], V | None]) -> tuple[V | None, tuple[Check, ...]]:
    """What stands in it, and the check of it."""
    if path is None:
        return None, ()
    try:
        return read(path), (Check(name=name, state="ok", found=str(path)),)
    except InputError as error:
        return None, problems(name, error)


def _wanted(terms: Terms | None, spec: RunSpec | None, others: Collection[str]) -> set[str]:
    """Providers that the user's files name, and others that are known to be in use; no machine of the user's own."""
    named = {*others, *((spec.providers or ()) if spec else ())}
    if terms is not None:
        named |= {each.provider for each in terms.discounts} | {each.provider for each in terms.credits}
        named |= {each.provider for each in terms.reserved} | {each.provider for each in terms.clusters}
    return {name.lower() for name in named} - {LOCAL}


def _prices(offers: Offers) -> list[Check]:
    listed = offers()
    refused = sum(isinstance(price, Refusal) for _, price in listed)
    found = f"{len(listed):,} offers, {refused:,} of them refused: `launch offers` says why"
    return [Check(name="prices", state="ok", found=found)]


def _clock(uris: Sequence[str], wanted: Collection[str]) -> list[Check]:
    servers = [_server(uri) for uri in uris] + [url for cloud, url in _CLOUDS.items() if cloud in wanted]
    url = next((server for server in servers if server), None)
    return clock.clock(url) if url else clock.nobody_to_ask()


def _server(uri: str) -> str | None:
    """Whose answers come from the bucket of `uri`."""
    store = store_of(uri)
    if store != "aws":
        return _STORES.get(store or "")
    # the S3 library's own knows the endpoints of files and variables
    from botocore.session import Session  # type: ignore[import-untyped]  # it ships no types

    return str(Session().create_client("s3", region_name="us-east-1").meta.endpoint_url)


def _regions(terms: Terms, spec: RunSpec | None) -> list[str]:
    named = [*((spec.regions or ()) if spec else ()), *(r.region for r in terms.reserved if r.provider == "aws")]
    plain = (region.rpartition("/")[2] for region in named)
    return list(dict.fromkeys(region for region in plain if _AWS_REGION.fullmatch(region)))[:_MOST_REGIONS]


def _gpus(spec: RunSpec | None) -> Mapping[str, int]:
    return {gpu: count * spec.nodes for gpu, count in spec.gpus.items()} if spec else {}


def _clusters(terms: Terms) -> Iterator[Question]:
    """Of pricing.yaml, and what else SkyPilot would use of Slurm."""
    pools = {each.name: each.pools for each in terms.clusters if each.provider == "slurm"}
    for host in dict.fromkeys([*pools, *slurm.hosts()]):
        yield Question(name=f"slurm {host}", seconds=45, ask=partial(slurm.cluster, host, pools.get(host, ())))
    for each in terms.clusters:
        if each.provider == "kubernetes":
            seconds = 25.0 * (1 + len(each.pools))
            yield Question(name=f"kubernetes {each.name}", seconds=seconds, ask=partial(kubernetes.cluster, each))
