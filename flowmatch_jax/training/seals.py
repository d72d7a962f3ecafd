"""Seals of checkpoints: lists of their files with sizes and hashes, which reveal damage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from flowmatch_jax.runtime.files import write_atomically

SEAL = "files.json"


def write_seal(folder: Path) -> None:
    """Record the sizes and hashes of a checkpoint's files in the checkpoint itself."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _hash(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != SEAL
    }
    write_atomically(folder / SEAL, json.dumps(files, indent=1) + "\n")


def damage(folder: Path, parts: Iterable[str]) -> str | None:
    """Describe how the files of a checkpoint differ from what was written; None if they do not.

    For a checkpoint without a seal, because the run was killed or is older, only the presence of
    files in each part is checked.

    Args:
        folder: folder of the checkpoint.
        parts: subfolders of a checkpoint.

    Raises:
        OSError: a file exists but cannot be read.
    """
    if not (folder / SEAL).exists():
        empty = [part for part in parts if not any(f.is_file() for f in (folder / part).rglob("*"))]
        return f"it has no {' and no '.join(empty)}" if empty else None
    try:
        files = json.loads((folder / SEAL).read_bytes())
        written = {name: (file["bytes"], file["sha256"]) for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {SEAL} is not what was written"
    for name, (size, sha256) in written.items():
        path = folder / name
        try:
            if path.stat().st_size != size:
                return f"its {name} has {path.stat().st_size} bytes in place of {size}"
            if _hash(path) != sha256:
                return f"its {name} is not what was written"
        except FileNotFoundError:
            return f"it has no {name}"
    return None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
