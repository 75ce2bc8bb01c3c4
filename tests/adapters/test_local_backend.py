"""The local backend with real processes: what it does beyond the contract of every backend."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from launcher.adapters.local_backend import LocalBackend
from launcher.adapters.local_job import Birth
from launcher.adapters.local_machine import Machine, Orders
from launcher.adapters.local_metadata import MetadataService
from launcher.adapters.system_clock import SystemClock
from launcher.core.offers import Capacity
from launcher.core.runs.state import job_name
from launcher.errors import BackendError, LaunchRefused
from tests.local_lab import (
    LocalLab,
    a_place,
    a_run_id,
    an_own_offer,
    eventually,
    is_running,
    placed,
    python,
    stop_all,
)

pytestmark = pytest.mark.system

COUNT_STARTS = "echo start >> starts; sleep 600"
# A child, one in a session of its own, and one that also lost its parent; none of them heeds SIGTERM.
STUBBORN_FAMILY = """
trap '' TERM
sleep 600 & echo $! >> pids
setsid sleep 600 & echo $! >> pids
(setsid sleep 600 & echo $! >> pids)
echo $$ >> pids; touch ready
wait
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[LocalLab]:
    lab = LocalLab(tmp_path, [])
    yield lab
    stop_all(lab)


@pytest.fixture
def rented(tmp_path: Path) -> Iterator[LocalLab]:
    lab = LocalLab(tmp_path, [a_place("open"), a_place("full", available=[])])
    yield lab
    stop_all(lab)


@pytest.fixture
def job() -> str:
    return job_name(a_run_id(), 1)


def pids_of(lab: LocalLab, job: str) -> list[int]:
    eventually((lab.workdir(job) / "ready").exists)
    return [int(line) for line in (lab.workdir(job) / "pids").read_text().split()]


def num_starts(lab: LocalLab, job: str) -> int:
    path = lab.workdir(job) / "starts"
    return len(path.read_text().split()) if path.exists() else 0


# The commands


def test_setup_comes_before_run_in_the_same_folder_and_output(own: LocalLab, job: str) -> None:
    request = own.request(job, an_own_offer(), "cat made; pwd", setup="echo from setup | tee made")

    own.backend.launch(request)

    assert own.settled(job, "exited").exit_code == 0
    assert own.output(job).splitlines() == ["from setup", "from setup", str(own.workdir(job).resolve())]


def test_a_failed_setup_ends_the_attempt_with_its_code(own: LocalLab, job: str) -> None:
    own.backend.launch(own.request(job, an_own_offer(), "echo never", setup="exit 3"))

    assert own.settled(job, "exited").exit_code == 3
    assert own.output(job) == ""


def test_a_trainer_killed_by_a_signal_has_the_code_a_shell_gives_it(own: LocalLab, job: str) -> None:
    own.backend.launch(own.request(job, an_own_offer(), "kill -9 $$"))

    assert own.settled(job, "exited").exit_code == 137


def test_a_job_is_starting_while_its_setup_runs(own: LocalLab, job: str) -> None:
    own.backend.launch(own.request(job, an_own_offer(), "true", setup="touch ready; sleep 600"))

    eventually((own.workdir(job) / "ready").exists)
    assert own.backend.phase(job).kind == "starting"


def test_a_machine_that_boots_slowly_is_starting_and_billed(tmp_path: Path, job: str) -> None:
    lab = LocalLab(tmp_path, [a_place("slow", start_seconds="1 h", on_demand_start_seconds=0)])
    lab.backend.launch(lab.request(job, lab.offer("slow"), "true"))

    phase = lab.backend.phase(job)

    assert phase.kind == "starting"
    assert phase.started_at is not None
    on_demand = job_name(a_run_id(), 1)
    lab.backend.launch(lab.request(on_demand, lab.offer("slow", Capacity.ON_DEMAND), "true"))
    lab.settled(on_demand, "exited")
    stop_all(lab)


