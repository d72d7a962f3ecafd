"""Files that are there whole or not at all, whatever is killed or crashes; and locks."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write a file beside its place and move it there when it is on the disk."""
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        with partial.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def move_folder(partial: Path, final: Path) -> None:
    """Give a finished folder its name, after all that is in it is on the disk."""
    for path in (*partial.rglob("*"), partial):
        _to_disk(path)
    partial.rename(final)
    _to_disk(final.parent)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time in this block; the others wait. ``path`` is a file of no other use."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
