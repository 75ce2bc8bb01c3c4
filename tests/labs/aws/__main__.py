"""`python -m tests.labs.aws up | status | down | run COMMAND… [--folder FOLDER]`."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

from tests.labs.aws.lab import AwsLab
from tests.labs.verbs import a_parser, obey


def show(lab: AwsLab) -> None:
    seconds = {one.id: one.seconds(datetime.now(UTC)) for one in lab.independent_bill()}
    for one in lab.instances():
        capacity = "spot" if one.spot else "on demand"
        print(f"{one.id}  {one.state:10}  {one.instance_type:13} {capacity:9} {one.zone}  {seconds[one.id]:8.1f} s")


if __name__ == "__main__":
    arguments = a_parser("aws", "status").parse_args()
    lab = AwsLab(arguments.folder)
    obey(lab, arguments, own={"status": partial(show, lab)})