def test_the_trainer_has_the_users_environment_under_the_requests(
    own: LocalLab, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROM_USER", "kept")
    monkeypatch.setenv("FROM_BOTH", "users")
    monkeypatch.delenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", raising=False)
    run = 'echo "$FROM_USER $FROM_BOTH $LAUNCH_JOB ${AWS_EC2_METADATA_SERVICE_ENDPOINT-none}"'

    own.backend.launch(own.request(job, an_own_offer(), run, FROM_BOTH="requests"))

    own.settled(job, "exited")
    assert own.output(job).split() == ["kept", "requests", job, "none"]


def test_a_request_is_readable_by_its_user_alone(own: LocalLab, job: str) -> None:
    own.backend.launch(own.request(job, an_own_offer(), "true", SECRET="s3cret"))

    folder = own.job_folder(job).path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "request.json").stat().st_mode) == 0o600


# What is granted


def test_without_a_market_a_cloud_is_refused_with_the_reason(own: LocalLab, job: str) -> None:
    offer = replace(an_own_offer(), provider="aws", region="us-east-2")

    with pytest.raises(LaunchRefused, match="aws us-east-2 is a cloud; this version runs on this computer") as refusal:
        own.backend.launch(own.request(job, offer, "true"))

    assert refusal.value.reason == "rejected"


def test_this_computer_is_one_node(own: LocalLab, job: str) -> None:
    request = replace(own.request(job, an_own_offer(), "true"), placement=placed(an_own_offer(), nodes=2))

    with pytest.raises(LaunchRefused, match="2 nodes are wanted"):
        own.backend.launch(request)


def test_a_missing_workdir_is_a_wrong_request(own: LocalLab, job: str, tmp_path: Path) -> None:
    request = replace(own.request(job, an_own_offer(), "true"), workdir=str(tmp_path / "nowhere"))

    with pytest.raises(LaunchRefused, match="nowhere is not a folder"):
        own.backend.launch(request)


def test_a_refused_job_may_be_asked_for_again(rented: LocalLab, job: str) -> None:
    with pytest.raises(LaunchRefused, match="no_capacity"):
        rented.backend.launch(rented.request(job, rented.offer("full"), "true"))

    rented.backend.launch(rented.request(job, rented.offer("open"), "true"))

    assert rented.settled(job, "exited").exit_code == 0


def test_reserved_capacity_is_not_for_rent_in_a_market(rented: LocalLab, job: str) -> None:
    offer = replace(rented.offer("open"), capacity=Capacity.RESERVED)

    with pytest.raises(LaunchRefused, match="the market has no reserved"):
        rented.backend.launch(rented.request(job, offer, "true"))


# One machine per job


def test_rival_launches_of_a_job_make_one_machine(rented: LocalLab, job: str) -> None:
    request = rented.request(job, rented.offer("open"), COUNT_STARTS)
    rivals = [threading.Thread(target=rented.another_backend().launch, args=(request,)) for _ in range(4)]

    for rival in rivals:
        rival.start()
    for rival in rivals:
        rival.join()

    eventually(lambda: num_starts(rented, job))
    assert rented.backend.names(job.rpartition("-")[0]) == (job,)
    rented.backend.stop(job)  # nothing can start after it
    assert num_starts(rented, job) == 1


