"""Atomic file writes, file caches, locks between processes, and detection of full disks."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from flowmatch_jax.runtime.errors import RunStopped

logger = logging.getLogger(__name__)

T = TypeVar("T")


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write a file to a temporary name, flush it to disk, and move it into place."""
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        with partial.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: the file cannot be read; FileNotFoundError if it does not exist.
        Unreadable: the file is truncated, empty or not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise Unreadable(path, f"it is no whole JSON file: {error}") from error


class Unreadable(ValueError):
    """Raised for a file with unexpected content; holds its path and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


def remembered(
    path: Path, load: Callable[[Path], T], make: Callable[[], T], dump: Callable[[T], bytes]
) -> T:
    """Return the result of ``make``, cached in a file. Failures of the cache never end a run.

    If the file cannot be read, the value is computed again; if it cannot be written, the value is
    not cached. Either case logs a warning.

    Args:
        path: path of the cache file.
        load: reads the file; any exception means that the file is unusable.
        make: computes the value.
        dump: serialises the value.
    """
    try:
        return load(path)
    except FileNotFoundError:
        pass
    except Exception as error:  # readers raise errors of any type for a damaged file
        logger.warning("%s cannot be read and is computed again: %s", path, error)
    value = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, dump(value))
    except OSError as error:
        logger.warning("%s cannot be written and is computed again next time: %s", path, error)
    return value


def move_folder(partial: Path, final: Path) -> None:
    """Flush a finished folder to disk and rename it to its final name."""
    for path in (*partial.rglob("*"), partial):
        _to_disk(path)
    partial.rename(final)
    _to_disk(final.parent)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time run this block. ``path`` is a file used for nothing else."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def owned(path: Path, owner: str) -> Iterator[str | None]:
    """Try to hold a lock during this block; yields its present owner, or None if it was free.

    The system releases the lock when the owner's process ends in any way. Locks work between hosts
    on NFS version 4, and on Lustre if it is mounted with flock. A file system without locks causes
    a warning and excludes nobody.

    Args:
        path: lock file, used for nothing else.
        owner: description of this process for other processes.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            yield file.read().strip() or "another process"
            return
        except OSError as error:
            logger.warning("%s cannot be locked (%s): use it for one run at a time", path, error)
        file.truncate(0)
        file.write(f"{owner}\n")
        file.flush()
        yield None


@contextmanager
def full_disk_stops(folder: Path) -> Iterator[None]:
    """Turn any error in this block that a full disk causes into RunStopped.

    Args:
        folder: folder on that disk, for the message.
    """
    try:
        yield
    except Exception as error:
        if not _is_of_full_disk(error):
            raise
        raise RunStopped(
            f"the disk of {folder} is full; the files written before are intact. Free some space "
            "and run the same command to continue"
        ) from error


def _is_of_full_disk(error: BaseException | None) -> bool:
    """Test whether an error or one of its causes means a full disk.

    C++ libraries report it in the message only.
    """
    while error is not None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or any(os.strerror(n) in str(error) for n in (errno.ENOSPC, errno.EDQUOT)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def npz(**arrays: Any) -> bytes:
    """Serialise arrays to the bytes of an uncompressed npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
