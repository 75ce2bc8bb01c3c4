"""What README and docs tell a user to type or to write exists: commands, flags, settings, keys, links."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel, TypeAdapter
from ruamel.yaml import YAML

from launcher.adapters.settings import Settings
from launcher.cli import app
from launcher.core.prices.pricing import Terms
from launcher.core.spec import Checkpoint, Cost, Data, Market, RunSpec, Workload

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODELS: dict[str, type[BaseModel]] = {
    "checkpoint": Checkpoint,
    "cost": Cost,
    "data": Data,
    "market": Market,
    "workload": Workload,
}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_COMMAND = re.compile(r"(?:^|\$ |\w=\S+ )launch +(\S.*)")
_VARIABLE = re.compile(r"LAUNCH_[A-Z_]+")
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)|^\[\w+\]: (?!https?:)(\S+)", re.MULTILINE)


@pytest.fixture(params=PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def fences(page: Path, *languages: str) -> Iterator[str]:
    for language, body in _FENCE.findall(page.read_text(encoding="utf-8")):
        if language in languages:
            yield body


def code(page: Path) -> list[str]:
    """Lines of shell blocks without their comments, and what stands in backticks."""
    text = page.read_text(encoding="utf-8")
    lines = [line.partition("#")[0].strip() for body in fences(page, "") for line in body.splitlines()]
    return [*lines, *(" ".join(each.split()) for each in _INLINE.findall(_FENCE.sub("", text)))]


def commands(page: Path) -> Iterator[list[str]]:
    """The words behind each `launch`."""
    for line in code(page):
        for part in re.split(r"[;·…]", line):
            if found := _COMMAND.match(part.strip()):
                yield found[1].split()


def problem(words: list[str]) -> str | None:
    """What of a command line does not exist."""
    known: Any = typer.main.get_command(app)
    if words[0].endswith(".yaml"):
        words = ["run", *words]
    while hasattr(known, "commands") and words and not words[0].startswith("-"):
        if words[0] not in known.commands:
            return f"no command {words[0]}"
        known, words = known.commands[words[0]], words[1:]
    strange = [word for word in words if word.startswith("-") and word not in flags(known)]
    return f"no flags {strange}" if strange else None


def flags(command: Any) -> set[str]:
    """Of a command, or of all in a group."""
    below = [flags(each) for each in getattr(command, "commands", {}).values()]
    return {flag for option in command.params for flag in option.opts}.union({"--help", "-h"}, *below)


def test_every_command_and_flag_exists(page: Path) -> None:
    found = {" ".join(words): problem(words) for words in commands(page)}

    assert {line: wrong for line, wrong in found.items() if wrong} == {}


def test_every_flag_that_is_named_alone_exists(page: Path) -> None:
    named = {words.split()[0] for words in code(page) if words.startswith("--")}

    assert named - flags(typer.main.get_command(app)) == set()


@pytest.mark.parametrize("line", ["pan train.yaml", "plan train.yaml --aproove 5", "train.yaml --out p", "config list"])
def test_a_line_that_would_not_work_is_found(line: str) -> None:
    assert problem(line.split())


def test_the_readme_shows_the_main_commands() -> None:
    assert {words[0] for words in commands(ROOT / "README.md")} >= {"train.yaml", "plan", "doctor", "status", "resume"}


def test_every_setting_exists(page: Path) -> None:
    written = {key for body in fences(page, "toml") for key in tomllib.loads(body)}
    named = re.findall(r"settings? `(\w+)`", page.read_text(encoding="utf-8"))

    assert written | set(named) <= set(Settings.model_fields)


def test_every_variable_exists(page: Path) -> None:
    """Settings of the launcher, or the contract with the trainer."""
    words = set(_VARIABLE.findall(page.read_text(encoding="utf-8")))
    hooks = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "trainer_hooks").rglob("*.py"))
    known = {f"LAUNCH_{name.upper()}" for name in Settings.model_fields} | set(_VARIABLE.findall(hooks))
    families = {word for word in words if word.endswith("_")}  # LAUNCH_CHECKPOINT_*

    assert words - families - known == set()
    assert all(any(name.startswith(family) for name in known) for family in families)


def test_every_block_of_yaml_is_a_part_of_train_or_pricing_yaml(page: Path) -> None:
    for body in fences(page, "yaml"):
        written = YAML(typ="safe").load(body)
        if set(written) <= set(Terms.model_fields):
            Terms.model_validate(written)
            continue
        for key, value in written.items():
            TypeAdapter(RunSpec.model_fields[key].annotation).validate_python(value)


def test_every_dotted_key_is_one_of_train_yaml(page: Path) -> None:
    for word in code(page):
        if found := re.fullmatch(r"(\w+)\.(\w+)", word):
            model = MODELS.get(found[1])
            assert model is None or found[2] in model.model_fields, word


def test_every_link_leads_somewhere(page: Path) -> None:
    targets = [first or second for first, second in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))]

    assert [target for target in targets if not (page.parent / target).exists()] == []
