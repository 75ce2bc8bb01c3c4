"""Debian packages that a lab needs, installed without starting the services in them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.labs.network import must

NO_SERVICES = Path("/usr/sbin/policy-rc.d")  # Debian asks it before it starts a service that it installed


def missing(programs: Sequence[str]) -> list[str]:
    return [name for name in programs if not shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")]


def install(packages: Sequence[str]) -> None:
    """By `apt-get install`; says so on stderr. Raises: RuntimeError: apt-get failed."""
    print(f"installing {' '.join(packages)}", file=sys.stderr)
    ours = not NO_SERVICES.exists()
    if ours:
        NO_SERVICES.write_text("#!/bin/sh\nexit 101\n")
        NO_SERVICES.chmod(0o755)
    try:
        for arguments in (("update",), ("install", "-y", "--no-install-recommends", *packages)):
            must("apt-get", "-qq", *arguments, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})
    finally:
        if ours:
            NO_SERVICES.unlink()
