"""`python -m tests.labs.slurm up | down | run COMMAND… [--folder FOLDER]`."""

from __future__ import annotations

from tests.labs.slurm import SlurmLab
from tests.labs.verbs import a_parser, obey

if __name__ == "__main__":
    parser = a_parser("slurm")
    parser.add_argument("--host", default="login", choices=["login", "node1", "node2"])
    arguments = parser.parse_args()
    obey(SlurmLab(arguments.folder), arguments, own={}, host=arguments.host)