def test_launching_a_job_that_has_a_machine_starts_nothing(
    rented: LocalLab, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = rented.request(job, rented.offer("open"), COUNT_STARTS)
    rented.backend.launch(request)
    started: list[object] = []
    monkeypatch.setattr(LocalBackend, "_start_machine", lambda self, folder: started.append(folder))

    rented.backend.launch(request)

    assert started == []


def test_a_second_machine_process_of_a_job_ends_at_once(rented: LocalLab, job: str) -> None:
    rented.backend.launch(rented.request(job, rented.offer("open"), COUNT_STARTS))
    eventually(lambda: num_starts(rented, job))
    first = rented.machine(job)

    assert start_machine(rented, job).wait() == 0

    assert rented.machine(job) == first
    rented.backend.stop(job)
    assert num_starts(rented, job) == 1


def start_machine(lab: LocalLab, job: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "launcher.adapters.local_machine", str(lab.job_folder(job).path)]
    return subprocess.Popen(command, env=os.environ | {"LAUNCH_JOB": job})


def test_what_was_granted_is_launched_even_if_the_place_has_filled_up_since(
    rented: LocalLab, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(self: LocalBackend, folder: object) -> None:
        raise KeyboardInterrupt

    request = rented.request(job, rented.offer("open"), COUNT_STARTS)
    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(LocalBackend, "_start_machine", dies)
        rented.backend.launch(request)

    rented.backend.launch(replace(request, placement=placed(rented.offer("full"))))

    rented.settled(job, "running")


def test_a_launcher_killed_at_any_moment_of_a_launch_leaves_at_most_one_machine(own: LocalLab) -> None:
    jobs = [job_name(a_run_id(), 1) for _ in range(6)]
    script = (
        "import sys; from pathlib import Path; from tests.local_lab import *\n"
        "lab = LocalLab(Path(sys.argv[1]), []); print('up', flush=True)\n"
        "lab.backend.launch(lab.request(sys.argv[2], an_own_offer(), sys.argv[3]))"
    )
    launchers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(own.folder), job, COUNT_STARTS], stdout=subprocess.PIPE, cwd=Path.cwd()
        )
        for job in jobs
    ]
    for number, launcher in enumerate(launchers):
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == b"up\n"
        time.sleep(0.05 * number)  # where the kill falls does not matter to what is asserted
        launcher.kill()
        launcher.communicate()

    for job in jobs:
        own.backend.launch(own.request(job, an_own_offer(), COUNT_STARTS))

    for job in jobs:
        own.settled(job, "running")
        eventually(lambda job=job: num_starts(own, job))  # type: ignore[misc]  # bound now, not when called
        own.backend.stop(job)
        assert num_starts(own, job) == 1


def test_a_pid_that_was_given_to_another_process_is_not_the_machine() -> None:
    me = Birth.of(os.getpid())

    assert me.is_alive
    assert not Birth(pid=me.pid, created=me.created - 60).is_alive


# The end


def test_a_machine_killed_by_hand_takes_its_trainers_along(rented: LocalLab, job: str) -> None:
    rented.backend.launch(rented.request(job, rented.offer("open"), STUBBORN_FAMILY))
    pids = pids_of(rented, job)
    started_at = rented.backend.phase(job).started_at
    assert all(is_running(pid) for pid in pids)

    rented.crash_machine(job)

    phase = rented.settled(job, "gone")
    assert started_at is not None
    assert phase.gone_at is not None
    assert phase.gone_at >= started_at
    assert not any(is_running(pid) for pid in pids)


def test_trainers_without_a_machine_are_named_until_they_are_stopped(rented: LocalLab, job: str) -> None:
    rented.backend.launch(rented.request(job, rented.offer("open"), STUBBORN_FAMILY))
    pids = pids_of(rented, job)
    rented.crash_machine(job)
    run_id = job.rpartition("-")[0]

    assert rented.backend.names(run_id) == (job,)
    rented.backend.stop(job)

    assert rented.backend.names(run_id) == ()
    assert not any(is_running(pid) for pid in pids)


def test_stop_kills_a_family_that_ignores_sigterm(rented: LocalLab, job: str) -> None:
    rented.backend.launch(rented.request(job, rented.offer("open"), STUBBORN_FAMILY))
    pids = pids_of(rented, job)
    machine = rented.machine(job)

    rented.backend.stop(job)

    assert not any(is_running(pid) for pid in [*pids, machine.pid])


def test_trainers_that_dropped_the_jobs_variable_are_found_by_their_session(rented: LocalLab, job: str) -> None:
    run = "env -i bash -c 'sleep 600 & echo $! >> pids; touch ready; wait' & wait"
    rented.backend.launch(rented.request(job, rented.offer("open"), run))
    (pid,) = pids_of(rented, job)
    rented.crash_machine(job)
    for process in psutil.Process(pid).parents()[:2]:
        process.kill()

    rented.settled(job, "gone")

    assert not is_running(pid)


def test_what_left_both_variable_and_session_is_found_by_its_parent(rented: LocalLab, job: str) -> None:
    run = "env -i setsid bash -c 'echo $$ >> pids; touch ready; sleep 600; :' & wait"
    rented.backend.launch(rented.request(job, rented.offer("open"), run))
    (pid,) = pids_of(rented, job)

    rented.backend.stop(job)

    assert not is_running(pid)


