"""Hosts follow instances: one is started for each that runs, and killed when it no longer does."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.labs.aws.machine import Machine
from tests.labs.aws.places import ENDPOINT, GATEWAY

LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 30.0
_KEY = re.compile(r"ssh_authorized_keys:\s*- \|-\s*(ssh-\S+ \S+)")
log = logging.getLogger(__name__)
Instances = Callable[[], Iterable[Any]]  # moto's


class Hosts:
    """One for each instance that runs."""

    def __init__(
        self, folder: Path, *, image: Path, wheels: Path, instances: Instances, after_shutdown: Callable[[Any], None]
    ) -> None:
        self.folder = folder
        self.image, self.wheels = image, wheels
        self._instances = instances
        self._after_shutdown = after_shutdown
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def follow(self, look: threading.Event) -> None:
        """For ever; `look` wakes it before its time."""
        while True:
            try:
                self._reconcile()
            except Exception:
                log.exception("hosts")
            look.wait(LOOK_SECONDS)
            look.clear()

    def _reconcile(self) -> None:
        wanted = {instance.id: instance for instance in self._instances() if instance.state == "running"}
        for name in self._running.keys() - wanted:
            _kill(self._running.pop(name))
            log.warning("%s is gone", name)
        for name in wanted.keys() - self._running:
            self._running[name] = self._start(wanted[name])
            log.warning("%s runs", name)
        for name in [name for name, process in self._running.items() if process.poll() is not None]:
            log.warning("%s shut itself down", name)
            self._after_shutdown(wanted[name])
            del self._running[name]

    def _start(self, instance: Any) -> subprocess.Popen[bytes]:
        place = self.folder / instance.id
        place.mkdir(parents=True, exist_ok=True)
        machine = Machine(
            id=instance.id,
            region=instance.availability_zone[:-1],
            private_ip=instance.private_ip,
            public_ip=instance.public_ip or instance.private_ip,
            gateway=GATEWAY,
            endpoint=ENDPOINT,
            key=_key(instance),
            folder=str(place),
            image=str(self.image),
            wheels=str(self.wheels),
        )
        unshare = ["unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child"]
        boot = [*unshare, "--propagation", "private", sys.executable, "-m", "tests.labs.aws.machine", machine.to_json()]
        process = subprocess.Popen(boot, stdin=subprocess.DEVNULL)
        try:
            _connect(process.pid, machine)
        except BaseException:
            _kill(process)
            raise
        return process


def _connect(pid: int, machine: Machine) -> None:
    """Give the process its network card, as soon as it has a network of its own."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while Path(f"/proc/{pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{machine.id} has no network of its own")
        time.sleep(0.005)
    card = f"v{machine.id[-12:]}"
    ip(
        f"link add {card} type veth peer name eth0 netns {pid}",
        f"link set {card} master br0 up",
        f"route replace {machine.public_ip}/32 dev br0",
    )


def ip(*commands: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """As a preempted machine goes: no signal reaches any process in it."""
    process.kill()  # and --kill-child its process 1, and the kernel the rest
    process.wait()


def _key(instance: Any) -> str:
    """From UserData, where SkyPilot puts it (sky/templates/aws-ray.yml.j2)."""
    found = _KEY.search(instance.user_data.decode()) if instance.user_data else None
    return found.group(1) if found else ""
