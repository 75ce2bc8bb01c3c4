"""How long Slurm says that its jobs held which nodes: the bill that ours is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar


@dataclass(frozen=True)
class Allocation:
    """A job of Slurm's. Instants are whole seconds of the controller's clock; no end: it lasts; no start: it waits.

    The end is when Slurm began to end it. Its nodes are free when the last process is, at most KillWait (5 s)
    and a few seconds later: 7 s were measured for a trainer that ignored SIGTERM.
    """

    SQUEUE_FORMAT: ClassVar = "%i|%j|%P|%T|%S|%D|%N"

    job_id: int
    name: str
    partition: str
    state: str
    start_at: datetime | None
    end_at: datetime | None
    nodes: int
    node_list: str

    def seconds(self, now: datetime) -> float:
        """Of the whole allocation, not per node."""
        return ((self.end_at or now) - self.start_at).total_seconds() if self.start_at else 0.0


def live_allocations(squeue: str) -> list[Allocation]:
    return [_live(*line.split("|")) for line in squeue.splitlines()]


def ended_allocations(completed: str) -> list[Allocation]:
    """From the file of jobcomp/filetxt: a line per job, of Key=Value."""
    rows = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in completed.splitlines()]
    return [
        Allocation(
            job_id=int(row["JobId"]),
            name=row["Name"],
            partition=row["Partition"],
            state=row["JobState"],
            start_at=_instant(row["StartTime"]),
            end_at=_instant(row["EndTime"]),
            nodes=int(row["NodeCnt"]),
            node_list=row["NodeList"],
        )
        for row in rows
    ]


def _live(job_id: str, name: str, partition: str, state: str, start: str, nodes: str, node_list: str) -> Allocation:
    waits = state == "PENDING"  # its start is a forecast
    start_at = None if waits else _instant(start)
    return Allocation(int(job_id), name, partition, state, start_at, None, int(nodes), node_list)


def _instant(text: str) -> datetime | None:
    return None if text in ("Unknown", "N/A", "None") else datetime.fromisoformat(text).replace(tzinfo=UTC)
