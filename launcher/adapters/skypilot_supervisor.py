"""The supervisor's own machine as the exact SkyPilot task, and the hiring of it.

    ~/.spotlaunch/app       the launcher and `trainer_hooks` as they are here: nothing is published or downloaded
    ~/.spotlaunch/state     its state folder
    ~/.spotlaunch/home      its HOME, with the machine's credentials linked into it: SkyPilot keeps its own records of
                            the machine under ~/.sky, and those of a supervisor are not to be mixed with them

Its API server has no password and listens on 127.0.0.1, on a port of the run's own: a Slurm node may have others.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any
from zlib import crc32

from launcher.adapters import skypilot_client as client
from launcher.adapters import skypilot_clusters as clusters
from launcher.adapters.skypilot_task import HOME, SELF_ENDING, label, queue_config
from launcher.core.prices.supervision import MEMORY_GIB, VCPUS, Host, supervisor_name

IDLE_MINUTES = 1  # once the supervisor has ended there is nothing to wait for
PYTHON = "3.11"  # that uv installs where the machine's own is older
MAX_FAILURES = 5  # in a row, of a supervisor that says what is wrong; one that is killed is started for ever
RESTART_SECONDS = 20
DISTRIBUTION = "spotlaunch"

_MODULES = ("launcher.supervise", "sky", "filelock", "fsspec", "platformdirs", "psutil", "ruamel.yaml", "sqlalchemy")
_STORES = ("s3fs", "gcsfs", "adlfs", "psycopg")
_IDENTITY = re.compile(r'^(\s*IdentityFile\s+)"?([^"\n]+?)"?[ \t]*$', re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """Everything that a supervisor takes along to another machine."""

    run_id: str
    number: int  # of the hire
    host: Host
    workdir: str  # attempts upload it from there
    packages: Mapping[str, str]  # name → folder here: launcher and trainer_hooks
    files: Mapping[str, str] = field(default_factory=dict)  # path in its HOME, or in ~/.spotlaunch → path here
    settings: Mapping[str, str] = field(default_factory=dict)  # LAUNCH_*
    secrets: Mapping[str, str] = field(default_factory=dict)  # the same, where they hold passwords
    environ: Mapping[str, str] = field(default_factory=dict)  # of SkyPilot: whose clusters they are
    requirements: Sequence[str] = ()
    prelude: str | None = None  # commands of the user's that come first
    minutes: int | None = None  # Slurm: after which it is ended at the latest
    tags: Mapping[str, str] = field(default_factory=dict)


def supervisor_task(errand: Errand) -> dict[str, Any]:
    """The task that `sky.Task.from_yaml_config` takes; the same errand always gives the same task. Pure."""
    config = {"slurm": {"sbatch_options": {"time": errand.minutes}}}
    return {
        "name": supervisor_name(errand.run_id),
        "resources": _resources(errand),
        "workdir": errand.workdir,
        "file_mounts": _mounts(errand),
        "envs": dict(sorted(errand.settings.items())),
        **({"secrets": dict(sorted(errand.secrets.items()))} if errand.secrets else {}),
        "setup": _setup(errand),
        "run": _run(errand),
    } | ({"config": config} if errand.host.provider == "slurm" and errand.minutes else {})


def _resources(errand: Errand) -> dict[str, Any]:
    host = errand.host
    size = {"cpus": f"{VCPUS}+", "memory": f"{MEMORY_GIB}+"}
    kind = {"instance_type": host.instance_type} if host.instance_type else size
    ends = {"autostop": {"idle_minutes": IDLE_MINUTES, "down": True}} if host.provider in SELF_ENDING else {}
    tags = {label(k, host.provider): label(v, host.provider) for k, v in sorted(errand.tags.items())}
    return {"infra": host.infra, "labels": tags, **kind, **ends}


def _mounts(errand: Errand) -> dict[str, str]:
    packages = {f"{HOME}/app/{name}": folder for name, folder in errand.packages.items()}
    files = {f"{HOME}/{path}": here for path, here in errand.files.items()}
    return dict(sorted((packages | files).items()))


def _prelude(errand: Errand) -> list[str]:
    return [errand.prelude.rstrip()] if errand.prelude else []


def _setup(errand: Errand) -> str:
    """A Python that has everything is taken as it is; else uv, which SkyPilot has installed, makes one."""
    names = " ".join(shlex.quote(each) for each in errand.requirements)
    stores = [name for name in _STORES if any(each.startswith(name) for each in errand.requirements)]
    imports = f"import {', '.join([*_MODULES, *stores])}"
    return "\n".join(
        [
            *_prelude(errand),
            f"""mkdir -p {HOME}/home {HOME}/state
python=$(command -v python3 || command -v python)
if ! PYTHONPATH={HOME}/app "$python" -c {shlex.quote(imports)} 2> /dev/null; then
  uv=$(command -v uv || echo ~/.local/bin/uv)
  "$uv" venv --quiet --allow-existing --python {PYTHON} {HOME}/venv || exit 1
  python=$(echo {HOME}/venv/bin/python)
  "$uv" pip install --quiet --python "$python" {names} || exit 1
