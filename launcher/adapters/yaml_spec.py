"""`train.yaml` as a `RunSpec`, its GPU types by their canonical names; its JSON schema; a template of it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from launcher.adapters.yaml_input import load_with_lines
from launcher.core.gpus import GpuCatalog
from launcher.core.spec import RunSpec
from launcher.errors import InputError, Problem

V = TypeVar("V")
SCHEMA_URL = "https://json-schema.org/draft/2020-12/schema"


def load_spec(path: Path, catalog: GpuCatalog) -> RunSpec:
    """Raises: InputError: every problem of the file, an unknown GPU type among them."""
    spec, lines = load_with_lines(path, RunSpec)
    problems = []
    for where, names in (("gpus", spec.gpus), ("workload.step_seconds", spec.workload.step_seconds)):
        for name in names:
            if catalog.canonical(name) is None:
                near = catalog.nearest(name)
                line = lines.line([*where.split("."), name])
                fix = f"write {' or '.join(near)}" if near else "`launch offers` lists the types"
                problems.append(Problem("L105", f"{where}: {name} is not a known GPU type", f"{path}:{line}", fix))
    if problems:
        raise InputError(problems)
    workload = spec.workload.model_copy(update={"step_seconds": _canonical(spec.workload.step_seconds, catalog)})
    return spec.model_copy(update={"gpus": _canonical(spec.gpus, catalog), "workload": workload})


def json_schema() -> dict[str, Any]:
    """For editors: completion, and errors while typing."""
    return {"$schema": SCHEMA_URL} | RunSpec.model_json_schema() | {"title": "spotlaunch train.yaml"}


def template() -> str:
    """A commented train.yaml to start from."""
    return (files("launcher") / "data" / "train.yaml").read_text(encoding="utf-8")


def _canonical(values: dict[str, V], catalog: GpuCatalog) -> dict[str, V]:
    return {catalog.canonical(name) or name: value for name, value in values.items()}
