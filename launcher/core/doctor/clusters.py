"""What a Slurm or Kubernetes cluster has to be like for the pools that pricing.yaml says it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.core.doctor.checkup import Check, State
from launcher.core.offers import Capacity
from launcher.core.prices.pricing import Cluster, Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmCluster:
    """As `scontrol` shows it; partitions by name, each as its keys and values."""

    config: Mapping[str, str]
    partitions: Mapping[str, Mapping[str, str]]


def slurm_checks(name: str, found: SlurmCluster, pools: Sequence[Pool]) -> tuple[Check, ...]:
    """Of the cluster, then of each partition that is a pool; without pools, of the cluster alone."""
    return (_slurm_cluster(name, found), *(_partition(name, pool, found) for pool in pools))


def _slurm_cluster(name: str, found: SlurmCluster) -> Check:
    version, tracking = found.config.get("SLURM_VERSION", "?"), found.config.get("ProctrackType", "unknown")
    said = f"Slurm {version}, ProctrackType {tracking}, partitions {', '.join(found.partitions)}"
    if tracking == "proctrack/cgroup":
        return Check(name=f"slurm {name}", state="ok", found=said)
    # seen in Slurm 22.05: with linuxproc, a preempted job's trainer went on for 15 s and more beside its successor
    fix = "ask for ProctrackType=proctrack/cgroup: after a preemption an orphaned trainer goes on writing"
    state: State = "failed" if tracking == "proctrack/linuxproc" else "warning"
    return Check(name=f"slurm {name}", state=state, found=said, fix=fix)


def _partition(cluster: str, pool: Pool, found: SlurmCluster) -> Check:
    name, partition = f"slurm {cluster}/{pool.name}", found.partitions.get(pool.name)
    if partition is None:
        fix = f"pricing.yaml: the partitions are {', '.join(found.partitions)}"
        return Check(name=name, state="failed", found="no such partition", fix=fix)
    if (state := partition.get("State", "UP")) != "UP":
        return Check(name=name, state="failed", found=f"is {state}", fix="ask its administrators, or take it out")
    if pool.capacity is not Capacity.SPOT:
        return Check(name=name, state="ok", found="is up")
    return _preemption(name, pool, partition=partition, preempt_type=found.config.get("PreemptType", "preempt/none"))


def _preemption(name: str, pool: Pool, *, partition: Mapping[str, str], preempt_type: str) -> Check:
    mode, grace_seconds = partition.get("PreemptMode", "OFF"), int(partition.get("GraceTime", "0"))
    found = f"{preempt_type}, PreemptMode {mode}, GraceTime {grace_seconds} s"
    if preempt_type == "preempt/none" or mode == "OFF":
        fix = "jobs are never preempted here: its capacity is on_demand or reserved, or ask for PreemptMode=CANCEL"
        return Check(name=name, state="warning", found=found, fix=fix)
    if "SUSPEND" in mode or "GANG" in mode:
        fix = "a suspended trainer cannot save and is given up: ask for PreemptMode=CANCEL"
        return Check(name=name, state="failed", found=found, fix=fix)
    if grace_seconds == 0:
        fix = "no time to save: ask for GraceTime=120; until then a preemption costs the steps since the last save"
        return Check(name=name, state="warning", found=found, fix=fix)
    if pool.notice is not None and pool.notice > grace_seconds:
        fix = f"pricing.yaml promises a notice of {pool.notice:g} s; write {grace_seconds} s, or ask for more"
        return Check(name=name, state="warning", found=found, fix=fix)
    return Check(name=name, state="ok", found=found)


def kubernetes_checks(cluster: Cluster, gpus_of_nodes: Mapping[str, Sequence[int]]) -> tuple[Check, ...]:
    """Of each pool: `gpus_of_nodes` has the GPUs of every node with the pool's labels, by pool."""
    return tuple(_nodes(cluster.name, pool, gpus_of_nodes[pool.name]) for pool in cluster.pools)


def _nodes(cluster: str, pool: Pool, gpus: Sequence[int]) -> Check:
    name = f"kubernetes {cluster}/{pool.name}"
    labels = ", ".join(f"{key}={value}" for key, value in pool.labels.items()) or "any labels"
    fitting = sum(count >= pool.gpus for count in gpus)
    found = f"{len(gpus)} nodes with {labels}, {fitting} of them with {pool.gpus} GPUs or more"
    if fitting >= pool.nodes:
        return Check(name=name, state="ok", found=found)
    fix = f"pricing.yaml says {pool.nodes} nodes of {pool.gpus}×{pool.gpu}"
    if fitting or not gpus:
        # none at all may be a pool that is scaled to zero
        return Check(name=name, state="warning", found=found, fix=f"{fix}: fewer are there now, unless it scales up")
    return Check(name=name, state="failed", found=found, fix=f"{fix}; and is the NVIDIA device plugin running?")
