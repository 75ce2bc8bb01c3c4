"""One attempt as the exact SkyPilot task, a plain mapping that `sky.Task.from_yaml_config` takes. Pure.

What the machine runs around the user's command, and why:

    hooks       `trainer_hooks` travels with the task, so that nobody installs it on the machines
    once        an attempt that is started twice on one machine (a lost answer, a restarted API server) runs once
    torchrun    reads its arguments from `PET_*`: `run: torchrun train.py` needs no flags on any number of nodes
    timeout     ends the command when the approved amount is used up and nobody is left to say so; it also hands a
                SIGTERM to the whole process group, where a shell would keep it for itself
    srun        on Slurm: a preemption signals a job's steps, not what SkyPilot's own step has started
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from launcher.core.gravity import store_of
from launcher.core.offers import Capacity, Offer
from launcher.core.prices.pricing import Pool
from launcher.core.runs.machine import LaunchRequest

HOME = "~/.spotlaunch"
IDLE_MINUTES = 10  # an idle cloud machine ends itself: nobody may be left to do it
KILL_SECONDS = 120  # from the SIGTERM at the end of the money to a SIGKILL: one step and one save
EXIT_MARK = "spotlaunch: exit code"  # SkyPilot keeps no exit codes; the last line of the output does

_PACKAGES = ("fsspec", "psutil", "xxhash")
_STORES = {"aws": "s3fs", "gcp": "gcsfs", "azure": "adlfs"}  # what reads a provider's buckets
SELF_ENDING = frozenset({"aws", "gcp", "azure", "lambda", "runpod", "oci", "nebius", "verda", "kubernetes"})
_ATTACHED = re.compile(r"(?P<host>.+)\+(?P<count>\d+)x(?P<gpu>.+)")  # a GCP host, and accelerators attached to it


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the launcher's machine adds to a request."""

    hooks: str  # folder of the `trainer_hooks` package
    pool: Pool | None = None  # of the user's inventory, behind the offer
    config: Mapping[str, Any] = field(default_factory=dict)  # SkyPilot configuration, e.g. a reservation to use
    zones: Mapping[str, str] = field(default_factory=dict)  # AWS zone id → this account's name for it


def skypilot_task(request: LaunchRequest, site: Site) -> dict[str, Any]:
    """The task for one attempt; the same request always gives the same task."""
    return {
        "name": request.job,
        "num_nodes": request.placement.nodes,
        "resources": _resources(request, site),
        "workdir": request.workdir,
        "file_mounts": {f"{HOME}/hooks/trainer_hooks": site.hooks},
        "envs": dict(sorted(request.env.items())),
        "setup": _setup(request),
        "run": _run(request),
    } | ({"config": config} if (config := _task_config(request, site)) else {})


def server_config(request: LaunchRequest, site: Site, *, provision_seconds: int) -> dict[str, Any]:
    """What a task may not say for itself: sent beside it, for this one launch."""
    return {**site.config, **queue_config(request.placement.offer.provider, provision_seconds=provision_seconds)}


def queue_config(provider: str, *, provision_seconds: int) -> dict[str, Any]:
    """A queue that is full is refused, so that the next place is asked; SkyPilot would wait in Slurm's for 24 h."""
    return {provider: {"provision_timeout": provision_seconds}} if provider in ("slurm", "kubernetes") else {}


def _resources(request: LaunchRequest, site: Site) -> dict[str, Any]:
    offer = request.placement.offer
    asked: dict[str, Any] = {
        "infra": _infra(offer, site.zones),
        "labels": labels(request, provider=offer.provider),
    }
    attached = _ATTACHED.fullmatch(offer.instance_type)
    if site.pool is not None:
        asked |= {"accelerators": {site.pool.gpu: offer.count}, **_sizes(site.pool, offer.count)}
    else:
        asked |= {"instance_type": attached["host"] if attached else offer.instance_type}
        asked |= {"use_spot": offer.capacity is Capacity.SPOT}
    if attached:
        asked["accelerators"] = {attached["gpu"]: int(attached["count"])}
    if offer.provider in SELF_ENDING:
        asked["autostop"] = {"idle_minutes": IDLE_MINUTES, "down": True}
    if offer.provider == "kubernetes":
        asked["hooks"] = [{"run": _HAND_ON_SIGTERM, "events": ["preemption"], "timeout": KILL_SECONDS}]
    return asked


def _infra(offer: Offer, zones: Mapping[str, str]) -> str:
    """`cloud/region/zone`. A zone id that this account has no name for is left to SkyPilot, which tries all zones."""
    if offer.provider == "kubernetes":
        return f"kubernetes/{offer.region}"
    zone = offer.zone
    if offer.provider == "aws" and zone is not None and not zone.startswith(offer.region):
        zone = zones.get(zone)
    return "/".join(filter(None, (offer.provider, offer.region, zone)))


def _sizes(pool: Pool, gpus: int) -> dict[str, Any]:
    sizes: dict[str, Any] = {}
    if pool.cpus_per_gpu is not None:
        sizes["cpus"] = f"{pool.cpus_per_gpu * gpus:g}+"
    if pool.memory_gb_per_gpu is not None:
        sizes["memory"] = f"{pool.memory_gb_per_gpu * gpus:g}+"
    return sizes


