"""The last file of a checkpoint: what the others must hold. Without it there is no checkpoint.

{"schema": 1, "step": …, "attempt": …, "run_id": …, "created_at": …, "torch": …, "world_size": …,
 "cursor": {…}, "files": {"<component>.pt": {"bytes": …, "sha256": …}}, "digest": sha256 of all the rest}
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from trainer_hooks.errors import Damaged
from trainer_hooks.protocol import checkpoint_name

SCHEMA = 1
LIMIT_BYTES = 16 << 20
_FILE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,199}\.pt")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    step: int
    attempt: int
    run_id: str
    created_at: datetime
    torch: str
    world_size: int
    cursor: Mapping[str, Any]  # plain JSON
    files: Mapping[str, File]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


def encode(manifest: Manifest) -> bytes:
    body = {
        "schema": SCHEMA,
        "step": manifest.step,
        "attempt": manifest.attempt,
        "run_id": manifest.run_id,
        "created_at": manifest.created_at.astimezone(UTC).isoformat(),
        "torch": manifest.torch,
        "world_size": manifest.world_size,
        "cursor": dict(manifest.cursor),
        "files": {name: asdict(file) for name, file in manifest.files.items()},
    }
    return json.dumps(body | {"digest": _digest(body)}, indent=1, sort_keys=True).encode()


def decode(raw: bytes, *, name: str) -> Manifest:
    """The manifest of the checkpoint folder `name`.

    Raises: Damaged: it is not what `encode` wrote, or not for this folder, or names what no checkpoint holds.
    """
    try:
        body = json.loads(raw)
        digest = body.pop("digest")
        if digest != _digest(body):
            raise Damaged("the manifest is not what was written")
        if body["schema"] != SCHEMA:
            raise Damaged(f"its schema is {body['schema']!r}, these hooks read {SCHEMA}")
        manifest = Manifest(
            step=_count(body["step"]),
            attempt=_count(body["attempt"]),
            run_id=str(body["run_id"]),
            created_at=datetime.fromisoformat(body["created_at"]),
            torch=str(body["torch"]),
            world_size=_count(body["world_size"]),
            cursor=dict(body["cursor"]),
            files={file: _file(file, entry) for file, entry in body["files"].items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise Damaged(f"the manifest is not readable ({type(error).__name__}: {error})") from error
    if checkpoint_name(manifest.step, manifest.attempt) != name:
        raise Damaged(f"the manifest is of step {manifest.step}, attempt {manifest.attempt}")
    return manifest


def _digest(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _file(name: str, entry: Mapping[str, Any]) -> File:
    if not _FILE_NAME.fullmatch(name):
        raise Damaged(f"the manifest names {name!r}, which is no component")
    if not isinstance(entry["sha256"], str) or not _SHA256.fullmatch(entry["sha256"]):
        raise Damaged(f"the manifest has no hash for {name}")
    return File(bytes=_count(entry["bytes"]), sha256=entry["sha256"])


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise Damaged(f"the manifest holds {value!r} where a count is wanted")
    return value