fi
echo "$python" > {HOME}/python""",
        ]
    )


def _run(errand: Errand) -> str:
    pricing = ' --pricing "$base/pricing.yaml"' if "pricing.yaml" in errand.files else ""
    flags = f'--workdir "$workdir" --hired {errand.number}{pricing}'
    exports = " ".join(f"{key}={shlex.quote(value)}" for key, value in sorted(errand.environ.items()))
    port = 20_000 + crc32(errand.run_id.encode()) % 20_000
    is_slurm = errand.host.provider == "slurm"
    end = '\nscancel "$SLURM_JOB_ID"  # SkyPilot would keep the allocation' if is_slurm else ""
    return "\n".join(
        [
            *_prelude(errand),
            f"""base=$(echo {HOME}) workdir=$PWD
for each in "$HOME"/.[!.]* "$(getent passwd "$(id -u)" | cut -d: -f6)"/.[!.]*; do
  case ${{each##*/}} in .sky* | .spotlaunch | .slurm | .cache) ;; *) ln -sn "$each" "$base/home/" 2> /dev/null ;; esac
done
unset SKY_RUNTIME_DIR
export HOME=$base/home PYTHONPATH=$base/app SKYPILOT_API_SERVER_LOCAL_PORT={port} {exports}
export LAUNCH_STATE_FOLDER=$base/state PATH=$(dirname "$(cat "$base/python")"):$PATH
cd "$base" || exit 1
failures=0
while true; do
  "$(cat "$base/python")" -m launcher.supervise {shlex.quote(errand.run_id)} {flags}
  code=$?
  [ $code -eq 0 ] && break
  [ $code -lt 128 ] && failures=$((failures + 1)) && [ $failures -ge {MAX_FAILURES} ] && break
  sleep {RESTART_SECONDS}
done
rm -rf "$base/home/.slurm" "$base/home/.kube"  # keys that came along{end}
exit $code""",
        ]
    )


def hire(errand: Errand, *, provision_seconds: int) -> None:
    """Begin the launch of its machine.

    Raises: LaunchRefused: it is not granted. BackendError: nobody knows whether it has begun.
    """
    config = queue_config(errand.host.provider, provision_seconds=provision_seconds)
    clusters.launch(supervisor_task(errand), name=supervisor_name(errand.run_id), config=config)


def demand_hired(run_id: str) -> None:
    """Raises: LaunchRefused: the newest launch of the run's supervisor has ended without one. BackendError."""
    newest = clusters.newest_launch(supervisor_name(run_id))
    if newest is not None:
        clusters.demand_granted(newest)


def dismiss(run_id: str) -> bool:
    """End the machine of the run's supervisor, if the SkyPilot of this machine knows it; whether it does.

    Raises: BackendError: nobody knows whether it is gone.
    """
    name = supervisor_name(run_id)
    clusters.call_off(name)
    if clusters.find(name) is None:
        return False
    clusters.release(name)
    return True


def user_of_skypilot() -> dict[str, str]:
    """Whose clusters they are; and where the API server is, if it is not a local one: then both sides know them all."""
    client.sky()
    from sky.utils import common_utils

    kept = ("SKYPILOT_API_SERVER_ENDPOINT", "SKYPILOT_SERVICE_ACCOUNT_TOKEN")
    found = {name: os.environ[name] for name in kept if name in os.environ}
    return {
        "SKYPILOT_USER_ID": common_utils.get_user_hash(),
        "SKYPILOT_USER": common_utils.get_current_user_name(),
    } | found


def requirements(extras: Collection[str], clouds: Collection[str]) -> tuple[str, ...]:
    """Of this distribution with `extras`, and this very SkyPilot for `clouds`."""
    found = []
    for line in metadata.requires(DISTRIBUTION) or ():
        name, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
        if extra is None or extra[1] in extras:
            found.append(name.strip())
    return (*sorted(found), f"skypilot[{','.join(sorted(clouds))}]=={metadata.version('skypilot')}")


def configuration(clouds: Collection[str], *, home: Path, folder: Path) -> dict[str, str]:
    """Files of this user's without which SkyPilot cannot go on elsewhere, by their path under ~/.spotlaunch there.

    Slurm's list of clusters names keys by their path; they travel along, and a copy of the list in `folder` says so.
    Credentials of clouds are uploaded by SkyPilot itself.
    """
    wanted = {"home/.sky/config.yaml": home / ".sky/config.yaml"}
    if "kubernetes" in clouds:
        first = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
        wanted["home/.kube/config"] = Path(first) if first else home / ".kube/config"
    found = {name: str(path) for name, path in wanted.items() if path.exists()}
    slurm = home / ".slurm/config"
    if "slurm" in clouds and slurm.exists():
        keys: dict[str, str] = {}
        text = _IDENTITY.sub(lambda match: _moved_key(match, home, keys), slurm.read_text(encoding="utf-8"))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "slurm-config").write_text(text, encoding="utf-8")
        found |= {"home/.slurm/config": str(folder / "slurm-config"), **keys}
    return found


def _moved_key(match: re.Match[str], home: Path, keys: dict[str, str]) -> str:
    here = Path(match[2].replace("~", str(home), 1) if match[2].startswith("~") else match[2])
    name = f"home/.slurm/key-{crc32(str(here).encode()):08x}"
    keys[name] = str(here)
    return f"{match[1]}~/{name.removeprefix('home/')}"
