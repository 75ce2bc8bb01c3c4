"""Kubernetes clusters as kubectl shows them: the context, and the GPUs of the nodes that a pool's labels choose."""

from __future__ import annotations

import json
import subprocess

from launcher.core.doctor.checkup import Check, wants_credentials
from launcher.core.doctor.clusters import kubernetes_checks
from launcher.core.prices.pricing import Cluster, Pool
from launcher.errors import BackendError

_SECONDS = 20
_GPUS = ("nvidia.com/gpu", "amd.com/gpu")


def cluster(wanted: Cluster) -> tuple[Check, ...]:
    """Of its context, and of each pool that pricing.yaml has there."""
    name = f"kubernetes {wanted.name}"
    try:
        contexts = _kubectl("config", "get-contexts", "--output=name").split()
        if wanted.name not in contexts:
            found = f"no such context; there are {', '.join(contexts) or 'none'}"
            fix = "add it to the kubeconfig (KUBECONFIG, ~/.kube/config), or correct pricing.yaml"
            return (Check(name=name, state="failed", found=found, fix=fix, is_credentials=True),)
        gpus = {pool.name: _gpus(wanted.name, pool) for pool in wanted.pools}
    except FileNotFoundError:
        fix = "install it to have the nodes counted; SkyPilot's own check needs it, too"
        return (Check(name=name, state="skipped", found="there is no kubectl here", fix=fix),)
    except BackendError as error:
        fix = f"let `kubectl --context {wanted.name} get nodes` succeed"
        is_credentials = wants_credentials(str(error)) or "unauthorized" in str(error).lower()
        return (Check(name=name, state="failed", found=str(error), fix=fix, is_credentials=is_credentials),)
    return (Check(name=name, state="ok", found="context found, nodes can be listed"), *kubernetes_checks(wanted, gpus))


def _gpus(context: str, pool: Pool) -> list[int]:
    """GPUs of each node that a job of this pool may run on."""
    selector = ",".join(f"{key}={value}" for key, value in sorted(pool.labels.items()))
    listed = json.loads(_kubectl("--context", context, "get", "nodes", f"--selector={selector}", "--output=json"))
    allocatable = [node.get("status", {}).get("allocatable", {}) for node in listed["items"]]
    return [sum(int(node.get(kind, 0)) for kind in _GPUS) for node in allocatable]


def _kubectl(*arguments: str) -> str:
    """Raises: FileNotFoundError: there is none. BackendError: it failed, in its own words."""
    command = ["kubectl", f"--request-timeout={_SECONDS}s", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS + 5)
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"kubectl: no answer within {_SECONDS} s") from error
    if done.returncode != 0:
        raise BackendError(f"kubectl: {' '.join(done.stderr.split())[:200]}")
    return done.stdout
