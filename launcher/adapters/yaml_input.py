"""YAML files as frozen models, every problem at file:line and all of them at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from launcher.errors import InputError, Problem

MAX_BYTES = 100_000  # nobody writes more of it by hand, and the parser takes its time
M = TypeVar("M", bound=BaseModel)


def load(path: Path, model: type[M]) -> M:
    """The file as a value of `model`.

    Raises: InputError: the file cannot be read, is not YAML, or is not such a value.
    """
    return load_with_lines(path, model)[0]


def load_with_lines(path: Path, model: type[M]) -> tuple[M, Lines]:
    """As `load`, and where each of its keys stands."""
    raw, lines = parse(path)
    try:
        return model.model_validate(raw), lines
    except ValidationError as error:
        raise InputError(_problems(error, model, path, lines)) from None


class Lines:
    """Where each key and item of a parsed file stands."""

    def __init__(self, root: Any) -> None:
        self._root = root

    def line(self, loc: Sequence[int | str]) -> int:
        """Line, from 1, of the deepest part of `loc` that the file contains."""
        node, line = self._root, 1
        for part in loc:
            try:
                if isinstance(node, dict) and part in node:
                    line = node.lc.key(part)[0] + 1  # type: ignore[attr-defined]  # ruamel's CommentedMap
                elif isinstance(node, list) and isinstance(part, int) and part < len(node):
                    line = node.lc.item(part)[0] + 1  # type: ignore[attr-defined]  # ruamel's CommentedSeq
                else:
                    continue  # a step inside pydantic's own union or function, not in the file
            except (KeyError, AttributeError):  # a key that came in through an anchor has no line of its own
                return line
            node = node[part]
        return line


def parse(path: Path) -> tuple[Any, Lines]:
    """The file's plain content, and where it stands.

    Raises: InputError: unreadable, not UTF-8, not YAML, too large, or an alias that contains itself.
    """
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    text = _text(path)
    try:
        root = _yaml().load(text)
        return _plain(root, ()), Lines(root)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        message = " ".join(str(error.problem or error.context or "cannot be read").split())
        raise InputError(
            [Problem("L101", f"not valid YAML: {message}", where, "mend the indentation or quoting")]
        ) from None
    except (YAMLError, RecursionError, ValueError, AttributeError, TypeError, NotImplementedError) as error:
        # the parser answers some malformed documents with plain Python errors
        message = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError([Problem("L101", f"not valid YAML: {message}", str(path), "mend the file")]) from None


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        fix = "`launch init` writes one" if path.suffix in {".yaml", ".yml"} else "check the path"
        raise InputError([Problem("L100", "no such file", str(path), fix)]) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError([Problem("L100", f"cannot be read: {reason}", str(path), "check the path")]) from None
    if len(content) > MAX_BYTES:
        raise InputError(
            [Problem("L100", f"has {len(content):,} bytes; at most {MAX_BYTES:,}", str(path), "check the path")]
        )
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise InputError([Problem("L101", "is not UTF-8 text", str(path), "save it as UTF-8")]) from None


def _yaml() -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import RoundTripConstructor

    class Constructor(RoundTripConstructor):
        """Instants stay text: the default drops their time zone."""

    Constructor.add_constructor("tag:yaml.org,2002:timestamp", lambda _, node: node.value)
    yaml = YAML(typ="rt", pure=True)
    yaml.Constructor = Constructor
    return yaml


def _plain(node: Any, above: tuple[int, ...]) -> Any:
    """Dicts, lists and scalars instead of the parser's own types."""
    if id(node) in above:
        raise ValueError("an alias contains itself")
    if isinstance(node, dict):
        return {_key(key): _plain(value, (*above, id(node))) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value, (*above, id(node))) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node if node is None else str(node)


def _key(key: Any) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)


def _problems(error: ValidationError, model: type[BaseModel], path: Path, lines: Lines) -> list[Problem]:
    found = [_problem(detail, model, path, lines) for detail in error.errors()]
    unique = {(p.where, p.message): p for p in found}  # a union reports the same value once per member
    return sorted(unique.values(), key=lambda p: int(p.where.rpartition(":")[2]))


def _problem(detail: ErrorDetails, model: type[BaseModel], path: Path, lines: Lines) -> Problem:
    loc = detail["loc"]
    where = f"{path}:{lines.line(loc)}"
    name = ".".join(str(part) for part in loc if _is_name(part))
    match detail["type"]:
        case "extra_forbidden":
            known = _keys_beside(model, loc)
            near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
            fix = f"write {near[0]}" if near else f"known here: {', '.join(known)}"
            return Problem("L102", f"{name} is not a known key", where, fix)
        case "missing":
            return Problem("L103", f"{name} is missing", where, _description(model, loc) or "add it")
        case "value_error":
            message = str(detail["ctx"]["error"]) if "ctx" in detail else detail["msg"]
            return Problem("L104", f"{name}: {message}" if name else message, where, "")
        case _:
            wanted = detail["msg"][0].lower() + detail["msg"][1:]
            return Problem("L104", f"{name} is {_short(detail['input'])}: {wanted}", where, _description(model, loc))


def _is_name(part: int | str) -> bool:
    return isinstance(part, int) or not any(sign in part for sign in "[(")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _keys_beside(model: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    parent = _model_at(model, loc[:-1])
    return list(parent.model_fields) if parent else []


def _description(model: type[BaseModel], loc: Sequence[int | str]) -> str:
    for depth in range(len(loc), 0, -1):
        parent = _model_at(model, loc[: depth - 1])
        field = parent.model_fields.get(str(loc[depth - 1])) if parent else None
        if field is not None:
            return field.description or ""
    return ""


def _model_at(model: type[BaseModel] | None, loc: Iterable[int | str]) -> type[BaseModel] | None:
    for part in loc:
        if model is None:
            return None
        if isinstance(part, str) and part in model.model_fields:
            model = _inner_model(model.model_fields[part].annotation)
    return model


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _inner_model(arg))), None)
