"""A lab from outside: up, down, what runs inside, and what a test asks and orders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from tests.labs import packages
from tests.labs.aws import image, query
from tests.labs.aws.metadata import ROLE
from tests.labs.aws.places import ENDPOINT, REGIONS, write_catalogues
from tests.labs.aws.query import Instance
from tests.labs.aws.records import Billed, Call, bill
from tests.labs.lab import Lab

INIT = "tests.labs.aws.init"
PROGRAMS = ("ip", "nsenter", "rsync", "setpriv", "ssh", "ssh-keygen", "sshd", "su", "sudo", "unshare", "useradd")
PACKAGES = ("iproute2", "openssh-client", "openssh-server", "passwd", "rsync", "sudo", "util-linux")
PATIENCE_SECONDS = 60.0
MAX_SOCKET_PATH = 100  # bytes; the kernel ends at 107


def obstacle() -> str | None:
    """Why this machine cannot carry the lab."""
    absent = packages.missing(PROGRAMS)
    unshare = ["unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "true"]
    if os.geteuid():
        return "the AWS lab needs root: its hosts are namespaces"
    if absent and not shutil.which("apt-get"):
        return f"the AWS lab needs {', '.join(absent)}, and there is no apt-get"
    if sys.version_info >= (3, 12):
        return "the AWS lab needs Python 3.11: Ray 2.9.3, which SkyPilot installs on machines, has no later wheels"
    if not shutil.which("unshare") or subprocess.run(unshare, check=False, capture_output=True).returncode:
        return "the AWS lab needs namespaces, and may not make them here"
    return None


class AwsLab(Lab):
    """Its hosts come and go, as they are asked for at its API."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, marker=".aws-lab")
        self.home = self.folder / "home"
        self._socket = self.folder / "socket"

    def up(self) -> None:
        if reason := obstacle():
            raise RuntimeError(reason)
        self._check_folder()
        if len(os.fsencode(self._socket)) > MAX_SOCKET_PATH:
            raise RuntimeError(f"{self.folder} is too long a name for the folder of a socket")
        if self._answers():
            return
        if packages.missing(PROGRAMS):
            packages.install(PACKAGES)
        self.down()
        self._lay_out()
        self._start()

    def down(self) -> None:
        holders = self._holders()
        for process in holders:
            process.kill()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while any(map(_is_alive, holders)):  # the first process inside ends after all others there
            if time.monotonic() > deadline:
                raise RuntimeError(f"the lab in {self.folder} does not die")
            time.sleep(0.02)
        self._remove_folder()
        shutil.rmtree(f"/tmp/sky_ssh_{self.user_id}", ignore_errors=True)  # sky/utils/command_runner.py

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Of a user of this cloud: a home with credentials, our interpreter first, SkyPilot offline."""
        return {
            "HOME": str(self.home),
            "USER": "root",
            "LOGNAME": "root",
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            "TMPDIR": str(self.folder / "tmp"),
            "PATH": f"{self.folder}/bin:{sysconfig.get_path('scripts')}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "AWS_ENDPOINT_URL": ENDPOINT,
            "AWS_DEFAULT_REGION": REGIONS[0],
            "AWS_EC2_METADATA_DISABLED": "true",
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
            "SKYPILOT_USER_ID": self.user_id,
            "SKYPILOT_USER": "lab",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(image.wheels()),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            **(extra or {}),
        }

    def command(self, *argv: str, cwd: Path | None = None) -> list[str]:
        """What runs `argv` inside. It stands at the door: a signal reaches it only (for others see `processes`).

        SIGKILL reaches `argv` too.
        """
        enter = ["nsenter", f"--target={self._first().pid}", "--net", "--pid", "--mount", "--uts", "--ipc"]
        return [*enter, "setpriv", "--pdeathsig=KILL", "env", f"--chdir={cwd or self.home}", *argv]

    def processes(self, words: str) -> list[psutil.Process]:
        """Those inside (not on hosts) with `words` in their command line, by their pids outside."""
        namespace = _pid_namespace(self._first().pid)
        found = [process for process in psutil.process_iter(["cmdline"]) if words in _command_line(process)]
        return [process for process in found if _pid_namespace(process.pid) == namespace]

    def kill(self, words: str) -> None:
        """SIGKILL to them and to all they have started: "sky.server.server" is SkyPilot's API server.

        With its parent alone gone, SkyPilot's queue keeps its port, and no new server can start.
        """
        for process in self.processes(words):
            for one in (process, *process.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    one.kill()

    def instances(self, *, state: str | None = None) -> list[Instance]:
        """As EC2 describes them in every region, oldest first; terminated ones too."""
        found = [one for region in REGIONS for one in query.describe_instances(self._socket, region)]
        return sorted((one for one in found if state in (None, one.state)), key=lambda one: one.launched_at)

    def calls(self) -> list[Call]:
        """Everything that started and ended machines, or tried to, oldest first."""
        return [Call.from_json(said) for said in query.ask(self._socket, "calls")]

    def independent_bill(self) -> list[Billed]:
        """Every instance, with the instants at which EC2 started and ended it."""
        return bill(self.calls())

    def deny(
        self,
        *,
        spot: bool | None = None,
        region: str | None = None,
        zone: str | None = None,
        instance_type: str | None = None,
        code: str = "InsufficientInstanceCapacity",
    ) -> None:
        """From now on refuse RunInstances where all that is given matches."""
        rule = {"spot": spot, "region": region, "zone": zone, "instance_type": instance_type, "code": code}
        query.ask(self._socket, "deny", **rule)

    def allow(self) -> None:
        """Forget every fault."""
        query.ask(self._socket, "allow")

    def fail(self, *, calls: int, action: str | None = None) -> None:
        """503 to the next calls of EC2 (of `action`)."""
        query.ask(self._socket, "fail", calls=calls, action=action)

    def slow(self, *, seconds: float, calls: int, action: str | None = None) -> None:
        """Answer the next calls of EC2 (of `action`) so much later."""
        query.ask(self._socket, "slow", seconds=seconds, calls=calls, action=action)

    def preempt(self, instance_id: str, *, notice_seconds: float) -> None:
        """EC2 takes a machine back: announced by its metadata service, then killed. 0: without a word."""
        query.ask(self._socket, "preempt", instance=instance_id, notice_seconds=notice_seconds)

    def terminate(self, instance: Instance) -> None:
        """As its owner does it, by the API."""
        query.terminate_instances(self._socket, instance.region, instance.id)

    def _lay_out(self) -> None:
        """A home with credentials, settings and catalogues; a folder of commands."""
        aws = image.cli()
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._marker.touch()
        for name in ("home/.aws", "home/.sky", "bin", "hosts", "tmp"):
            (self.folder / name).mkdir(parents=True)
        (self.home / ".aws/credentials").write_text("[default]\naws_access_key_id = LAB\naws_secret_access_key = lab\n")
        # without it SkyPilot makes a role of its own, with a policy that moto refuses
        (self.home / ".sky/config.yaml").write_text(f"aws:\n  remote_identity: {ROLE}\n")
        write_catalogues(self.home / ".sky/catalogs/v8")
        (self.folder / "bin/aws").symlink_to(aws)

    def _start(self) -> None:
        layer, wheels = image.image(), image.wheels()
        unshare = ["unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        with (self.folder / "log").open("a") as log:
            process = subprocess.Popen(
                [*unshare, sys.executable, "-m", INIT, str(self.folder), str(layer), str(wheels)],
                cwd=image.PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the lab does not answer\n{(self.folder / 'log').read_text()}")
            time.sleep(0.02)
        process.returncode = 0  # it outlives us, and is no child to wait for

    def _answers(self) -> bool:
        try:
            return bool(query.ask(self._socket, "ready"))
        except OSError:
            return False

    def _first(self) -> psutil.Process:
        """Process 1 inside."""
        for process in self._holders():
            if not _command_line(process).startswith("unshare"):
                return process
        raise RuntimeError(f"no lab is up in {self.folder}")

    def _holders(self) -> list[psutil.Process]:
        """`unshare` and its child, known by their command line, so that a killed `up` leaves nothing unknown."""
        wanted = f"{INIT} {self.folder} "
        return [process for process in psutil.process_iter(["cmdline"]) if wanted in _command_line(process)]


def _command_line(process: psutil.Process) -> str:
    return " ".join(process.info["cmdline"] or ())


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _pid_namespace(pid: int) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return None
