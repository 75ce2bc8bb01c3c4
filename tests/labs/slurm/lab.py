"""Bring the cluster up in one folder, run commands on it as its user, take nodes away, and remove all of it."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from tests.labs import network
from tests.labs.lab import Lab
from tests.labs.network import Account, Host, must
from tests.labs.slurm import config
from tests.labs.slurm.accounts import Allocation, ended_allocations, live_allocations
from tests.labs.slurm.install import FREEZER, install, obstacle
from tests.labs.wheelhouse import wheelhouse

PROJECT = Path(__file__).parents[3]
CGROUPS = Path("/sys/fs/cgroup")
S3_PORT = 9000
PATIENCE_SECONDS = 60.0


class SlurmLab(Lab):
    """The hosts have their own /tmp, and see of it, and of homes that are closed to other users, the folder,
    the interpreter, the project and the `shared` paths only.
    """

    def __init__(
        self,
        folder: Path,
        *,
        grace_seconds: int = 10,
        provision_timeout_seconds: int = 20,
        shared: Sequence[Path] = (),
    ) -> None:
        super().__init__(folder, marker=".slurm-lab")
        self.grace_seconds = grace_seconds
        self.provision_timeout_seconds = provision_timeout_seconds
        # an own number, for Slurm's cgroups are named after the node and the user
        self.account = Account(name="skypilot", uid=20_000 + self._seed % 40_000, home=self.folder / "home")
        self.client_home = self.folder / "client"
        self.python = sys.executable  # sees torch and this project on every host: they share the machine's files
        self.s3_endpoint = f"http://{config.ADDRESSES['login']}:{S3_PORT}"
        self._shared = [Path(path).resolve() for path in shared]

    def up(self) -> None:
        if reason := obstacle():
            raise RuntimeError(reason)
        self._check_folder()
        if self._is_up():
            return
        self.down()
        install()
        self._lay_out()
        self._build()
        self._start_daemons()

    def down(self) -> None:
        """Kill everything inside, remove its cgroups and the folder."""
        network.destroy(self.folder)
        _eventually("remove the lab's cgroups", self._without_cgroups)
        self._remove_folder()

    @cached_property
    def _wheels(self) -> Path:
        return wheelhouse(_runtime_requirements())

    def _is_up(self) -> bool:
        if not self._marker.exists() or not (settings := self._marker.read_text()):
            return False  # none, or one whose maker was killed
        if settings != self._settings():
            raise RuntimeError(f"{self.folder} has a lab of other settings ({settings.strip()}); take it down first")
        if len(network.find(self.folder)) < len(config.ADDRESSES) or self._answering_nodes() < len(config.NODES):
            raise RuntimeError(f"the lab in {self.folder} is no longer whole; take it down first")
        return True

    def _settings(self) -> str:
        shared = "".join(f", {path}" for path in self._shared)
        return f"grace {self.grace_seconds} s, provision timeout {self.provision_timeout_seconds} s{shared}\n"

    def _lay_out(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        self._marker.touch()
        for name in ("etc/slurm", "etc/munge", "keys", "var/state", "gpus"):
            (self.folder / name).mkdir(parents=True)
        for name in ("shared", "home", "bin", "client/.slurm", "client/.sky/catalogs/v8/common"):
            (self.folder / name).mkdir(parents=True)
        for number in range(config.GPUS):
            os.mknod(self.folder / f"gpus/gpu{number}", 0o020666, os.makedev(1, 3))
        for key in ("host", "account"):
            must("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / "keys" / key))
        self._write_files()
        (self.folder / "etc/munge/munge.key").chmod(0o600)
        for own in (self.folder / "home", self.folder / "client", self.folder / "shared", self.folder / "keys/account"):
            must("chown", "-R", f"{self.account.uid}:{self.account.uid}", str(own))

    def _write_files(self) -> None:
        texts = {
            "etc/slurm/slurm.conf": config.slurm_conf(self.folder, grace_seconds=self.grace_seconds),
            "etc/slurm/gres.conf": config.gres_conf(self.folder),
            "etc/slurm/cgroup.conf": config.cgroup_conf(),
            "etc/sshd_config": config.sshd_config(self.folder, self.account.name),
            "etc/munge/munge.key": os.urandom(512).hex(),
            "home/.hushlogin": "",
            "home/.bashrc": "",
            "bin/curl": config.curl_shim(self.folder / "bin/uv"),
            "bin/uv": config.uv_shim(uv=_uv(), wheels=self._wheels, python=os.path.realpath(sys.executable)),
            "client/.slurm/config": config.ssh_config(self.folder, self.account.name),
            "client/.sky/config.yaml": config.sky_config(provision_timeout_seconds=self.provision_timeout_seconds),
            "client/.sky/catalogs/v8/common/accelerators.csv": config.accelerators_csv(),
        }
        for name, text in texts.items():
            (self.folder / name).write_text(text)
        for program in (self.folder / "bin").iterdir():
            program.chmod(0o755)

    def _build(self) -> None:
        shared = {Path(sys.prefix), Path(sys.base_prefix).resolve(), PROJECT, self._wheels, *self._shared}
        network.build(
            self.folder,
            config.ADDRESSES,
            account=self.account,
            shared=sorted(shared),
            mounts={
                "/etc/slurm": self.folder / "etc/slurm",
                "/etc/munge": self.folder / "etc/munge",
                "/usr/bin/curl": self.folder / "bin/curl",
            },
        )
        for name in config.NODES:
            mount = f"mount -t tmpfs tmpfs {CGROUPS}; mkdir {CGROUPS}/freezer; {FREEZER} {CGROUPS}/freezer"
            network.find(self.folder)[name].run("sh", "-ec", mount)

    def _start_daemons(self) -> None:
        var = self.folder / "var"
        for name, host in network.find(self.folder).items():
            logs = (f"--log-file={var}/munged.{name}.log", f"--seed-file={var}/munged.{name}.seed")
            self._daemon(host, "munged", "--force", f"--pid-file={var}/munged.{name}.pid", *logs)
            if name == "login":
                self._daemon(host, "slurmctld")
                self._daemon(host, "sshd", "-f", f"{self.folder}/etc/sshd_config", "-E", f"{var}/sshd.log")
            else:
                self._daemon(host, "slurmd", "-N", name)
        _eventually(f"start two Slurm nodes (logs: {var})", lambda: self._answering_nodes() == len(config.NODES))
        self._marker.write_text(self._settings())

    def _daemon(self, host: Host, name: str, *arguments: str) -> None:
        """It goes to the background by itself; its output is in its log."""
        env = {network.MARK: f"{self.folder}:{host.name}", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TZ": "UTC"}
        output = self.folder / "var" / f"{name}.{host.name}.out"
        with output.open("w") as out:
            command = host.command(f"/usr/sbin/{name}", *arguments)
            done = subprocess.run(command, check=False, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
            if done.returncode:
                raise RuntimeError(f"{name} on {host.name} did not start: {output.read_text()}")

    def _without_cgroups(self) -> bool:
        """Remove <node>/uid_<user> of Slurm's; another lab has the same nodes, but not our user."""
        ours = f"/mnt/slurm_*/uid_{self.account.uid}"
        remove = f"{FREEZER} /mnt; find {ours} -depth -type d -exec rmdir {{}} +; rmdir /mnt/slurm_*; ! ls -d {ours}"
        unshare = ["unshare", "--mount", "--propagation=private", "sh", "-c", remove]
        return subprocess.run(unshare, check=False, capture_output=True).returncode == 0

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Of a user at the login host: SkyPilot offline, our interpreter first, HOME apart from the cluster's."""
        return {
            network.MARK: f"{self.folder}:login",
            "HOME": str(self.client_home),
            "USER": self.account.name,
            "LOGNAME": self.account.name,
            "LANG": "C.UTF-8",
            "TZ": "UTC",  # squeue prints local time
            "PATH": f"{sysconfig.get_path('scripts')}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
            "SKYPILOT_USER_ID": self.user_id,
            "SKYPILOT_USER": self.account.name,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self._wheels),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            **(extra or {}),
        }

    def command(self, *argv: str, host: str = "login", cwd: Path | None = None) -> list[str]:
        """What runs `argv` on `host` as the lab's user; signals sent to it reach `argv`."""
        place = network.find(self.folder).get(host)
        if place is None:
            raise RuntimeError(f"no host {host}: the lab in {self.folder} is not up")
        return place.command(*argv, account=self.account, cwd=cwd or self.client_home)

    def _said(self, *argv: str) -> str:
        return must(*self.command(*argv), env=self.environment())

    def start_s3(self, bucket: str) -> dict[str, str]:
        """An S3 with `bucket` that all hosts reach, at `s3_endpoint`; the environment that leads clients there."""
        put = f"import urllib.request as u; u.urlopen(u.Request('{self.s3_endpoint}/{bucket}', method='PUT'))"

        def has_bucket() -> bool:
            return self.run([self.python, "-c", put]).returncode == 0

        if not has_bucket():
            moto = [self.python, "-m", "moto.server", "-H", config.ADDRESSES["login"], "-p", str(S3_PORT)]
            with (self.folder / "var/s3.log").open("w") as log:
                self.run(["setsid", "--fork", *moto], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            _eventually("start S3", has_bucket)
        keys = {"AWS_ACCESS_KEY_ID": "lab", "AWS_SECRET_ACCESS_KEY": "lab", "AWS_DEFAULT_REGION": "us-east-1"}
        return {"AWS_ENDPOINT_URL": self.s3_endpoint, **keys}

    def preempt(self, nodes: Sequence[str] = config.NODES) -> int:
        """Submit a job of the reserved partition that takes `nodes` whole; Slurm preempts what runs there."""
        where = ["-p", "reserved", "-J", "intruder", "-o", "/dev/null", "--exclusive"]
        size = [f"--nodes={len(nodes)}", f"--nodelist={','.join(nodes)}"]
        return int(self._said("sbatch", "--parsable", *where, *size, "--wrap", "sleep infinity"))

    def give_back(self) -> None:
        """End all preempting jobs, and wait until they are gone."""
        self._said("scancel", "--name=intruder")
        _eventually("end the intruders", lambda: all(job.name != "intruder" for job in self.jobs()))

    def jobs(self) -> list[Allocation]:
        """What is pending, running or completing, by `squeue`."""
        return live_allocations(self._said("squeue", "--noheader", f"--format={Allocation.SQUEUE_FORMAT}"))

    def independent_bill(self) -> list[Allocation]:
        """Every allocation that Slurm made, ended ones from its own log of completed jobs."""
        log = self.folder / "var/ended-jobs"
        ended = ended_allocations(log.read_text() if log.exists() else "")
        known = {job.job_id for job in ended}
        return ended + [job for job in self.jobs() if job.job_id not in known and job.start_at]

    def _answering_nodes(self) -> int:
        states = self.run(["sinfo", "--noheader", "--Node", "--partition=spot", "--format=%T"]).stdout.split()
        return sum(state in ("idle", "allocated", "mixed", "completing") for state in states)


def _runtime_requirements() -> list[str]:
    """What SkyPilot installs on a node, and what builds its wheel for that; <70: sky/skylet/constants.py."""
    version = importlib.metadata.version("skypilot")
    return [f"skypilot[slurm,remote]=={version}", "pip", "setuptools<70", "wheel"]


def _uv() -> str:
    import uv

    return str(uv.find_uv_bin())


def _eventually(what: str, look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not look():
        if time.monotonic() > deadline:
            raise RuntimeError(f"could not {what} within {PATIENCE_SECONDS:.0f} s")
        time.sleep(0.1)
