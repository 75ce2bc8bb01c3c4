"""The user's settings, in layers: `LAUNCH_*` over ./launch.toml over the user's over the system's over defaults."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from launcher.core.spec import Usd
from launcher.errors import InputError, Problem

APP = "spotlaunch"


def _absolute(value: object) -> Path:
    return Path(str(value)).expanduser().absolute()


def _words(value: object) -> object:
    """A variable of the environment holds several words with commas between them."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


Folder = Annotated[Path, BeforeValidator(_absolute)]
Feeds = Annotated[tuple[Literal["aws", "gcp", "azure"], ...], BeforeValidator(_words)]


class Settings(BaseModel):
    """What holds for every run of this user on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state_folder: Folder = Field(description="ledger, run folders, machines of the local backend, locks")
    ledger: str | None = Field(
        default=None,
        description="SQLAlchemy URL, or a folder in a bucket (s3://…, gs://…); default: SQLite in the state folder",
    )
    runs_uri: str | None = Field(default=None, description="folder of run folders; default: in the state folder")
    pricing: Folder | None = Field(
        default=None, description="pricing.yaml: discounts, credits, reservations, own machines"
    )
    catalogs: Folder = Field(description="SkyPilot's price catalogues: a folder of <cloud>/vms.csv")
    feeds: Feeds = Field(
        default=(), description="clouds whose live spot prices are asked for, with your credentials: aws, gcp, azure"
    )
    confirm_below: Usd = Field(default=Decimal(25), description="--yes serves up to this amount, above it --approve")
    currency: str = Field(
        default="USD", pattern="^[A-Z]{3}$", description="of what is printed; rates are in pricing.yaml"
    )
    probe_seconds: float = Field(default=10.0, gt=0, description="for listing a bucket of data, or asking where it is")
    poll_seconds: float = Field(default=10.0, gt=0, description="between two looks of the supervisor")
    provision_seconds: int = Field(
        default=120, gt=0, description="in a queue of Slurm or Kubernetes, until a place counts as full"
    )
    fallback_delay_seconds: float = Field(
        default=3600.0, ge=0, description="until on-demand or reserved capacity runs, at the worst"
    )

    supervise: Literal["here", "remote"] = Field(
        default="here", description="where a run's supervisor lives: on this machine, or on a small one that is hired"
    )
    supervisor_infra: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9-]+/[^/]+(/[^/]+)?$",
        description="of a remote one, as SkyPilot writes it: aws/us-east-1, slurm/lab/cpu, kubernetes/context; "
        "default: the region of the chosen plan",
    )
    supervisor_usd_per_hour: Usd | None = Field(
        default=None, description="of a remote one's machine; default: of the cheapest in SkyPilot's catalogue"
    )
    supervisor_setup: str | None = Field(
        default=None, description="shell commands that come first on that machine, e.g. module load python/3.11"
    )

    @property
    def ledger_url(self) -> str:
        return self.ledger or f"sqlite:///{self._own_ledger}"

    @property
    def has_ledger(self) -> bool:
        """Whether anything can have been recorded yet; a look at an empty shelf needs no database."""
        return self.ledger is not None or self._own_ledger.exists()

    @property
    def has_shared_ledger(self) -> bool:
        """Whether other machines can read it: a bucket, a folder that is named on purpose, a database server."""
        return self.ledger is not None and not self.ledger.startswith("sqlite")

    @property
    def clouds_record(self) -> Path:
        """What the last check of the clouds found."""
        return self.state_folder / "clouds.json"

    @property
    def _own_ledger(self) -> Path:
        return self.state_folder / "ledger.db"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layered:
    """Settings, and for each where its value comes from."""

    settings: Settings
    origins: Mapping[str, str]


def load_settings(environ: Mapping[str, str] | None = None, *, folder: Path | None = None) -> Layered:
    """Raises: InputError: a file or variable does not say what is wanted, at file:line."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, layer in _layers(os.environ if environ is None else environ, folder or Path.cwd()):
        values |= layer
        origins |= dict.fromkeys(layer, origin)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise InputError([_problem(detail, origins) for detail in error.errors()]) from None
    return Layered(settings=settings, origins=dict.fromkeys(Settings.model_fields, "default") | origins)


def _layers(environ: Mapping[str, str], folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """From the weakest to the strongest."""
    import platformdirs

    default = {"state_folder": platformdirs.user_state_path(APP), "catalogs": _skypilot_catalogs(environ)}
    system = platformdirs.site_config_path(APP) / "launch.toml"
    user = platformdirs.user_config_path(APP) / "launch.toml"
    found: list[tuple[str, dict[str, Any]]] = [("default", default)]
    for path in (system, user, folder / "launch.toml"):
        found += [(str(path), _toml(path))]
    for name in Settings.model_fields:
        variable = f"LAUNCH_{name.upper()}"
        if variable in environ:
            found.append((variable, {name: environ[variable]}))
    return found


def _skypilot_catalogs(environ: Mapping[str, str]) -> str:
    """Where SkyPilot 0.14 keeps them: sky/catalog/common.py, sky/skylet/runtime_utils.py; v8 is its schema."""
    return f"{environ.get('SKY_RUNTIME_DIR', '~')}/.sky/catalogs/v8"


def _toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError([Problem("L110", f"cannot be read: {error}", str(path), "check the file")]) from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError([Problem("L111", f"not valid TOML: {error}", str(path), "mend the file")]) from None
    unknown = [_unknown(key, text, path) for key in values if key not in Settings.model_fields]
    if unknown:
        raise InputError(unknown)
    for key in ("state_folder", "pricing", "catalogs"):
        if isinstance(values.get(key), str):  # a relative path is meant from the file that names it
            values[key] = str(path.parent / Path(values[key]).expanduser())
    return values


def _unknown(key: str, text: str, path: Path) -> Problem:
    lines = text.splitlines()
    line = next((n for n, content in enumerate(lines, start=1) if re.match(rf"\s*\[*\"?{re.escape(key)}", content)), 1)
    near = difflib.get_close_matches(key, Settings.model_fields, n=1, cutoff=0.5)
    fix = f"write {near[0]}" if near else f"known here: {', '.join(Settings.model_fields)}"
    return Problem("L112", f"{key} is not a known setting", f"{path}:{line}", fix)


def _problem(detail: Any, origins: Mapping[str, str]) -> Problem:
    name = str(detail["loc"][0])
    return Problem(
        "L113", f"{name}: {detail['msg']}", origins.get(name, "default"), Settings.model_fields[name].description or ""
    )
