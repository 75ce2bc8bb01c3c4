"""Slurm clusters as their `scontrol` shows them, over the ssh that SkyPilot uses: `~/.slurm/config`."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from launcher.core.doctor.checkup import Check
from launcher.core.doctor.clusters import SlurmCluster, slurm_checks
from launcher.core.prices.pricing import Pool

_CONFIG = Path("~/.slurm/config")
_CONNECT_SECONDS = 10
_SSH_FAILED = 255  # ssh(1), EXIT STATUS; any other is the command's own
# As SkyPilot's own connections (sky/utils/command_runner.py, 0.14.1), but never with a question to the user.
_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": str(_CONNECT_SECONDS),
    "StrictHostKeyChecking": "no",
    "UserKnownHostsFile": "/dev/null",
    "LogLevel": "ERROR",
}
_SHOW = "scontrol show config && scontrol show partition --oneliner"


def hosts() -> list[str]:
    """Clusters that SkyPilot knows: each `Host` without a wildcard."""
    try:
        text = _CONFIG.expanduser().read_text(encoding="utf-8")
    except OSError:
        return []
    lines = re.findall(r"^\s*Host[\s=]+(.+?)\s*$", text, re.IGNORECASE | re.MULTILINE)
    return [host for line in lines for host in line.split() if not set(host) & set("*?!")]


def cluster(host: str, pools: Sequence[Pool]) -> tuple[Check, ...]:
    """Of the cluster, and of each pool that pricing.yaml has there."""
    options = [part for key, value in _OPTIONS.items() for part in ("-o", f"{key}={value}")]
    command = ["ssh", "-F", str(_CONFIG.expanduser()), *options, host, _SHOW]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=40
        )
    except FileNotFoundError:
        return (_failed(host, "there is no ssh here", fix="install openssh-client"),)
    except subprocess.TimeoutExpired:
        return (_failed(host, "no answer within 40 s", fix=f"try `ssh -F {_CONFIG} {host} scontrol ping`"),)
    if done.returncode == 0:
        return slurm_checks(host, _parsed(done.stdout), pools)
    words = (done.stderr.strip().splitlines() or ["no word why"])[-1][:200]
    if done.returncode == _SSH_FAILED:
        is_credentials = "permission denied" in words.lower()
        fix = f"let `ssh -F {_CONFIG} {host} true` succeed without a question: HostName, User and IdentityFile there"
        return (_failed(host, f"ssh: {words}", fix=fix, is_credentials=is_credentials),)
    return (_failed(host, f"scontrol: {words}", fix="name a login node on which `scontrol show config` works"),)


def _failed(host: str, found: str, *, fix: str, is_credentials: bool = False) -> Check:
    return Check(name=f"slurm {host}", state="failed", found=found, fix=fix, is_credentials=is_credentials)


def _parsed(text: str) -> SlurmCluster:
    """`Key   = value` a line, and for each partition one line of `Key=value`."""
    partitions = {}
    for line in re.findall(r"^PartitionName=.+$", text, re.MULTILINE):
        pairs = dict(re.findall(r"(\w+)=(\S*)", line))
        partitions[pairs["PartitionName"]] = pairs
    return SlurmCluster(config=dict(re.findall(r"^(\w+)\s+= (.*?)\s*$", text, re.MULTILINE)), partitions=partitions)
