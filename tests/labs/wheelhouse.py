"""Wheels for hosts without a network: fetched once per machine with ordinary pip, kept under the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spotlaunch-labs"


def wheelhouse(requirements: Sequence[str]) -> Path:
    """A folder with `requirements` and all they need, for this interpreter. Only a finished folder bears its name.

    Raises: RuntimeError: pip found no wheel, or no network.
    """
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    key = hashlib.sha256("\n".join(sorted(requirements)).encode()).hexdigest()[:8]
    folder = CACHE / f"wheels-{tag}-{key}"
    if folder.is_dir():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=CACHE, prefix=".building-"))
    try:
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(building), *requirements]
        done = subprocess.run(pip, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"pip wheel {' '.join(requirements)}: exit {done.returncode}\n{done.stderr}")
        building.chmod(0o755)
        if not folder.is_dir():  # another lab may have been faster
            building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder
