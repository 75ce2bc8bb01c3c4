"""The lab keeps its promises: machines that live and die as EC2's do, its faults, its bill, and nothing left behind."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from tests.labs.aws.image import PROJECT
from tests.labs.aws.lab import INIT, AwsLab, obstacle
from tests.labs.aws.places import GATEWAY, IMAGE
from tests.labs.aws.query import Instance

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

PATIENCE_SECONDS = 90.0  # for a loaded machine; nothing is asserted about less than a notice
T = TypeVar("T")

ZONE = "us-east-2a"
USER_DATA = """#cloud-config
users:
  - name: ubuntu
    ssh_authorized_keys:
      - |-
        {key}
"""
SSH = ["ssh", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
LISTEN = """
import socket
heard = socket.create_server(("0.0.0.0", 7000)).accept()[0]
while word := heard.recv(100):
    print(word.decode(), end="")
"""
TALK = f"""
exec 3<>/dev/tcp/{GATEWAY}/7000
trap 'echo signal >&3' TERM INT HUP EXIT
echo alive >&3
while :; do sleep 0.1; done
"""
NOTICE = """
import os, time
from trainer_hooks.notice.sources import default_names, open_sources
source = open_sources(default_names(), notice_seconds=None, environ=os.environ)[0]
while (heard := source.poll()) is None:
    time.sleep(0.1)
print(heard.kind, heard.source, heard.seconds_left)
"""


@pytest.fixture(scope="module")
def whole_lab() -> Iterator[AwsLab]:
    if reason := obstacle():
        pytest.skip(reason)
    with AwsLab(_a_folder()) as lab:
        lab.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "key"], check=True)
        yield lab


@pytest.fixture
def lab(whole_lab: AwsLab) -> Iterator[AwsLab]:
    yield whole_lab
    whole_lab.allow()
    for instance in whole_lab.instances(state="running"):
        whole_lab.terminate(instance)


@pytest.fixture
def folder() -> Iterator[Path]:
    if reason := obstacle():
        pytest.skip(reason)
    folder = _a_folder()
    yield folder
    AwsLab(folder).down()


def test_an_instance_comes_up_as_asked_for(lab: AwsLab) -> None:
    instance = a_machine(lab, spot=True, tags={"team": "vision", "run-id": "r42"})

    assert (instance.spot, instance.zone, instance.instance_type) == (True, ZONE, "g6.xlarge")
    assert instance.tags == {"team": "vision", "run-id": "r42"}
    assert said(lab, instance, "id -un; hostname; sudo id -un").split() == ["ubuntu", name(instance), "root"]


def test_a_training_finds_its_interpreter_torch_and_the_checkout_but_cannot_change_them(lab: AwsLab) -> None:
    instance = a_machine(lab)

    imported = said(lab, instance, f"{sys.executable} -c 'import torch, trainer_hooks; print(trainer_hooks.__file__)'")
    touched = ssh(lab, instance, f"sudo touch {PROJECT}/tests/labs/aws/touched {sys.prefix}/touched /etc/touched")

    assert imported.strip() == f"{PROJECT}/trainer_hooks/__init__.py"
    assert touched.stderr.count("Read-only file system") == 2
    assert not Path("/etc/touched").exists()


def test_machines_reach_each_other_and_their_bucket_and_nothing_else(lab: AwsLab) -> None:
    one, other = a_machine(lab), a_machine(lab, zone="us-west-2a")
    lab.run(["aws", "s3", "mb", "s3://weights"], check=True)
    put = "import s3fs; s3 = s3fs.S3FileSystem(); s3.pipe('weights/a', b'1'); print(s3.ls('weights'))"

    neighbour = said(lab, one, f"exec 3<>/dev/tcp/{other.private_ip}/22; head -c 4 <&3")
    bucket = said(lab, one, f'{sys.executable} -c "{put}"')
    outside = ssh(lab, one, "exec 3<>/dev/tcp/1.1.1.1/443")

    assert one.private_ip != other.private_ip
    assert neighbour == "SSH-"
    assert bucket.strip() == "['weights/a']"
    assert outside.returncode


def test_denied_capacity_is_refused_there_and_granted_elsewhere(lab: AwsLab) -> None:
    lab.deny(spot=True, zone=ZONE)
    before = len(lab.calls())

    refused = run_instances(lab, spot=True, zone=ZONE)
    on_demand = run_instances(lab, spot=False, zone=ZONE)
    next_zone = run_instances(lab, spot=True, zone="us-east-2b")
    lab.allow()
    again = run_instances(lab, spot=True, zone=ZONE)

    assert "(InsufficientInstanceCapacity)" in refused.stderr
    assert [on_demand.returncode, next_zone.returncode, again.returncode] == [0, 0, 0]
    assert [call.error for call in lab.calls()[before:]] == ["InsufficientInstanceCapacity", None, None, None]
    assert [call.zone for call in lab.calls()[before:]] == [ZONE, ZONE, "us-east-2b", ZONE]


def test_an_outage_lasts_for_so_many_calls(lab: AwsLab) -> None:
    lab.fail(calls=2, action="RunInstances")

    answers = [run_instances(lab, env={"AWS_MAX_ATTEMPTS": "1"}) for _ in range(3)]

    assert [answer.returncode == 0 for answer in answers] == [False, False, True]
    assert "(Unavailable)" in answers[0].stderr
    assert lab.instances(state="running")  # a test may look whenever it likes


def test_a_slow_answer_is_late(lab: AwsLab) -> None:
    lab.slow(seconds=3.0, calls=1, action="RunInstances")

    started = time.monotonic()
    run_instances(lab)
    late = time.monotonic() - started

    assert late >= 3.0


def test_a_preempted_machine_dies_without_a_signal(lab: AwsLab) -> None:
    instance = a_machine(lab)
    friend = lab.popen([sys.executable, "-u", "-c", LISTEN], stdout=subprocess.PIPE)
    training = lab.popen([*SSH, *at(instance), f"setsid bash -c {shlex.quote(TALK)}"])
    assert friend.stdout
    assert friend.stdout.readline() == "alive\n"

    lab.preempt(instance.id, notice_seconds=0)

    wait_for(lambda: not on_this_machine(instance))
    wait_for(lambda: ssh(lab, instance, "true").returncode)
    training.kill()
    friend.kill()
    assert friend.communicate()[0] == ""
    assert lab.calls()[-1].action == "SpotInterruption"
    assert [one.state for one in lab.instances() if one.id == instance.id] == ["terminated"]


def test_the_hooks_hear_the_notice_before_the_machine_is_taken(lab: AwsLab) -> None:
    instance = a_machine(lab)
    hooks = lab.popen([*SSH, *at(instance), f"{sys.executable} -"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    announced_at = datetime.now(UTC)
    lab.preempt(instance.id, notice_seconds=12.0)
    heard = hooks.communicate(NOTICE)[0].split()
    still_there = ssh(lab, instance, "true").returncode == 0
    wait_for(lambda: lab.calls()[-1].action == "SpotInterruption")

    assert heard[:2] == ["preemption", "ec2"]
    assert 0.0 < float(heard[2]) <= 12.0
    assert still_there
    assert 12.0 <= (lab.calls()[-1].at - announced_at).total_seconds() < 14.0


def test_a_machine_that_halts_is_no_longer_billed(lab: AwsLab) -> None:
    instance = a_machine(lab)

    ssh(lab, instance, "sudo kill 1")

    wait_for(lambda: not lab.instances(state="running"))
    assert lab.calls()[-1].action == "Shutdown"
    assert lab.independent_bill()[-1].ended_at == lab.calls()[-1].at


def test_the_bill_runs_from_the_grant_to_the_end(lab: AwsLab) -> None:
    before = datetime.now(UTC)
    instance = a_machine(lab, spot=False, tags={"run-id": "r43"})
    up_at = datetime.now(UTC)
    lab.terminate(instance)
    after = datetime.now(UTC)

    billed = lab.independent_bill()[-1]

    assert (billed.id, billed.spot, billed.zone, billed.tags) == (instance.id, False, ZONE, {"run-id": "r43"})
    assert billed.ended_at
    assert before < billed.started_at < up_at < billed.ended_at < after


def test_down_leaves_nothing(folder: Path) -> None:
    before = traces(folder)
    lab = AwsLab(folder)

    lab.up()
    lab.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "key"], check=True)
    a_machine(lab)
    lab.run(["setsid", "--fork", "sleep", "1000"], stdout=subprocess.DEVNULL)
    started = everything(folder)
    names = {process.name() for process in started}
    lab.down()

    assert {"unshare", "sshd", "sleep"} <= names
    assert alive(started) == []
    assert traces(folder) == before
    assert not folder.exists()


def test_a_killed_up_is_cleaned_by_the_next_down(folder: Path) -> None:
    before = traces(folder)
    up = subprocess.Popen([sys.executable, "-m", "tests.labs.aws", "--folder", str(folder), "up"], cwd=PROJECT)
    wait_for((folder / "log").exists)
    up.send_signal(signal.SIGKILL)
    up.wait()
    started = wait_for(lambda: everything(folder))

    AwsLab(folder).down()

    assert alive(started) == []
    assert traces(folder) == before
    assert not folder.exists()


def test_labs_of_two_folders_do_not_meet(lab: AwsLab, folder: Path) -> None:
    with AwsLab(folder) as other:
        a_machine(lab)

        assert other.instances() == []
        assert other.processes("tests.labs.aws.api")[0].pid != lab.processes("tests.labs.aws.api")[0].pid

    assert lab.instances(state="running")


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()

    with pytest.raises(RuntimeError, match="neither empty nor a lab"):
        AwsLab(tmp_path).up()
    AwsLab(tmp_path).down()

    assert (tmp_path / "thesis.tex").exists()


def run_instances(
    lab: AwsLab,
    *,
    spot: bool = True,
    zone: str = ZONE,
    tags: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    asked: dict[str, object] = {
        "ImageId": IMAGE,
        "InstanceType": "g6.xlarge",
        "MinCount": 1,
        "MaxCount": 1,
        "NetworkInterfaces": [{"DeviceIndex": 0, "SubnetId": subnet(lab, zone), "AssociatePublicIpAddress": True}],
        "UserData": USER_DATA.format(key=(lab.home / "key.pub").read_text().strip()),
    }
    if spot:
        asked["InstanceMarketOptions"] = {"MarketType": "spot"}
    if tags:
        pairs = [{"Key": key, "Value": value} for key, value in tags.items()]
        asked["TagSpecifications"] = [{"ResourceType": "instance", "Tags": pairs}]
    order = ["aws", "ec2", "run-instances", "--region", zone[:-1], "--cli-input-json", json.dumps(asked)]
    return lab.run(order, env=env)


def subnet(lab: AwsLab, zone: str) -> str:
    wanted = ["--filters", f"Name=availability-zone,Values={zone}", "--query", "Subnets[0].SubnetId"]
    return lab.run(
        ["aws", "ec2", "describe-subnets", "--region", zone[:-1], *wanted, "--output", "text"]
    ).stdout.strip()


def a_machine(lab: AwsLab, *, spot: bool = True, zone: str = ZONE, tags: Mapping[str, str] | None = None) -> Instance:
    """One that answers."""
    granted = run_instances(lab, spot=spot, zone=zone, tags=tags)
    assert granted.returncode == 0, granted.stderr
    wanted = json.loads(granted.stdout)["Instances"][0]["InstanceId"]
    instance = next(one for one in lab.instances(state="running") if one.id == wanted)
    wait_for(lambda: ssh(lab, instance, "true").returncode == 0)
    return instance


def at(instance: Instance) -> list[str]:
    return ["-i", "key", "-o", "ConnectTimeout=2", f"ubuntu@{instance.public_ip}"]


def ssh(lab: AwsLab, instance: Instance, script: str) -> subprocess.CompletedProcess[str]:
    return lab.run([*SSH, *at(instance), script])


def said(lab: AwsLab, instance: Instance, script: str) -> str:
    done = ssh(lab, instance, script)
    assert done.returncode == 0, done.stderr
    return done.stdout


def name(instance: Instance) -> str:
    assert instance.private_ip
    return f"ip-{instance.private_ip.replace('.', '-')}"


def on_this_machine(instance: Instance) -> bool:
    return any(instance.id in " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))


def everything(folder: Path) -> list[psutil.Process]:
    """What a lab has started, inside and on its hosts."""
    words = f"{INIT} {folder.resolve()} "
    holders = [one for one in psutil.process_iter(["cmdline"]) if words in " ".join(one.info["cmdline"] or ())]
    return list({one.pid: one for held in holders for one in (held, *held.children(recursive=True))}.values())


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def traces(folder: Path) -> dict[str, set[str]]:
    """What a lab could leave on the machine that carries it, apart from processes."""
    return {
        "mounts": {line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line},
        "network cards": {card.name for card in Path("/sys/class/net").iterdir()},
        "scratch": {path.name for path in Path("/tmp").iterdir() if AwsLab(folder).user_id in path.name},
    }


def wait_for(look: Callable[[], T]) -> T:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (answer := look()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return answer


def _a_folder() -> Path:
    """Short, for it holds a socket."""
    return Path(tempfile.mkdtemp(prefix="spotlaunch-aws-"))
