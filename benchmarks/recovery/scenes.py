"""The two labs as one scene: somewhere to train on spot, a way to lose it, and the next place to go to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks.recovery import managed_jobs
from benchmarks.recovery.steps import Step, read_notes
from tests.labs import network
from tests.labs.aws.lab import AwsLab
from tests.labs.slurm import SlurmLab, config

GRACE_SECONDS = 10
PROVISION_SECONDS = 20  # in the queue of a full partition, for both sides
_LIST = "import fsspec, json, sys; fs, at = fsspec.url_to_fs(sys.argv[1]); print(json.dumps(fs.ls(at, detail=False)))"
_MAKE = "import boto3; boto3.client('s3').create_bucket(Bucket='runs')"


class Scene(Protocol):
    """`gpus`, `mode` and `provider` are of train.yaml, `places` of a managed job; `uri` is where a name is stored."""

    @property
    def lab(self) -> SlurmLab | AwsLab: ...
    @property
    def home(self) -> Path: ...
    @property
    def gpus(self) -> tuple[str, int]: ...
    @property
    def provider(self) -> str: ...
    @property
    def mode(self) -> tuple[str, str]: ...
    @property
    def places(self) -> Sequence[Mapping[str, Any]]: ...
    @property
    def strategies(self) -> Sequence[str]: ...
    @property
    def pricing(self) -> str | None: ...
    def up(self) -> None: ...
    def folder(self, name: str) -> Path: ...
    def hand_over(self, folder: Path) -> None: ...
    def uri(self, name: str) -> str: ...
    def steps(self, name: str) -> list[Step]: ...
    def take_away(self) -> float: ...
    def give_back(self) -> None: ...
    def in_use(self) -> Sequence[Any]: ...


class SlurmScene:
    """Spot is one of two nodes. Somebody with priority takes it whole, so spot is full; reserved has the other."""

    gpus = ("H100", 2)
    provider = "slurm"
    mode = ("spot", "reserved")
    places = ({"infra": "slurm/lab/spot"}, {"infra": "slurm/lab/reserved"})
    strategies = ("FAILOVER",)
    pricing = config.pricing(spot=f"nodes: 1, notice: {GRACE_SECONDS} s", reserved="nodes: 2")

    def __init__(self, folder: Path) -> None:
        self.lab = SlurmLab(folder, grace_seconds=GRACE_SECONDS, provision_timeout_seconds=PROVISION_SECONDS)
        self.home = self.lab.client_home
        self._shared = self.lab.folder / "shared"

    def up(self) -> None:
        self.lab.up()
        self._as_root(["scontrol", "update", "PartitionName=spot", "Nodes=node1"]).wait()
        environ = managed_jobs.prepare(self.home, as_root=self._as_root)
        self.lab.run(["sky", "api", "start"], env=environ, check=True)

    def folder(self, name: str) -> Path:
        return self._shared / name

    def hand_over(self, folder: Path) -> None:
        for path in (folder.parent, folder, *folder.rglob("*")):
            os.chown(path, self.lab.account.uid, self.lab.account.uid)

    def uri(self, name: str) -> str:
        return str(self._shared / name)

    def steps(self, name: str) -> list[Step]:
        folder = self._shared / name
        return read_notes(path.name for path in folder.iterdir()) if folder.exists() else []

    def take_away(self) -> float:
        at = time.time()
        self.lab.preempt(("node1",))
        return at

    def give_back(self) -> None:
        self.lab.give_back()

    def in_use(self) -> Sequence[Any]:
        return self.lab.jobs()

    def _as_root(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        """On the login host; its environment bears the lab's mark, so the lab's end is its own."""
        host = network.find(self.lab.folder)["login"]
        return subprocess.Popen(host.command(*argv), env=self.lab.environment(), text=True)


class AwsScene:
    """The spot machine is killed without a word, and nobody sells spot any more; on demand there is."""

    gpus = ("A100", 8)
    provider = "aws"
    mode = ("spot", "on_demand")
    places = ({"infra": "aws", "use_spot": True}, {"infra": "aws", "use_spot": False})
    strategies = ("EAGER_NEXT_REGION", "FAILOVER")  # the default, and the one that tries the same place first
    pricing = None

    def __init__(self, folder: Path) -> None:
        self.lab = AwsLab(folder)
        self.home = self.lab.home

    def up(self) -> None:
        self.lab.up()
        environ = managed_jobs.prepare(self.home, as_root=self.lab.popen)
        self.lab.run([sys.executable, "-c", _MAKE], check=True)
        self.lab.run(["sky", "api", "start"], env=environ, check=True)

    def folder(self, name: str) -> Path:
        return self.lab.folder / "users" / name

    def hand_over(self, folder: Path) -> None:
        """Everybody is root there."""

    def uri(self, name: str) -> str:
        return f"s3://runs/{name}"

    def steps(self, name: str) -> list[Step]:
        listed = self.lab.run([sys.executable, "-c", _LIST, self.uri(name)])
        paths: Iterable[str] = json.loads(listed.stdout) if listed.returncode == 0 else []
        return read_notes(path.rpartition("/")[2] for path in paths)

    def take_away(self) -> float:
        (machine,) = self.lab.instances(state="running")
        self.lab.deny(spot=True)
        at = time.time()
        self.lab.preempt(machine.id, notice_seconds=0)
        return at

    def give_back(self) -> None:
        self.lab.allow()

    def in_use(self) -> Sequence[Any]:
        return self.lab.instances(state="running")


SCENES: dict[str, Callable[[Path], Scene]] = {"slurm": SlurmScene, "aws": AwsScene}
