"""What the lab needs of its machine, and how it gets it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from tests.labs.network import must

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
NO_SERVICES = Path("/usr/sbin/policy-rc.d")  # Debian asks it before it starts a service that it installed


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
    if _missing() and not shutil.which("apt-get"):
        return f"the Slurm lab needs {', '.join(_missing())}, and there is no apt-get"
    return None


def install() -> None:
    """`apt-get install` what is missing, starting none of it; says so on stderr.

    Raises: RuntimeError: apt-get failed.
    """
    if not _missing():
        return
    print(f"installing {' '.join(PACKAGES)}", file=sys.stderr)
    ours = not NO_SERVICES.exists()
    if ours:
        NO_SERVICES.write_text("#!/bin/sh\nexit 101\n")
        NO_SERVICES.chmod(0o755)
    try:
        for arguments in (("update",), ("install", "-y", "--no-install-recommends", *PACKAGES)):
            must("apt-get", "-qq", *arguments, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})
    finally:
        if ours:
            NO_SERVICES.unlink()


def _in_namespaces(script: str) -> str | None:
    """What a script complains about in namespaces of its own; None where it works."""
    unshare = ["unshare", "--net", "--uts", "--ipc", "--mount", "--propagation=private", "sh", "-c", script]
    done = subprocess.run(unshare, check=False, capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else None


def _missing() -> list[str]:
    return [name for name in PROGRAMS if not shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")]
