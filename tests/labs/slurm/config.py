"""What the lab writes into configuration files: Slurm's, sshd's, SkyPilot's, and the launcher's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

ADDRESSES = {"login": "10.77.0.254", "node1": "10.77.0.1", "node2": "10.77.0.2"}
NODES = ("node1", "node2")
CPUS, MEMORY_MIB, GPUS = 8, 8000, 4  # per node; claimed, not owned
# USD per hour of a CPU, a GiB and a GPU; ours, for they only have to differ
PRICES = {
    "spot": {"cpu": "0.01", "memory": "0.001", "H100": "1.50"},
    "reserved": {"cpu": "0.05", "memory": "0.005", "H100": "4.00"},
}


def slurm_conf(folder: Path, *, grace_seconds: int) -> str:
    """Two nodes, two partitions on both. Without proctrack/cgroup a preempted trainer would outlive its job.

    KillWait is short and polling fast, to not wait in tests; MinJobAge keeps ended jobs visible for 5 min.
    """
    var = folder / "var"
    return f"""\
ClusterName=lab
SlurmctldHost=login({ADDRESSES["login"]})
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
SlurmctldPidFile={var}/slurmctld.pid
SlurmdPidFile={var}/slurmd.%n.pid
SlurmctldLogFile={var}/slurmctld.log
SlurmdLogFile={var}/slurmd.%n.log
SlurmctldDebug=debug
SlurmdDebug=debug
StateSaveLocation={var}/state
SlurmdSpoolDir={var}/spool.%n
MpiDefault=none
SwitchType=switch/none
TaskPlugin=task/none
ProctrackType=proctrack/cgroup
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={var}/ended-jobs
ReturnToService=2
KillWait=5
MinJobAge=300
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0,sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
SlurmdParameters=config_overrides
GresTypes=gpu
{_nodes()}
PartitionName=spot Nodes=ALL PriorityTier=1 PreemptMode=CANCEL GraceTime={grace_seconds} MaxTime=1-0 Default=YES
PartitionName=reserved Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=1-0
"""


def _nodes() -> str:
    size = f"CPUs={CPUS} RealMemory={MEMORY_MIB} Gres=gpu:h100:{GPUS} State=UNKNOWN"
    return "\n".join(f"NodeName={node} NodeAddr={ADDRESSES[node]} {size}" for node in NODES)


def gres_conf(folder: Path) -> str:
    return f"NodeName={','.join(NODES)} Name=gpu Type=h100 File={folder}/gpus/gpu[0-{GPUS - 1}]\n"


def cgroup_conf() -> str:
    return "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nIgnoreSystemd=yes\n"


def sshd_config(folder: Path, user: str) -> str:
    """SkyPilot opens many sessions at once."""
    return f"""\
ListenAddress {ADDRESSES["login"]}
HostKey {folder}/keys/host
PidFile {folder}/var/sshd.pid
AuthorizedKeysFile {folder}/keys/account.pub
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
AllowUsers {user}
MaxSessions 200
MaxStartups 150:30:200
UseDNS no
PrintMotd no
Subsystem sftp internal-sftp
"""


def ssh_config(folder: Path, user: str) -> str:
    """SkyPilot's ~/.slurm/config: a host is a region, its partitions are the zones."""
    return f"""\
Host lab
    HostName {ADDRESSES["login"]}
    User {user}
    IdentityFile {folder}/keys/account
    IdentitiesOnly yes
"""


def sky_config(*, provision_timeout_seconds: int) -> str:
    """Without a provision timeout SkyPilot waits a day for a named partition (sky/clouds/slurm.py, 0.14.1)."""
    partitions = "".join(f"        {name}: {{pricing: {_pricing(price)}}}\n" for name, price in PRICES.items())
    return f"""\
slurm:
  provision_timeout: {provision_timeout_seconds}
  cluster_configs:
    lab:
      pricing: {_pricing(PRICES["reserved"])}
      partition_configs:
{partitions}"""


def _pricing(price: Mapping[str, str]) -> str:
    return f"{{cpu: {price['cpu']}, memory: {price['memory']}, accelerators: {{H100: {price['H100']}}}}}"


def pricing(**pools: str) -> str:
    """pricing.yaml of the cluster: by partition, what is declared of it beyond its GPUs and their price."""
    lines = "".join(
        f"      - {{name: {name}, capacity: {name}, gpu: H100, gpus: {GPUS},"
        f" usd_per_gpu_hour: {PRICES[name]['H100']}, {more}}}\n"
        for name, more in pools.items()
    )
    return f"clusters:\n  - name: lab\n    provider: slurm\n    pools:\n{lines}"


def accelerators_csv() -> str:
    """SkyPilot's list of known GPUs; one without its .meta file is taken for the user's own and never refreshed."""
    return "AcceleratorName,Clouds\nH100,\"['AWS', 'GCP']\"\n"


def uv_shim(*, uv: str, wheels: Path, python: str) -> str:
    """uv without a network. SkyPilot asks for Python 3.10, which uv would download; the lab's wheels fit `python`."""
    return f"""\
#!/bin/bash
export UV_OFFLINE=1 UV_NO_INDEX=1 UV_FIND_LINKS={wheels} UV_PYTHON_DOWNLOADS=never
for argument; do
    shift
    [ "$previous $argument" = "--python 3.10" ] && argument={python}
    set -- "$@" "$argument"
    previous=$argument
done
exec {uv} "$@"
"""


def curl_shim(uv_shim: Path) -> str:
    """For SkyPilot's `curl -LsSf https://astral.sh/uv/install.sh | sh` (sky/skylet/constants.py, 0.14.1)."""
    return f"""\
#!/bin/bash
case "$*" in
*https://astral.sh/uv/install.sh*) echo 'mkdir -p "$UV_INSTALL_DIR" && cp {uv_shim} "$UV_INSTALL_DIR/uv"' ;;
*) echo "curl: no network in the lab: $*" >&2; exit 6 ;;
esac
"""
