"""What instances boot from: a layer with the account `ubuntu` and SkyPilot's runtime, built once per machine.

SkyPilot's own images come with Ray and its dependencies too (sky/skylet/constants.py skips what is there); what
differs from them is the interpreter: SkyPilot would download Python 3.10, and hosts here have no way out.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from filelock import FileLock

from tests.labs.aws import rootfs
from tests.labs.wheelhouse import CACHE, wheelhouse

RAY = ["ray[default]==2.9.3", "pydantic-core==2.41.1", "click<8.3.0"]  # sky/skylet/constants.py, 0.14.1
REQUIREMENTS = ["skypilot[aws,remote]==0.14.1", *RAY, "setuptools<70", "pip", "wheel", "uv"]
ACCOUNT = "ubuntu"
HOME = Path("/home", ACCOUNT)
PYTHON = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
PROJECT = Path(__file__).resolve().parents[3]
SHARED = tuple(dict.fromkeys((Path(sys.base_prefix), Path(sys.prefix), PROJECT)))

_UV_SETTINGS = f'offline = true\nno-index = true\nfind-links = ["{rootfs.WHEELS}"]\npython-downloads = "never"\n'
_RUNTIME = HOME / "skypilot-runtime"
_SCRIPT = f"""
useradd --create-home --shell /bin/bash --password '*' {ACCOUNT}
echo '{ACCOUNT} ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/{ACCOUNT}
ssh-keygen -A
mkdir -p /etc/uv {HOME}/.local/bin {HOME}/.ssh {HOME}/.sky
printf '%s' '{_UV_SETTINGS}' > /etc/uv/uv.toml
install -m 755 /run/uv {HOME}/.local/bin/uv
chown -R {ACCOUNT}:{ACCOUNT} {HOME}
su {ACCOUNT} -c '
  set -e
  cd {HOME}; umask 022; uv={HOME}/.local/bin/uv
  $uv venv --quiet --seed --python {PYTHON} {_RUNTIME}
  export VIRTUAL_ENV={_RUNTIME} UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
  $uv pip install --quiet "setuptools<70" {" ".join(f'"{name}"' for name in RAY)}
  $uv pip install --quiet "{REQUIREMENTS[0]}"
  rm -rf {HOME}/.cache
'
"""


def wheels() -> Path:
    return wheelhouse(REQUIREMENTS)


def image() -> Path:
    """The layer, built if this machine does not have it; only a finished one bears its name."""
    recipe = "\n".join([_SCRIPT, str(wheels()), str(PYTHON)])
    folder = CACHE / f"aws-image-{hashlib.sha256(recipe.encode()).hexdigest()[:8]}"
    building = folder.with_suffix(".building")
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            shutil.rmtree(building, ignore_errors=True)  # of one that was killed
            _in_namespaces(building)
            (building / "upper").rename(folder)
            shutil.rmtree(building)
    return folder


def cli() -> Path:
    """The `aws` command: SkyPilot asks it who we are. In an environment of its own, since it pins botocore."""
    folder = CACHE / f"aws-cli-{wheels().name}"
    finished = folder / "finished"
    with FileLock(folder.with_suffix(".lock")):
        if not finished.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "--no-index", "--find-links", str(wheels()), "awscli"], check=True)
            finished.touch()
    return folder / "bin/aws"


def _in_namespaces(building: Path) -> None:
    unshare = ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--propagation", "private"]
    python = [sys.executable, "-m", "tests.labs.aws.image"]
    bake = ["setpriv", "--pdeathsig=KILL", *unshare, *python, str(building)]
    done = subprocess.run(bake, check=False, cwd=PROJECT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the image of the hosts: exit {done.returncode}\n{done.stdout}{done.stderr}")


def _bake(building: Path) -> None:
    """Write the layer to `building/upper`; in namespaces that end with this process."""
    root = building / "root"
    rootfs.lay(root, lower=Path("/"), upper=building / "upper", work=building / "work")
    rootfs.furnish(root, wheels=wheels(), shared=SHARED)
    with zipfile.ZipFile(next(wheels().glob("uv-*.whl"))) as wheel:
        binary = next(name for name in wheel.namelist() if name.endswith(".data/scripts/uv"))
        (root / "run/uv").write_bytes(wheel.read(binary))
    rootfs.enter(root)
    subprocess.run(["bash", "-ec", _SCRIPT], check=True, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})


if __name__ == "__main__":
    _bake(Path(sys.argv[1]))
    os.sync()
