"""A Slurm cluster on this machine: login, node1, node2 with four fake H100 each; partitions spot and reserved."""

from tests.labs.slurm.install import obstacle
from tests.labs.slurm.lab import SlurmLab

__all__ = ["SlurmLab", "obstacle"]