def test_a_stop_wins_over_a_launch_in_flight(rented: LocalLab) -> None:
    jobs = [job_name(a_run_id(), 1) for _ in range(3)]
    launches = [threading.Thread(target=launch_or_be_refused, args=(rented, job)) for job in jobs]

    for number, (job, launch) in enumerate(zip(jobs, launches, strict=True)):
        launch.start()
        time.sleep(0.1 * number)
        rented.backend.stop(job)
        assert rented.backend.phase(job).kind == "absent"
    for launch in launches:
        launch.join()

    for job in jobs:
        assert rented.backend.phase(job).kind == "absent"
        assert rented.backend.names(job.rpartition("-")[0]) == ()


def launch_or_be_refused(lab: LocalLab, job: str) -> None:
    with suppress(LaunchRefused, BackendError):
        lab.another_backend().launch(lab.request(job, lab.offer("open"), COUNT_STARTS))


def test_a_machine_that_starts_after_the_release_does_nothing(
    rented: LocalLab, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(LocalBackend, "_start_machine", lambda self, folder: None)
        rented.backend.launch(rented.request(job, rented.offer("open"), COUNT_STARTS))
    rented.backend.stop(job)

    assert start_machine(rented, job).wait() == 1

    assert rented.backend.names(job.rpartition("-")[0]) == ()
    assert num_starts(rented, job) == 0


def test_the_output_is_kept_after_the_release(own: LocalLab, job: str) -> None:
    own.backend.launch(own.request(job, an_own_offer(), "echo kept"))
    own.settled(job, "exited")

    own.backend.stop(job)

    assert own.output(job) == "kept\n"


def test_a_machine_told_to_shut_down_is_gone_with_its_trainers(rented: LocalLab, job: str) -> None:
    rented.backend.launch(rented.request(job, rented.offer("open"), STUBBORN_FAMILY))
    pids = pids_of(rented, job)

    rented.machine(job).send_signal(signal.SIGTERM)

    rented.settled(job, "gone")
    eventually(lambda: not any(is_running(pid) for pid in pids))


def test_an_idle_machine_shuts_itself_down_and_keeps_the_exit_code(tmp_path: Path, job: str) -> None:
    lab = LocalLab(tmp_path, [a_place("open")], scale=60.0, idle_seconds=30.0)
    lab.backend.launch(lab.request(job, lab.offer("open"), "exit 5"))

    phase = lab.settled(job, "gone")

    assert phase.exit_code == 5
    assert phase.started_at is not None
    assert phase.gone_at is not None
    assert phase.gone_at >= phase.started_at + timedelta(seconds=30)
    stop_all(lab)


def test_a_machine_without_a_supervisor_shuts_itself_down(tmp_path: Path, job: str) -> None:
    lab = LocalLab(tmp_path, [], silence_seconds=0.5)
    lab.backend.launch(lab.request(job, an_own_offer(), STUBBORN_FAMILY))

    eventually(lambda: lab.job_folder(job).read("gone"))  # which asks for no phase

    eventually(lambda: lab.backend.names(job.rpartition("-")[0]) == ())
    assert "no supervisor" in str(lab.job_folder(job).read("gone"))


class SteppedClock(SystemClock):
    """Time passes only by sleeping; `during` runs in each sleep."""

    def __init__(self, during: Callable[[], None]) -> None:
        self.passed_seconds = 0.0
        self._during = during
        super().__init__(wall=lambda: 1_700_000_000.0, monotonic=lambda: self.passed_seconds)

    def sleep(self, seconds: float) -> None:
        self.passed_seconds += 600.0 * seconds
        self._during()


def test_a_machine_counts_silence_from_when_it_was_last_asked_for(own: LocalLab, job: str) -> None:
    def ask_for_ten_hours() -> None:
        if clock.passed_seconds <= 36_000:
            folder.touch("supervisor")

    folder, clock = own.job_folder(job), SteppedClock(ask_for_ten_hours)
    folder.create()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with MetadataService(vm_name=job, is_spot=False) as metadata:
            Machine(folder, orders_for_nothing(silence_seconds=3600.0), clock, metadata).live()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    gone = folder.read("gone")
    assert gone is not None
    assert datetime.fromisoformat(gone["at"]) == clock.epoch + timedelta(hours=11)


def test_asking_for_a_machines_phase_is_a_sign_of_its_supervisor(rented: LocalLab, job: str) -> None:
    rented.backend.launch(rented.request(job, rented.offer("open"), "sleep 600"))
    sign = rented.job_folder(job).path / "supervisor"
    os.utime(sign, (0, 0))

    rented.backend.phase(job)

    assert sign.stat().st_mtime > 0


def orders_for_nothing(*, silence_seconds: float) -> Orders:
    return Orders(
        setup=None,
        run="true",
        workdir=".",
        env={},
        is_spot=False,
        is_pretend=False,
        up_at=datetime.max.replace(tzinfo=UTC),
        taken_at=None,
        notice_via="none",
        notice_at=None,
        rebalance_at=None,
        idle_seconds=1.0,
        silence_seconds=silence_seconds,
    )


def test_a_backend_that_cannot_write_says_so(tmp_path: Path, job: str) -> None:
    (tmp_path / "jobs").write_text("in the way")
    lab = LocalLab(tmp_path, [])

    with pytest.raises(BackendError, match=job):
        lab.backend.launch(lab.request(job, an_own_offer(), "true"))


# The market


WATCHER = """
import json, os, signal, sys, time, urllib.error, urllib.request
seen = open("seen", "w")
def note(what):
    print(what, file=seen, flush=True)
signal.signal(signal.SIGTERM, lambda *_: note("SIGTERM"))
def get(url, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        return str(error.code)
ec2 = os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"] + "/latest/"
gce = "http://" + os.environ["GCE_METADATA_HOST"] + "/computeMetadata/v1/instance/preempted"
azure = os.environ["LAUNCH_AZURE_METADATA_ENDPOINT"] + "/metadata/scheduledevents?api-version=2020-07-01"
put = urllib.request.Request(ec2 + "api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "600"})
token = {"X-aws-ec2-metadata-token": urllib.request.urlopen(put).read().decode()}
last = {}
while True:
    now = {
        "action": get(ec2 + "meta-data/spot/instance-action", **token),
        "rebalance": get(ec2 + "meta-data/events/recommendations/rebalance", **token),
        "preempted": get(gce, **{"Metadata-Flavor": "Google"}),
        "events": get(azure, Metadata="true"),
    }
    for name in now:
        if now[name] != last.get(name):
            note(name + " " + now[name])
    last = now
    time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def preempted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalLab]:
    """One trainer on each of six places, which all lose their capacity at the same market time, and one on demand."""
    places = [
        a_place("ec2", notice={"via": "ec2", "seconds": "2 min"}, rebalance_seconds="3 min"),
        a_place("gce", provider="gcp", notice={"via": "gce", "seconds": "2 min"}),
        a_place("azure", provider="azure", notice={"via": "azure", "seconds": "2 min"}),
        a_place("signal", provider="runpod", notice={"via": "signal", "seconds": "2 min"}),
        a_place("none"),
        a_place("family"),
    ]
    lab = LocalLab(tmp_path_factory.mktemp("preempted"), [p | {"available": [[0, "4 min"]]} for p in places], scale=60)
    for place in places:
        zone = place["zone"]
        trainer = STUBBORN_FAMILY if zone == "family" else python(WATCHER)
        lab.backend.launch(lab.request(job_on(zone), lab.offer(zone), trainer))
    lab.backend.launch(lab.request(ON_DEMAND_JOB, lab.offer("none", Capacity.ON_DEMAND), "sleep 600"))
    for place in places:
        lab.settled(job_on(place["zone"]), "gone")
    yield lab
    stop_all(lab)


RUN_ID = a_run_id()
ON_DEMAND_JOB = job_name(f"{RUN_ID}-on-demand", 1)


def job_on(zone: str) -> str:
    return job_name(f"{RUN_ID}-{zone}", 1)


def seen_on(lab: LocalLab, zone: str) -> dict[str, list[str]]:
    """What the trainer saw, by kind: every value it had, in order."""
    seen: dict[str, list[str]] = {}
    for line in (lab.workdir(job_on(zone)) / "seen").read_text().splitlines():
        kind, _, value = line.partition(" ")
        seen.setdefault(kind, []).append(value)
    return seen


IDLE = {"action": ["404"], "rebalance": ["404"], "preempted": ["FALSE"]}


@pytest.mark.parametrize("zone", ["ec2", "gce", "azure", "signal", "none", "family"])
def test_a_preempted_machine_is_billed_until_the_markets_instant(preempted: LocalLab, zone: str) -> None:
    phase = preempted.backend.phase(job_on(zone))

    assert phase.kind == "gone"
    assert phase.gone_at == preempted.clock.epoch + timedelta(minutes=4)
    assert phase.exit_code is None
    assert preempted.backend.names(f"{RUN_ID}-{zone}") == ()


def test_ec2_recommends_then_announces_and_sends_no_signal(preempted: LocalLab) -> None:
    seen = seen_on(preempted, "ec2")

    before, action = seen["action"]
    assert before == "404"
    taken_at = preempted.clock.to_wall(preempted.clock.epoch + timedelta(minutes=4))
    assert json.loads(action) == {"action": "terminate", "time": taken_at.strftime("%Y-%m-%dT%H:%M:%SZ")}
    assert json.loads(seen["rebalance"][-1]).keys() == {"noticeTime"}
    assert "SIGTERM" not in seen
    assert seen["preempted"] == ["FALSE"]


def test_gce_raises_its_flag_and_signals(preempted: LocalLab) -> None:
    seen = seen_on(preempted, "gce")

    assert seen["preempted"] == ["FALSE", "TRUE"]
    assert len(seen["SIGTERM"]) == 1
    assert seen["action"] == ["404"]


def test_azure_schedules_an_event(preempted: LocalLab) -> None:
    seen = seen_on(preempted, "azure")

    before, after = (json.loads(value) for value in seen["events"])
    assert before == {"DocumentIncarnation": 0, "Events": []}
    (event,) = after["Events"]
    assert (event["EventType"], event["Resources"]) == ("Preempt", [job_on("azure")])
    assert "SIGTERM" not in seen


def test_a_signal_is_a_signal_and_nothing_else(preempted: LocalLab) -> None:
    seen = seen_on(preempted, "signal")

    assert len(seen.pop("SIGTERM")) == 1
    del seen["events"]
    assert seen == IDLE


def test_without_a_notice_nothing_is_said(preempted: LocalLab) -> None:
    seen = seen_on(preempted, "none")

    del seen["events"]
    assert seen == IDLE


def test_an_azure_trainer_that_is_done_gives_its_machine_back_early(tmp_path: Path, job: str) -> None:
    script = """
import json, os, time, urllib.request
url = os.environ["LAUNCH_AZURE_METADATA_ENDPOINT"] + "/metadata/scheduledevents?api-version=2020-07-01"
def ask(data=None):
    return urllib.request.urlopen(urllib.request.Request(url, data=data, headers={"Metadata": "true"})).read()
while not (events := json.loads(ask())["Events"]):
    time.sleep(0.05)
ask(json.dumps({"StartRequests": [{"EventId": events[0]["EventId"]}]}).encode())
time.sleep(600)
"""
    place = a_place("a", provider="azure", available=[[0, "1 h"]], notice={"via": "azure", "seconds": "1 h"})
    lab = LocalLab(tmp_path, [place])
    lab.backend.launch(lab.request(job, lab.offer("a"), python(script)))

    phase = lab.settled(job, "gone")

    assert phase.gone_at is not None
    assert phase.gone_at < lab.clock.epoch + timedelta(hours=1)


def test_a_preempted_machine_takes_a_whole_family_along(preempted: LocalLab) -> None:
    pids = pids_of(preempted, job_on("family"))

    assert len(pids) == 4
    assert not any(is_running(pid) for pid in pids)


def test_on_demand_outlives_the_spot_capacity_of_its_place(preempted: LocalLab) -> None:
    assert preempted.backend.phase(ON_DEMAND_JOB).kind == "running"
