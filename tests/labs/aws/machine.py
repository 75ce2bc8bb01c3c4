"""Process 1 of an instance, from the first instruction in its namespaces to sshd."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.labs.aws import rootfs
from tests.labs.aws.image import ACCOUNT, HOME, SHARED

PATIENCE_SECONDS = 30.0
MEMORY_LIMIT = "6g"  # of what a host writes; memory is used as it is written


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    id: str
    region: str
    private_ip: str
    public_ip: str
    gateway: str
    endpoint: str
    key: str  # an authorized key
    folder: str  # an empty one, to mount on
    image: str
    wheels: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def boot(machine: Machine) -> None:
    """Become the machine. Does not return."""
    _connect(machine)
    place = Path(machine.folder)
    rootfs.mount("-t", "tmpfs", "-o", f"size={MEMORY_LIMIT},mode=755", "tmpfs", place)
    root = place / "root"
    image = Path(machine.image)
    rootfs.lay(root, lower=Path("/"), upper=place / "upper", work=place / "work")
    subprocess.run(["cp", "--archive", image / "etc", root], check=True)
    home = root / HOME.relative_to("/")  # a layer of its own: one may not lie below another, as it does below "/"
    rootfs.lay(home, lower=image / HOME.relative_to("/"), upper=place / "home", work=place / "home.work")
    rootfs.furnish(root, wheels=Path(machine.wheels), shared=SHARED)
    name = f"ip-{machine.private_ip.replace('.', '-')}"
    socket.sethostname(name)
    rootfs.enter(root)
    _write(Path("/etc/hostname"), f"{name}\n")
    _write(Path("/etc/hosts"), f"127.0.0.1 localhost\n{machine.private_ip} {name}\n")
    _write(Path("/sys/class/dmi/id/sys_vendor"), "Amazon EC2\n")
    _write(HOME / ".ssh/authorized_keys", f"{machine.key}\n")
    _write(HOME / ".aws/config", f"[default]\nregion = {machine.region}\n")
    subprocess.run(["chown", f"{ACCOUNT}:{ACCOUNT}", HOME], check=True)
    subprocess.run(["chown", "-R", f"{ACCOUNT}:{ACCOUNT}", HOME / ".ssh", HOME / ".aws"], check=True)
    (HOME / ".ssh").chmod(0o700)
    # not in ~/.aws/config: SkyPilot's autodown looks away from it (sky/skylet/events.py)
    options = [
        f"SetEnv=AWS_ENDPOINT_URL={machine.endpoint}",
        "PasswordAuthentication=no",
        "UsePAM=no",
        "MaxStartups=150:30:200",
        "MaxSessions=200",
        "LogLevel=ERROR",
    ]
    os.execv("/usr/sbin/sshd", ["/usr/sbin/sshd", "-D", "-e", *(word for option in options for word in ("-o", option))])


def _connect(machine: Machine) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while "eth0" not in (name for _, name in socket.if_nameindex()):
        if time.monotonic() > deadline:
            raise RuntimeError("no network card came")
        time.sleep(0.005)
    commands = [
        "link set lo up",
        f"addr add {machine.private_ip}/16 dev eth0",
        f"addr add {machine.public_ip}/32 dev eth0",
        "link set eth0 up",
        f"route add default via {machine.gateway}",
    ]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    boot(Machine(**json.loads(sys.argv[1])))
