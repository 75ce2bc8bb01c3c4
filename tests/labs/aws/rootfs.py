"""The root of a host: a layer over the machine's own file system, with its own devices, processes and scratch space."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

WHEELS = "/opt/spotlaunch/wheels"
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "fuse")


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def lay(root: Path, *, lower: Path, upper: Path, work: Path) -> None:
    """Mount `lower` on `root` so that what is written goes to `upper`."""
    for folder in (root, upper, work):
        folder.mkdir(parents=True, exist_ok=True)
    mount("-t", "overlay", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", root)


def furnish(root: Path, *, wheels: Path, shared: Sequence[Path]) -> None:
    """What a root needs to live in; to be called in its pid namespace.

    `shared` folders are seen at their own paths, read-only.
    """
    mount("-t", "proc", "proc", root / "proc")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", root / "dev")
    for name in DEVICES:
        if (device := Path("/dev", name)).exists():
            (root / "dev" / name).touch()
            mount("--bind", device, root / "dev" / name)
    for name, options in {
        "pts": ("devpts", "newinstance,ptmxmode=0666,mode=620,gid=5"),
        "shm": ("tmpfs", "mode=1777"),
    }.items():
        (root / "dev" / name).mkdir()
        mount("-t", options[0], "-o", options[1], options[0], root / "dev" / name)
    (root / "dev/ptmx").symlink_to("pts/ptmx")
    (root / "dev/fd").symlink_to("/proc/self/fd")
    for scratch, mode in {"tmp": "1777", "run": "755"}.items():
        mount("-t", "tmpfs", "-o", f"mode={mode}", "tmpfs", root / scratch)
    (root / "run/sshd").mkdir()
    _share(root, wheels, Path(WHEELS))
    for path in shared:
        _share(root, path, path)


def _share(root: Path, source: Path, at: Path) -> None:
    place = root / at.relative_to("/")
    place.mkdir(parents=True, exist_ok=True)
    for parent in at.parents:  # /root is closed to others on most machines, /root/.pyenv is not
        below = root / parent.relative_to("/")
        below.chmod(below.stat().st_mode | 0o055)
    mount("--bind", source, place)
    mount("-o", "remount,bind,ro", place)


def enter(root: Path) -> None:
    os.chroot(root)
    os.chdir("/")
