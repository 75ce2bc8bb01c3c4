"""`make demo`: one training twice, once left alone and once on a spot market that takes its machine away twice.

Ends with the bill, the estimate's error, and the proof that both trainings reached the same loss to the last bit.
Everything it writes goes into a folder of its own, which it names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CONFIGS = HERE.parent.parent / "configs"
APPROVED_USD = "60"


def main() -> int:
    state = Path(tempfile.mkdtemp(prefix="spotlaunch-demo-"))
    environ = os.environ | {"LAUNCH_STATE_FOLDER": str(state)}
    print(f"The demo keeps its ledger and checkpoints in {state}; nothing is rented, all prices are simulated.\n")

    print("1. The training undisturbed, on pretended on-demand capacity:")
    launch(CONFIGS / "local-demo-undisturbed.yaml", environ)
    print("\n2. The same training on pretended spot capacity, estimated from the first run; it will be preempted:")
    launch(CONFIGS / "local-demo.yaml", environ)

    calm, stormy = runs(environ)
    run_id = stormy["run_id"]
    print(f"\n3. The bill of {run_id}:")
    subprocess.run(["launch", "status", run_id], env=environ, check=True)
    return verdict(calm, stormy)


def launch(file: Path, environ: dict[str, str]) -> None:
    done = subprocess.run(["launch", str(file), "--approve", APPROVED_USD], env=environ, check=False)
    if done.returncode:
        raise SystemExit(f"launch {file.name} ended with exit code {done.returncode}")


def runs(environ: dict[str, str]) -> list[dict[str, Any]]:
    listed = subprocess.run(
        ["launch", "status", "-o", "json"], env=environ, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(listed.stdout)["runs"]


def verdict(calm: dict[str, Any], stormy: dict[str, Any]) -> int:
    """Say what happened; 0 only if the machine was taken twice and the loss is the same to the last bit."""
    taken = [a for a in stormy["attempts"] if a["outcome"] == "preempted"]
    noticed = sum(a["noticed"] for a in taken)
    spent, promised = float(stormy["spent_usd"]), float(stormy["estimate"]["cost_usd"]["p50"])
    losses = [run["attempts"][-1]["metrics"]["loss"] for run in (calm, stormy)]
    same = losses[0] == losses[1]
    print(f"\n preempted {len(taken)} times, {noticed} with notice, {len(taken) - noticed} without")
    off = spent / promised - 1
    print(f" cost ${spent:.2f} (simulated); the estimate was ${promised:.2f}, so it was off by {off:+.1%}")
    print(f" final loss undisturbed {losses[0]!r} ({losses[0].hex()})")
    print(f" final loss preempted   {losses[1]!r} ({losses[1].hex()})")
    print(" the same to the last bit" if same else " THEY DIFFER")
    return 0 if same and noticed and noticed < len(taken) else 1


if __name__ == "__main__":
    sys.exit(main())
