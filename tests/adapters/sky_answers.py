"""What SkyPilot says about the catalogues in its home: a program, since SkyPilot reads HOME when it is imported.

python sky_answers.py optimize < requests.json      the optimizer's choice for each
python sky_answers.py seconds < requests.json       CPU seconds that it takes for each, once it is warm
python sky_answers.py gcp                           each of Google's GPUs in each zone, with its machine and price
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def optimize(requests: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    import sky
    from sky import check, clouds, exceptions, global_user_state
    from sky.optimizer import Optimizer

    enabled = ["AWS", "GCP", "Lambda"]
    global_user_state.set_enabled_clouds(enabled, clouds.CloudCapability.COMPUTE, "default")
    global_user_state.set_allowed_clouds(check._get_workspace_allowed_clouds("default"), "default")
    answers: list[dict[str, Any] | None] = []
    for request in requests:
        with sky.Dag() as dag:
            task = sky.Task(run="true", num_nodes=request["nodes"])
            places = [
                sky.Resources(infra=region, accelerators={gpu: request["count"]}, use_spot=request["use_spot"])
                for region in request["regions"]
                for gpu in request["gpus"]
            ]
            task.set_resources(set(places))
            if request.get("inputs"):
                task.set_inputs(*request["inputs"])
        try:
            Optimizer.optimize(dag, minimize=sky.OptimizeTarget.COST, quiet=True)
        except exceptions.ResourcesUnavailableError:
            answers.append(None)
            continue
        best = task.best_resources
        answers.append(
            {
                "provider": str(best.cloud).lower(),
                "region": best.region,
                "instance_type": best.instance_type,
                "usd_per_hour": best.get_cost(3600) * task.num_nodes,
            }
        )
    return answers


def seconds(requests: list[dict[str, Any]]) -> list[float]:
    optimize(requests[:1])
    taken = []
    for request in requests:
        began = time.process_time()
        optimize([request])
        taken.append(time.process_time() - began)
    return taken


def gcp() -> dict[str, Any]:
    from sky.catalog import gcp_catalog

    frame = gcp_catalog._df
    rows = frame[frame["AcceleratorName"].notna() & ~frame["AcceleratorName"].str.startswith("tpu-", na=False)]
    found = []
    for row in rows.itertuples():
        (machine,), _ = gcp_catalog.get_instance_type_for_accelerator(row.AcceleratorName, row.AcceleratorCount)
        place = {"region": row.Region, "zone": row.AvailabilityZone}
        for use_spot, price in ((False, row.Price), (True, row.SpotPrice)):
            try:
                of_machine = gcp_catalog.get_hourly_cost(machine, use_spot, **place)
            except ValueError:  # that zone has no such machine
                continue
            if price == price:
                of_gpu = gcp_catalog.get_accelerator_hourly_cost(
                    row.AcceleratorName, row.AcceleratorCount, use_spot, **place
                )
                found.append([row.AvailabilityZone, machine, int(row.AcceleratorCount), use_spot, of_machine + of_gpu])
    return {"offers": found, "built_in": gcp_catalog._INSTANCE_TYPE_TO_ACC}


def renew(downloads: list[tuple[str, str]]) -> list[str]:
    from sky.skylet import constants

    from launcher.adapters import skypilot_clouds

    became = []
    for address, cloud in downloads:
        constants.HOSTED_CATALOG_DIR_URL = address
        became.append(skypilot_clouds.renew(cloud))
    return became


if __name__ == "__main__":
    given = json.load(sys.stdin)
    answer: Any
    match sys.argv[1]:
        case "optimize":
            answer = optimize(given)
        case "seconds":
            answer = seconds(given)
        case "gcp":
            answer = gcp()
        case "renew":
            answer = renew(given)
    sys.stdout.write("\nANSWER " + json.dumps(answer) + "\n")
