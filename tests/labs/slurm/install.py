"""What the lab needs of its machine, and how it gets it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from functools import cache

from tests.labs import packages

PACKAGES = (
    "slurm-wlm",
    "slurm-wlm-basic-plugins",
    "munge",
    "openssh-server",
    "openssh-client",
    "rsync",
    "curl",
    "iproute2",
)
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "sshd", "ssh-keygen", "rsync", "curl", "ip")
MODULES = ("sky", "hostlist", "uv", "moto")
# proctrack/cgroup of Slurm 22.05 needs the freezer of cgroup v1, which mounts beside v2, too, where the kernel has it
FREEZER = "mount -t cgroup -o freezer cgroup"


@cache
def obstacle() -> str | None:
    """Why the lab cannot be on this machine; None where it can, after `install` perhaps."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "the Slurm lab needs root on Linux"
    if missing := [name for name in ("unshare", "nsenter", "mknod") if not shutil.which(name)]:
        return f"the Slurm lab needs {', '.join(missing)} (util-linux, coreutils)"
    if (said := _in_namespaces(f"{FREEZER} /mnt")) is not None:
        return f"the Slurm lab needs namespaces and the freezer of cgroup v1: {said}"
    if shutil.which("ip") and (said := _in_namespaces("ip link add br0 type bridge")) is not None:
        return f"the Slurm lab needs a network bridge: {said}"
    if modules := [name for name in MODULES if not importlib.util.find_spec(name)]:
        return f"the Slurm lab needs Python's {', '.join(modules)}: pip install 'skypilot[slurm]' uv 'moto[server]'"
    if (absent := packages.missing(PROGRAMS)) and not shutil.which("apt-get"):
        return f"the Slurm lab needs {', '.join(absent)}, and there is no apt-get"
    return None


def install() -> None:
    """Raises: RuntimeError: apt-get failed."""
    if packages.missing(PROGRAMS):
        packages.install(PACKAGES)


def _in_namespaces(script: str) -> str | None:
    """What a script complains about in namespaces of its own; None where it works."""
    unshare = ["unshare", "--net", "--uts", "--ipc", "--mount", "--propagation=private", "sh", "-c", script]
    done = subprocess.run(unshare, check=False, capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else None
