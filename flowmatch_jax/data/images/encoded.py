"""Images that are decoded on access, or decoded once into a memory-mapped file."""

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

CHUNK = 4096  # images decoded between two updates of the progress bar
SEALED, SEALED_BLOCKS = 4096, 256  # bytes of a block that a seal hashes, and number of blocks


class CorruptImage(ValueError):
    """Raised for an image that cannot be read; holds its name and the reason."""

    def __init__(self, name: str, reason: object) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, str(reason)


class Files(Protocol):
    """Encoded images by index; `read` raises `CorruptImage` for a damaged one."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> bytes: ...

    def name(self, i: int) -> str: ...


@dataclass(frozen=True)
class Pictures:
    """Encoded images as an array whose items are decoded on access.

    ``pictures[i]`` is uint8 [H, W, C], or raises `CorruptImage`.

    Attributes:
        files: the encoded images.
        shape: (N, H, W, C).
        size: images are cropped and resized to squares with this side; None: they are not resized.
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
        data = self.files.read(i)  # an OSError concerns the disk, not the image: it is not caught
        try:
            array = square(decode(data, self.shape[-1], self.background, self.upright), self.size)
        except Exception as error:  # decoders raise errors of any type for damaged data
            raise CorruptImage(self.files.name(i), error) from error
        if array.shape != self.shape[1:]:
            raise CorruptImage(self.files.name(i), f"its shape is {array.shape}")
        return array


class CorruptCount:
    """Count and log unreadable images, each once; exceeding the limit is an error."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[str] = set()

    def add(self, corrupt: Mapping[str, str]) -> None:
        """Add unreadable images, given as name -> reason.

        Raises:
            UserError: there are more than the limit.
        """
        for name, reason in corrupt.items():
            if name not in self._seen:
                self._seen.add(name)
                logger.warning("Unreadable image, skipped: %s: %s", name, reason)
        if len(self._seen) > self._limit:
            names = ", ".join(sorted(self._seen)[:3])
            allowed = f"{len(self._seen)} images cannot be read ({names}, ...): fix or allow them"
            raise UserError("max_corrupt", self._limit, allowed)


def decoded(
    pictures: Pictures, folder: Path, max_corrupt: int, desc: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return all images as one array, memory-mapped from a file that the first call writes.

    The file is built in a temporary folder and moved into place when complete. If several processes
    need it, one builds it and the others wait. A damaged file is built again.

    Args:
        pictures: the images.
        folder: folder for x.npy, kept.npy and corrupt.json.
        max_corrupt: maximum number of unreadable images, which are left out.
        desc: label of the progress bar.

    Returns:
        x uint8 [n, H, W, C], memory-mapped and read-only, and the indices [n] of its images.

    Raises:
        UserError: more images are unreadable, or the folder cannot be written.
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
            "data_dir, or decode them on access: storage=records"
        )
        raise UserError("storage", "memory", allowed) from error
    CorruptCount(max_corrupt).add(json.loads((folder / "corrupt.json").read_text()))
    return np.load(folder / "x.npy", mmap_mode="r"), np.load(folder / "kept.npy")


def _harm(folder: Path) -> str | None:
    """Return the reason why decoded images cannot be used, or None.

    The large file is checked by its size and some of its blocks, so that starting stays fast.
    """
    if not folder.is_dir():
        return "is not there"
    try:
        json.loads((folder / "corrupt.json").read_bytes())
        x, kept = np.load(folder / "x.npy", mmap_mode="r"), np.load(folder / "kept.npy")
        seal = folder / "seal.txt"  # absent in folders from older versions
        is_other = seal.exists() and seal.read_bytes() != _seal(folder / "x.npy").encode()
        if is_other or len(x) != len(kept):
            return "does not hold what was decoded"
    except (ValueError, EOFError, FileNotFoundError) as error:
        return f"cannot be read ({error})"
    return None


def _seal(path: Path) -> str:
    """Return a file's size and a hash of `SEALED_BLOCKS` blocks spread evenly over it."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for place in np.linspace(0, max(0, size - SEALED), SEALED_BLOCKS, dtype=np.int64):
            file.seek(int(place))
            digest.update(file.read(SEALED))
    return f"{size} {digest.hexdigest()}"


def _build(pictures: Pictures, folder: Path, max_corrupt: int, desc: str) -> None:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
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
    # The file is written, not mapped: a full disk then raises an error instead of a fatal signal.
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
    # NumPy pads the header for a first axis of any length, so that it can be rewritten in place.
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
