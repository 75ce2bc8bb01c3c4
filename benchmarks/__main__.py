"""Print the tables of a benchmark; paste what matters into RESULTS.md with the machine's name and the date.

python -m benchmarks                  start-up, hooks, plans, and 500,000 markets made to break the policy's guards;
                                      ten minutes; exit code 1 where a guard is broken
python -m benchmarks checkpoint …     saves beside other libraries; minutes for each size (--help)
python -m benchmarks recovery LAB     from a preemption to training again, beside SkyPilot's managed jobs (--help)
python -m benchmarks policy TABLE     what policies cost on public spot traces, beside the optimum (--help)
"""

from __future__ import annotations

import os
import platform
import sys

from benchmarks import checkpoint, hooks, planning, policy, recovery, startup


def main(arguments: list[str]) -> None:
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    if arguments[:1] == ["checkpoint"]:
        checkpoint.main(arguments[1:])
        return
    if arguments[:1] == ["recovery"]:
        recovery.main(arguments[1:])
        return
    if arguments[:1] == ["policy"]:
        policy.main(arguments[1:])
        return
    for benchmark in (startup, hooks, planning):
        print(f"## {benchmark.__name__.removeprefix('benchmarks.')}\n")
        benchmark.main()
        print()
    print("## fuzz\n")
    policy.main(["fuzz"])


if __name__ == "__main__":
    main(sys.argv[1:])
