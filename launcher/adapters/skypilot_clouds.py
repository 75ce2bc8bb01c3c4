"""Which clouds SkyPilot may use here, as remembered in `<state folder>/clouds.json`, and the renewal of their prices.

`{"checked_at": "2026-10-18T09:30:00+00:00", "enabled": ["aws", "gcp"]}`
"""

from __future__ import annotations

import contextlib
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from launcher.adapters.skypilot_catalog import fetched_at
from launcher.errors import InputError, Problem

_CHECK_SECONDS = 300.0  # every cloud is asked over the network, and the API server may have to start first
UNPRICED = ("kubernetes", "slurm", "ssh", "vsphere")  # the user's own: SkyPilot publishes no prices of theirs


class Clouds(BaseModel):
    """The answer of one check."""

    model_config = ConfigDict(frozen=True)

    checked_at: AwareDatetime
    enabled: tuple[str, ...]  # in lower case, as providers are called everywhere here

    @property
    def priced(self) -> tuple[str, ...]:
        """Those with a catalogue of prices."""
        return tuple(cloud for cloud in self.enabled if cloud not in UNPRICED)

    def barred(self, provider: str) -> str | None:
        """Why nothing of `provider` can be rented from here."""
        if provider in self.enabled:
            return None
        return f"{provider} is not enabled here; `sky check {provider}` says why, `launch offers --refresh` looks again"


def read_clouds(path: Path) -> Clouds | None:
    """The last check; `None`: there was none. Raises: InputError: the file says something else."""
    try:
        return Clouds.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        fix = "`launch offers --refresh` writes it anew"
        raise InputError([Problem("L221", "is no record of enabled clouds", str(path), fix)]) from error


def check_clouds(path: Path, *, now: datetime) -> Clouds:
    """Let SkyPilot try all credentials, and remember what it may use.

    Raises: InputError: SkyPilot is not installed. BackendError: it gave no answer.
    """
    from launcher.adapters.skypilot_client import ask

    ask("check", None, False, patience_seconds=_CHECK_SECONDS)
    enabled = sorted(str(cloud).lower() for cloud in ask("enabled_clouds"))
    clouds = Clouds(checked_at=now, enabled=tuple(enabled))
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(clouds.model_dump_json() + "\n", encoding="utf-8")
    fresh.replace(path)
    return clouds


Renewal = Literal["fetched", "kept", "yours", "missing"]


def renew(cloud: str) -> Renewal:
    """Let SkyPilot download the prices of `cloud`, however young those on disk are.

    kept: the download failed, the file on disk stays. yours: it was changed by hand, which SkyPilot never overwrites.
    missing: there is none, and none could be downloaded. Raises: InputError: SkyPilot is not installed.
    """
    from launcher.adapters.skypilot_client import sky

    sky()
    from sky import sky_logging
    from sky.catalog import common

    name = f"{cloud}/vms.csv"
    path = Path(common.get_catalog_path(name))
    if path.exists() and common.is_catalog_modified(name):
        return "yours"
    before = fetched_at(path) if path.exists() else None
    with sky_logging.silent(), contextlib.suppress(OSError):  # among them all that `requests` raises
        _ = common.read_catalog(name, pull_frequency_hours=0).columns
    if not path.exists():
        return "missing"
    return "kept" if fetched_at(path) == before else "fetched"
