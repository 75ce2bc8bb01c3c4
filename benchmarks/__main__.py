"""Run every benchmark and print its table; paste what matters into RESULTS.md with the machine's name and the date."""

from __future__ import annotations

import platform
import sys

from benchmarks import hooks, startup

if __name__ == "__main__":
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}\n")
    for benchmark in (startup, hooks):
        print(f"## {benchmark.__name__.removeprefix('benchmarks.')}\n")
        benchmark.main()
        print()
    sys.exit(0)
