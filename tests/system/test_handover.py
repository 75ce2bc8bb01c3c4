"""A training that moves to a second machine beside the first: real processes, and the loss of an undisturbed one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.system.conftest import Lab
from tests.system.test_runs import bill_adds_up

pytestmark = pytest.mark.system

STEPS = 200
MARKET = """\
places:
  - provider: aws
    region: us-east-2
    zone: use2-az1
    instance_type: p5.48xlarge
    gpu: H100
    count: 8
    spot_usd_per_hour: 11
    on_demand_usd_per_hour: 55
    available: [[0 s, 10 h]]
    notice: {via: ec2, seconds: 120}
"""
# 5 minutes of steps as promised, 11 and more in truth: spot may begin, and its slack is gone when that is measured
TERMS = "deadline: 19 min\nmarket: {file: market.yaml, time_scale: 20}"


def test_a_run_whose_slack_is_used_up_is_handed_over_to_the_fallback_and_ends_at_the_undisturbed_loss(
    lab: Lab, undisturbed: Callable[[int], str]
) -> None:
    (lab.folder / "market.yaml").write_text(MARKET)
    lab.write(steps=STEPS, pause=0.15, every=20, more=TERMS)
    text = (lab.folder / "train.yaml").read_text().replace("CPU: 1", "H100: 8").replace("CPU: 0.16", "H100: 1.5 s")
    (lab.folder / "train.yaml").write_text(text.replace("setup_seconds: 3", "setup_seconds: 4 min"))

    done = lab.launch("train.yaml", "--approve", "200")

    (run,) = lab.runs()
    spot, firm = run["attempts"]
    assert (spot["capacity"], spot["outcome"]) == ("spot", "stopped")
    assert (firm["capacity"], firm["outcome"], firm["relieves"]) == ("on_demand", "completed", 1)
    if spot["detail"] == "saved and ended when asked":
        assert firm["started_at"] < firm["ready_at"] <= firm["handed_over_at"]
        assert firm["first_step"] == spot["step"] > 0
        assert "waiting for attempt 1 to hand over" in lab.output(run["run_id"])
    else:  # this machine was too busy to set the second one up in time
        assert spot["detail"] == "the fallback is due; killed"
        assert 0 < firm["first_step"] <= spot["step"]
    assert lab.final_loss(run["run_id"]) == undisturbed(STEPS)
    assert bill_adds_up(run)
    assert "takes over from attempt 1" in done.stderr
    assert lab.processes(run["run_id"]) == []
