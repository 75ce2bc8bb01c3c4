"""What a cluster has to be like for the pools that pricing.yaml says it has."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.core.doctor.checkup import Check, State
from launcher.core.doctor.clusters import SlurmCluster, kubernetes_checks, slurm_checks
from launcher.core.offers import Capacity
from launcher.core.prices.pricing import Cluster, Pool

SPOT = {"State": "UP", "PreemptMode": "CANCEL", "GraceTime": "120"}


def a_pool(name: str = "spot", **values: Any) -> Pool:
    given = {"capacity": Capacity.SPOT, "gpu": "H100", "gpus": 4, "nodes": 2, "usd_per_gpu_hour": "1.50"} | values
    return Pool(name=name, **given)


def a_cluster(*, proctrack: str = "cgroup", preempt: str = "partition_prio", **partition: str) -> SlurmCluster:
    config = {
        "SLURM_VERSION": "23.11.4",
        "ProctrackType": f"proctrack/{proctrack}",
        "PreemptType": f"preempt/{preempt}",
    }
    return SlurmCluster(config=config, partitions={"spot": SPOT | partition, "reserved": {"State": "UP"}})


def judged(found: SlurmCluster, pool: Pool) -> Check:
    _, check = slurm_checks("lab", found, [pool])
    return check


def test_a_cluster_as_it_should_be_has_nothing_to_mend() -> None:
    checks = slurm_checks("lab", a_cluster(), [a_pool(), a_pool("reserved", capacity="reserved")])

    assert [(check.name, check.state, check.fix) for check in checks] == [
        ("slurm lab", "ok", ""),
        ("slurm lab/spot", "ok", ""),
        ("slurm lab/reserved", "ok", ""),
    ]


@pytest.mark.parametrize(("proctrack", "state"), [("linuxproc", "failed"), ("pgid", "warning"), ("cgroup", "ok")])
def test_a_cluster_that_leaves_orphans_writing_is_refused(proctrack: str, state: State) -> None:
    (check,) = slurm_checks("lab", a_cluster(proctrack=proctrack), [])

    assert check.state == state
    assert ("proctrack/cgroup" in check.fix) == (state != "ok")


@pytest.mark.parametrize(
    ("found", "state", "fix"),
    [
        (a_cluster(PreemptMode="REQUEUE"), "ok", ""),  # SkyPilot's jobs carry --no-requeue, so it cancels them
        (a_cluster(PreemptMode="OFF"), "warning", "never preempted"),
        (a_cluster(preempt="none"), "warning", "never preempted"),
        (a_cluster(PreemptMode="SUSPEND,GANG"), "failed", "PreemptMode=CANCEL"),
        (a_cluster(GraceTime="0"), "warning", "GraceTime=120"),
        (a_cluster(State="DOWN"), "failed", "administrators"),
    ],
)
def test_a_spot_partition_preempts_and_gives_time_to_save(found: SlurmCluster, state: State, fix: str) -> None:
    check = judged(found, a_pool())

    assert check.state == state
    assert fix in check.fix


def test_a_notice_that_slurm_does_not_give_is_not_promised() -> None:
    check = judged(a_cluster(GraceTime="30"), a_pool(notice="2 min"))

    assert check.state == "warning"
    assert "write 30 s" in check.fix
    assert judged(a_cluster(GraceTime="120"), a_pool(notice="2 min")).state == "ok"


def test_a_partition_that_is_not_there_is_named_with_those_that_are() -> None:
    check = judged(a_cluster(), a_pool("burst"))

    assert check.state == "failed"
    assert check.fix.endswith("spot, reserved")


@pytest.mark.parametrize(
    ("gpus", "state"),
    [([8, 8], "ok"), ([8, 8, 4], "ok"), ([8], "warning"), ([], "warning"), ([4, 4], "failed"), ([0, 0], "failed")],
)
def test_nodes_are_counted_by_the_gpus_that_the_pool_promises(gpus: list[int], state: State) -> None:
    pool = a_pool("burst", capacity="on_demand", gpus=8, nodes=2, labels={"pool": "burst"})
    cluster = Cluster(name="prod", provider="kubernetes", pools=[pool])

    (check,) = kubernetes_checks(cluster, {"burst": gpus})

    assert check.state == state
    assert "pool=burst" in check.found