def labels(request: LaunchRequest, *, provider: str) -> dict[str, str]:
    """The run's tags and name, as far as the provider's rules for labels allow them."""
    own = {"spotlaunch-run": request.run_id, "spotlaunch-job": request.job}
    return {label(key, provider): label(value, provider) for key, value in {**request.tags, **own}.items()}


def label(text: str, provider: str) -> str:
    """GCP wants lower case, AWS no blanks; every other character that one of them refuses becomes a dash."""
    if provider == "gcp":
        return re.sub(r"[^a-z0-9_-]", "-", text.lower())[:63]
    if provider == "aws":
        return re.sub(r"\s", "-", text)[:127]
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)[:63].strip("-_.")


def _task_config(request: LaunchRequest, site: Site) -> dict[str, Any]:
    """Dead-man's switch and account on Slurm, labels that choose nodes on Kubernetes."""
    provider, pool = request.placement.offer.provider, site.pool
    if provider == "slurm":
        options: dict[str, Any] = {}
        if pool is not None:
            options = {k: v for k, v in {"account": pool.account, "qos": pool.qos}.items() if v is not None}
        minutes = _minutes(request, pool)
        if minutes is not None:
            options["time"] = minutes
        return {"slurm": {"sbatch_options": options}} if options else {}
    if provider == "kubernetes" and pool is not None and pool.labels:
        return {"kubernetes": {"pod_config": {"spec": {"nodeSelector": dict(sorted(pool.labels.items()))}}}}
    return {}


def _minutes(request: LaunchRequest, pool: Pool | None) -> int | None:
    """Slurm ends the allocation by itself: after the money, or the partition's limit."""
    limits = [request.paid_seconds + KILL_SECONDS] if request.paid_seconds is not None else []
    if pool is not None and pool.time_limit is not None:
        limits.append(pool.time_limit)
    return max(1, int(min(limits) // 60)) if limits else None


def _setup(request: LaunchRequest) -> str:
    """The user's set-up, then what the hooks import and the training's Python does not have."""
    store = store_of(request.env.get("LAUNCH_RUN_URI"))
    packages = [*_PACKAGES, *([_STORES[store]] if store else [])]
    names = " ".join(packages)
    return "\n".join(
        [
            *([request.setup] if request.setup else []),
            f"""spotlaunch_packages() {{
  local python; python=$(command -v python || command -v python3) || return
  "$python" -c 'import {", ".join(packages)}' 2>/dev/null && return
  local pip="$python -m pip --quiet --retries 2 --timeout 20"
  $pip install {names} || $pip install --user --break-system-packages {names}
}}
mkdir -p {HOME}
( command -v flock >/dev/null && flock 9; spotlaunch_packages ) 9> {HOME}/packages.lock \\
  || echo 'spotlaunch: {names} could not be installed; add them to setup'""",
        ]
    )


def _run(request: LaunchRequest) -> str:
    # without a trap the shell dies of the SIGTERM that its trainer is meant to save on; with this one it waits for the
    # trainer, ends with its code, and leaves undone what was to come after a whole training
    command = shlex.quote(f"echo $PPID > {HOME}/pid-$SKYPILOT_NODE_RANK; trap 'exit $?' TERM INT\n{request.run}")
    seconds = 0 if request.paid_seconds is None else max(1, int(request.paid_seconds))
    guarded = f"timeout --signal=TERM --kill-after={KILL_SECONDS} {seconds} bash -c {command}"
    if request.placement.offer.provider == "slurm":
        guarded = f"{_STEP} {guarded}"
    port = 20_000 + crc32(request.job.encode()) % 20_000  # two runs on one node must not share it
    return f"""mkdir -p {HOME}
mkdir {HOME}/ran-{request.job}-$SKYPILOT_NODE_RANK || {{ echo 'spotlaunch: this attempt has run here'; exit 73; }}
export PYTHONPATH="$HOME/.spotlaunch/hooks${{PYTHONPATH:+:$PYTHONPATH}}"
export PET_NNODES=$SKYPILOT_NUM_NODES PET_NODE_RANK=$SKYPILOT_NODE_RANK
export PET_NPROC_PER_NODE=${{SKYPILOT_NUM_GPUS_PER_NODE:-{request.placement.offer.count}}}
export PET_MASTER_ADDR=$(echo "$SKYPILOT_NODE_IPS" | head -n 1) PET_MASTER_PORT={port}
export MASTER_ADDR=$PET_MASTER_ADDR MASTER_PORT=$PET_MASTER_PORT
trap : TERM
{guarded} < /dev/null
code=$?
echo "{EXIT_MARK} $code (node $SKYPILOT_NODE_RANK)"
exit $code"""


# One step of its own on this node, with all that the allocation has there. A step of one task is given one CPU unless
# it asks for more, and SkyPilot unsets what Slurm said of the node's CPUs.
_STEP = (
    'srun --overlap --jobid="$SLURM_JOB_ID" --nodes=1 --ntasks=1 --nodelist="${SLURMD_NODENAME:-$(hostname)}" '
    """--cpus-per-task="$(squeue -h -j "$SLURM_JOB_ID" -o '%C %D' | awk '{print int($1 / $2)}')" """
    "--mem=0 --unbuffered"
)

_HAND_ON_SIGTERM = f"""pid=$(cat {HOME}/pid-*) && kill -TERM $pid
while kill -0 $pid 2>/dev/null; do sleep 1; done"""
