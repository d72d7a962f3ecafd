"""Pictures that are decoded when they are read, and the same decoded once into a mapped file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from flowmatch_jax.data.images.decode import decode, square
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.files import locked, move_folder
from flowmatch_jax.runtime.progress import progress_bar

logger = logging.getLogger(__name__)

CHUNK = 4096  # images decoded between two writes
SEALED, SEALED_BLOCKS = 4096, 256  # bytes of a block that a seal knows, and how many there are


class CorruptImage(ValueError):
    """A picture that cannot be read: its name, and why."""

    def __init__(self, name: str, reason: object) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, str(reason)


class Files(Protocol):
    """Encoded pictures by index; `read` raises `CorruptImage` for what is damaged."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> bytes: ...

    def name(self, i: int) -> str: ...


@dataclass(frozen=True)
class Pictures:
    """Encoded pictures as an array of images, each decoded when it is read.

    ``pictures[i]`` is uint8 [H, W, C], or raises `CorruptImage`.

    Attributes:
        files: the encoded pictures.
        shape: (N, H, W, C).
        size: pictures become squares of this side; None: they are of this shape already.
        background, upright: see `images.decode`.
    """

    files: Files
    shape: tuple[int, int, int, int]
    size: int | None = None
    background: str = "white"
    upright: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> np.ndarray:
        data = self.files.read(i)  # an OSError is the disk's, not the picture's
        try:
            array = square(decode(data, self.shape[-1], self.background, self.upright), self.size)
        except Exception as error:  # damaged data makes decoders raise all kinds
            raise CorruptImage(self.files.name(i), error) from error
        if array.shape != self.shape[1:]:
            raise CorruptImage(self.files.name(i), f"its shape is {array.shape}")
        return array


class CorruptCount:
    """Counts unreadable pictures, each once; logs its name; beyond the limit it is an error."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[str] = set()

    def add(self, corrupt: Mapping[str, str]) -> None:
        """Take names of pictures and why they cannot be read.

        Raises:
            UserError: there are more than the limit.
        """
        for name, reason in corrupt.items():
            if name not in self._seen:
                self._seen.add(name)
                logger.warning("Unreadable image, skipped: %s: %s", name, reason)
        if len(self._seen) > self._limit:
            names = ", ".join(sorted(self._seen)[:3])
            allowed = f"{len(self._seen)} images cannot be read ({names}, ...): mend or allow them"
            raise UserError("max_corrupt", self._limit, allowed)


def decoded(
    pictures: Pictures, folder: Path, max_corrupt: int, desc: str
) -> tuple[np.ndarray, np.ndarray]:
    """All pictures as one array, mapped from a file that is made the first time.

    The file is built beside its place and moved there when whole; of several processes one builds
    and the others wait. One that is no longer what was built is built again.

    Args:
        folder: where x.npy, kept.npy and corrupt.json go.
        max_corrupt: pictures that may be unreadable; they are left out.
        desc: of the progress bar.

    Returns:
        x uint8 [n, H, W, C], mapped and read-only, and the indices [n] of its pictures.

    Raises:
        UserError: more are unreadable, or the folder cannot be written.
    """
    try:
        if _harm(folder) is not None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(folder.with_suffix(".lock")):
                harm = _harm(folder)
                if folder.is_dir() and harm is not None:
                    logger.warning("%s %s: its pictures are decoded again", folder, harm)
                    shutil.rmtree(folder)
                if harm is not None:
                    _build(pictures, folder, max_corrupt, desc)
    except OSError as error:
        allowed = (
            f"the images cannot be decoded into {folder} ({error}); make room, give another "
            "data_dir, or decode them whenever they are read: storage=records"
        )
        raise UserError("storage", "memory", allowed) from error
    CorruptCount(max_corrupt).add(json.loads((folder / "corrupt.json").read_text()))
    return np.load(folder / "x.npy", mmap_mode="r"), np.load(folder / "kept.npy")


def _harm(folder: Path) -> str | None:
    """What keeps decoded pictures from being used; None where nothing does.

    The large file is judged by its size and some of its blocks, so that a start stays quick.
    """
    if not folder.is_dir():
        return "is not there"
    try:
        json.loads((folder / "corrupt.json").read_bytes())
        x, kept = np.load(folder / "x.npy", mmap_mode="r"), np.load(folder / "kept.npy")
        seal = folder / "seal.txt"  # which older ones have not
        is_other = seal.exists() and seal.read_bytes() != _seal(folder / "x.npy").encode()
        if is_other or len(x) != len(kept):
            return "does not hold what was decoded"
    except (ValueError, EOFError, FileNotFoundError) as error:
        return f"cannot be read ({error})"
    return None


def _seal(path: Path) -> str:
    """The size of a file and a hash of blocks of it, some hundred from its begin to its end."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for place in np.linspace(0, max(0, size - SEALED), SEALED_BLOCKS, dtype=np.int64):
            file.seek(int(place))
            digest.update(file.read(SEALED))
    return f"{size} {digest.hexdigest()}"


def _build(pictures: Pictures, folder: Path, max_corrupt: int, desc: str) -> None:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        kept, corrupt = _decode_into(partial / "x.npy", pictures, max_corrupt, desc)
        np.save(partial / "kept.npy", np.array(kept, np.int64))
        (partial / "corrupt.json").write_text(json.dumps(corrupt))
        (partial / "seal.txt").write_text(_seal(partial / "x.npy"))
        move_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _decode_into(
    path: Path, pictures: Pictures, max_corrupt: int, desc: str
) -> tuple[list[int], dict[str, str]]:
    # Written, not mapped: a full disk is then an error instead of a signal that kills.
    kept: list[int] = []
    corrupt: dict[str, str] = {}

    def read(i: int) -> np.ndarray | CorruptImage:
        try:
            return pictures[i]
        except CorruptImage as error:
            return error

    with (
        path.open("wb") as file,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress_bar(total=len(pictures), desc=desc) as bar,
    ):
        _write_header(file, pictures.shape)
        for start in range(0, len(pictures), CHUNK):
            indices = range(start, min(start + CHUNK, len(pictures)))
            for i, image in zip(indices, pool.map(read, indices), strict=True):
                if isinstance(image, CorruptImage):
                    corrupt[image.name] = image.reason
                else:
                    kept.append(i)
                    file.write(image.tobytes())
            if len(corrupt) > max_corrupt:
                CorruptCount(max_corrupt).add(corrupt)
            bar.update(len(indices))
        file.seek(0)
        _write_header(file, (len(kept), *pictures.shape[1:]))
    return kept, corrupt


def _write_header(file: object, shape: tuple[int, ...]) -> None:
    # NumPy leaves room for a first axis of any length, so that the header can be written again.
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
