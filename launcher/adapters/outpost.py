"""A supervisor on another machine, as seen from here: what it needs, what that costs, what it takes along."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from launcher.adapters import skypilot_supervisor as machine
from launcher.adapters.settings import Settings
from launcher.adapters.skypilot_clouds import read_clouds
from launcher.adapters.skypilot_cpus import small_machines
from launcher.adapters.skypilot_task import SELF_ENDING
from launcher.core.gravity import store_of
from launcher.core.offers import Offer
from launcher.core.prices.pricing import LOCAL
from launcher.core.prices.supervision import Host, Machine, host_beside
from launcher.core.runs.state import RunState
from launcher.core.spec import RunSpec
from launcher.core.unknown import Unknown
from launcher.errors import InputError, Problem

SPARE_MINUTES = 60  # behind the deadline, until Slurm ends the supervisor

_HERE = "--supervise here"
_CARRIED = ("feeds", "poll_seconds", "provision_seconds", "fallback_delay_seconds")
_ENVIRON = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_REGION", "GOOGLE_CLOUD_PROJECT")
_EXTRAS = {"aws": "s3", "gcp": "gcs", "azure": "azure"}  # of this distribution, for a provider's buckets


@dataclass(frozen=True, kw_only=True)
class Outpost:
    """`pricing` travels along, `clouds` says which are enabled here, `folder` takes what is written for the journey."""

    settings: Settings
    pricing: Path | None
    clouds: Path
    folder: Path

    def host(self, offer: Offer) -> Host | Unknown:
        """Where the supervisor of a run at `offer` would live, and for how much."""
        host = host_beside(
            offer,
            infra=self.settings.supervisor_infra,
            declared_usd_per_hour=self.settings.supervisor_usd_per_hour,
            machines=self._machines,
        )
        if isinstance(host, Host) and host.provider not in (*SELF_ENDING, "slurm"):
            return Unknown(f"a machine of {host.provider} does not end by itself; another supervisor_infra")
        return host

    @cached_property
    def _machines(self) -> dict[tuple[str, str], Machine]:
        return small_machines(self.settings.catalogs)

    def demand(self, spec: RunSpec) -> None:
        """Raises: InputError: a supervisor elsewhere could not do its work for this run."""
        problems = list(self._problems(spec))
        if problems:
            raise InputError(problems)

    def _problems(self, spec: RunSpec) -> Iterator[Problem]:
        if find_spec("sky") is None:
            yield Problem(
                "L140",
                "a supervisor elsewhere is hired through SkyPilot",
                "",
                f'{_HERE}, or pip install "spotlaunch[sky]"',
            )
        if spec.market is not None:
            yield Problem("L150", "a simulated run lives on this machine, and so does its supervisor", "", _HERE)
            return
        home = spec.checkpoint.uri
        shares_files = (self.settings.supervisor_infra or "").startswith("slurm/")
        if not self.settings.has_shared_ledger or (self._has_file_ledger and not shares_files):
            beside = f"{home.rstrip('/')}/ledger" if home and "://" in home else "s3://BUCKET/ledger"
            fix = (
                f'{_HERE}, or in launch.toml: ledger = "{beside}" (or postgresql://…); earlier runs stay in the old one'
            )
            yield Problem("L151", "a supervisor elsewhere cannot reach the ledger on this machine's disk", "", fix)
        if not spec.checkpoint.buckets and (home is None or ("://" not in home and not shares_files)):
            fix = f"{_HERE}, or checkpoint.uri: s3://BUCKET/runs in train.yaml, or runs_uri in launch.toml"
            yield Problem("L152", "a supervisor elsewhere cannot reach run folders on this machine's disk", "", fix)

    @property
    def _has_file_ledger(self) -> bool:
        return (self.settings.ledger or "").startswith("file:")

    def hire(self, state: RunState, host: Host, number: int, *, now: datetime) -> None:
        """Begin it. Raises: LaunchRefused: its machine is not granted. BackendError: nobody knows."""
        errand = self.errand(state, host, number, now=now, environ=machine.user_of_skypilot())
        machine.hire(errand, provision_seconds=self.settings.provision_seconds)

    def demand_hired(self, run_id: str) -> None:
        """Raises: LaunchRefused: its launch has failed. BackendError: nobody knows."""
        machine.demand_hired(run_id)

    def dismiss(self, run_id: str) -> bool:
        """End its machine, if the SkyPilot of this machine knows it; whether it does. Raises: BackendError."""
        return machine.dismiss(run_id)

    def errand(
        self, state: RunState, host: Host, number: int, *, now: datetime, environ: dict[str, str]
    ) -> machine.Errand:
        """What is told to SkyPilot of it."""
        spec, clouds = state.spec, self._providers(state.spec, host)
        return machine.Errand(
            run_id=state.run_id,
            number=number,
            host=host,
            workdir=state.submitted.workdir,
            packages={name: _folder_of(name) for name in ("launcher", "trainer_hooks")},
            files=self._files() | machine.configuration(clouds, home=Path.home(), folder=self.folder / state.run_id),
            settings=self._settings(),
            secrets={"LAUNCH_LEDGER": self.settings.ledger_url},
            environ=environ | {name: os.environ[name] for name in _ENVIRON if name in os.environ},
            requirements=machine.requirements(self._extras(spec), clouds),
            prelude=self.settings.supervisor_setup,
            minutes=max(0, int((state.submitted.deadline_at - now).total_seconds() // 60)) + SPARE_MINUTES,
            tags=spec.tags | {"spotlaunch-run": state.run_id},
        )

    def _settings(self) -> dict[str, str]:
        """Those that differ from their defaults and mean the same elsewhere."""
        fields = type(self.settings).model_fields
        values = {name: getattr(self.settings, name) for name in _CARRIED}
        told = {name: value for name, value in values.items() if value != fields[name].default}
        words = {name: ",".join(v) if isinstance(v, tuple) else str(v) for name, v in told.items()}
        return {f"LAUNCH_{name.upper()}": word for name, word in words.items()}

    def _files(self) -> dict[str, str]:
        wanted = {
            "pricing.yaml": self.pricing,
            "home/.sky/catalogs/v8": self.settings.catalogs,
        }
        return {name: str(path) for name, path in wanted.items() if path is not None and path.exists()}

    def _providers(self, spec: RunSpec, host: Host) -> frozenset[str]:
        """Where the run may go, as far as that is known: for each, SkyPilot needs its own extra."""
        known = read_clouds(self.clouds)
        named = spec.providers or (known.enabled if known else ())
        return frozenset({*named, host.provider} - {LOCAL})

    def _extras(self, spec: RunSpec) -> set[str]:
        uris = (self.settings.ledger, spec.checkpoint.uri, *spec.checkpoint.buckets.values())
        extras = {_EXTRAS[store] for store in map(store_of, uris) if store}
        return extras | ({"postgres"} if self.settings.ledger_url.startswith("postgresql") else set())


def _folder_of(package: str) -> str:
    found = find_spec(package)
    assert found is not None  # both are in this distribution
    return str(Path(str(found.origin)).parent)
