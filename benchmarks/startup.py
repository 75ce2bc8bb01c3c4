"""How long a command keeps its user waiting, beside the bare interpreter."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAUNCH = Path(sys.executable).with_name("launch")
PLAN = Path(__file__).parent.parent / "configs" / "single-h100-spot.yaml"
REPEATS = 9

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "launch --help": [LAUNCH, "--help"],
    "launch status": [LAUNCH, "status"],
    "launch plan (787 offers)": [LAUNCH, "plan", PLAN],
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
}


def main() -> None:
    with tempfile.TemporaryDirectory() as state:
        environ = os.environ | {"LAUNCH_STATE_FOLDER": state}
        seconds = {name: [] for name in COMMANDS}
        for repeat in range(REPEATS + 1):  # in turn, so that a noisy minute meets all of them
            for name, command in COMMANDS.items():
                began = time.perf_counter()
                subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)
                if repeat:
                    seconds[name].append(time.perf_counter() - began)
    floor = statistics.median(seconds["python -c pass"])
    print("| command | median s | ÷ interpreter | beyond it, ms |\n|---|---|---|---|")
    for name, measured in seconds.items():
        median = statistics.median(measured)
        print(f"| {name} | {median:.3f} | {median / floor:.1f} | {1000 * (median - floor):.0f} |")


if __name__ == "__main__":
    main()
