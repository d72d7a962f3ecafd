"""Files that are there whole or not at all, whatever is killed or crashes; locks; full disks."""

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


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read; FileNotFoundError: it is not there.
        Unreadable: it is cut, empty or no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise Unreadable(path, f"it is no whole JSON file: {error}") from error


class Unreadable(ValueError):
    """A file that does not hold what it is for: its path, and why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


def remembered(
    path: Path, load: Callable[[Path], T], make: Callable[[], T], dump: Callable[[T], bytes]
) -> T:
    """What ``make`` gives, remembered in a file of a cache, which is never worth a run.

    A file that cannot be read is made again, and one that cannot be written is done without, each
    with a warning.

    Args:
        load: reads the file; any exception of it means that the file is of no use.
        dump: turns the value into what is written.
    """
    try:
        return load(path)
    except FileNotFoundError:
        pass
    except Exception as error:  # a damaged file makes readers raise all kinds
        logger.warning("%s cannot be read, and is made again: %s", path, error)
    value = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, dump(value))
    except OSError as error:
        logger.warning("%s cannot be written, and is made again next time: %s", path, error)
    return value


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


@contextmanager
def owned(path: Path, owner: str) -> Iterator[str | None]:
    """Own a file in this block, unless it is owned already; yields who owns it, or None for us.

    The system ends an owner's hold with its process, however that ends. It reaches other hosts on
    NFS version 4, and on Lustre where that is mounted with flock. A file system without locks is
    warned of, and nobody is kept out.

    Args:
        path: of the lock, a file of no other use.
        owner: how this process is told to others.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            yield file.read().strip() or "another process"
            return
        except OSError as error:
            logger.warning("%s cannot be locked (%s): give it to one run alone", path, error)
        file.truncate(0)
        file.write(f"{owner}\n")
        file.flush()
        yield None


@contextmanager
def full_disk_stops(folder: Path) -> Iterator[None]:
    """Turn any error in this block that comes of a full disk into RunStopped.

    Args:
        folder: on the disk that is written to, as it is told.
    """
    try:
        yield
    except Exception as error:
        if not _is_of_full_disk(error):
            raise
        raise RunStopped(
            f"the disk of {folder} is full; free some of it, and the same command goes on from "
            "what is there, which is whole"
        ) from error


def _is_of_full_disk(error: BaseException | None) -> bool:
    """Whether it, or what caused it, says so: libraries in C++ tell it by their message alone."""
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
    """The contents of an npz file with these arrays, uncompressed."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
