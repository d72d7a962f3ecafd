"""Sets of images of one size, from a folder of pictures or an array in an .npy or .npz file.

They are read in batches, so that memory holds a few images at a time.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from flowmatch_jax.data.images.decode import read_shape
from flowmatch_jax.data.images.encoded import CorruptImage, Pictures
from flowmatch_jax.data.images.folder import list_pictures
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.progress import progress_bar

FILES = "a folder of pictures, or an .npy or .npz file with a uint8 array [N, H, W, C]"
DAMAGED = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)
Shape = tuple[int, int, int]
Header = tuple[tuple[int, ...], bool, np.dtype]  # shape, whether in Fortran order, dtype


@dataclass(frozen=True)
class ImageSet:
    """Images of one size.

    Attributes:
        path: where they are from.
        shape: (N, H, W, C) with C = 1 (grey) or 3 (RGB), or any C in an array.
        batches: (size) -> the images in order, in batches uint8 [size or fewer, H, W, C]. Iterating
            raises UserError for an image that cannot be read.
    """

    path: Path
    shape: tuple[int, int, int, int]
    batches: Callable[[int], Iterator[np.ndarray]]

    def __len__(self) -> int:
        return self.shape[0]


def open_images(path: Path, size: int | None = None) -> ImageSet:
    """Open a set of images. Only headers are read.

    An .npz file may hold other arrays besides that of the images, such as labels.

    Args:
        path: a folder, which is searched recursively, or an .npy or .npz file.
        size: crop the pictures of a folder to squares and resize them to this side, as folder
            datasets do; None: they must be of one size.

    Raises:
        UserError: there are no images, they have several sizes, or the file is damaged or has no
            array or several arrays of images, or one that is not uint8.
    """
    if path.is_dir():
        return _open_folder(path, size)
    if not path.is_file():
        raise UserError("path", str(path), f"it does not exist; give {FILES}")
    try:
        return _open_npz(path) if zipfile.is_zipfile(path) else _open_npy(path)
    except UserError:
        raise
    except DAMAGED as error:
        raise UserError("path", str(path), f"it cannot be read ({error}); give {FILES}") from error


@dataclass(frozen=True)
class NamedFiles:
    """Encoded pictures by index, see `encoded.Files`: files below a folder."""

    root: Path
    paths: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int) -> bytes:
        return (self.root / self.paths[i]).read_bytes()

    def name(self, i: int) -> str:
        return str(self.root / self.paths[i])


def picture_shapes(root: Path, names: list[str]) -> list[Shape]:
    """Read the shapes of pictures below a folder from their headers, see `decode.read_shape`.

    Raises:
        UserError: a picture cannot be read.
    """

    def shape(name: str) -> Shape:
        try:
            return read_shape(root / name)
        except Exception as error:  # Pillow's readers raise errors of many types
            raise unreadable(root / name, error) from error

    with (
        ThreadPoolExecutor() as pool,
        progress_bar(pool.map(shape, names), total=len(names), desc=f"opening {root.name}") as bar,
    ):
        return list(bar)


def unreadable(path: Path, reason: object) -> UserError:
    """Return the error of a file that is damaged or no image."""
    return UserError("path", str(path), f"it cannot be read ({reason}); mend or remove it")


def _open_folder(root: Path, size: int | None) -> ImageSet:
    names = list_pictures(root)
    shapes = picture_shapes(root, names)
    first, sides = names[0], shapes[0][:2]
    for name, (*other, _) in zip(names, shapes, strict=True):
        if size is None and tuple(other) != sides:
            got = f"{root / first} of {sides} and {root / name} of {tuple(other)} pixels"
            raise UserError("path", got, "all must have one size: crop and resize them by --size")
    channels = max(channels for *_, channels in shapes)
    sides = sides if size is None else (size, size)
    shape = (len(names), *sides, channels)
    pictures = Pictures(NamedFiles(root, names), shape, size, upright=True)

    def read(i: int) -> np.ndarray:
        try:
            return pictures[i]
        except CorruptImage as error:
            raise unreadable(Path(error.name), error.reason) from error

    def batches(size: int) -> Iterator[np.ndarray]:
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(names), size):
                part = range(start, min(start + size, len(names)))
                yield np.stack(list(pool.map(read, part)))

    return ImageSet(root, shape, batches)


def _open_npy(path: Path) -> ImageSet:
    array = np.load(path, mmap_mode="r")
    _check_images(path, {"": (array.shape, False, array.dtype)}, "")

    def batches(size: int) -> Iterator[np.ndarray]:
        return (np.asarray(array[i : i + size]) for i in range(0, len(array), size))

    return ImageSet(path, array.shape, batches)


def _open_npz(path: Path) -> ImageSet:
    with zipfile.ZipFile(path) as archive:
        arrays = {}
        for name in archive.namelist():
            with archive.open(name) as file:
                arrays[name] = _read_header(file)
    found = [name for name, (shape, *_) in arrays.items() if len(shape) == 4]
    name = found[0] if len(found) == 1 else ""
    _check_images(path, arrays, name)

    def batches(size: int) -> Iterator[np.ndarray]:
        try:
            yield from _read_in_parts(path, name, size)
        except DAMAGED as error:
            raise unreadable(path, error) from error

    return ImageSet(path, arrays[name][0], batches)


def _check_images(path: Path, arrays: dict[str, Header], name: str) -> None:
    """Raise UserError unless the array of this name is one of images."""
    shape, in_fortran_order, dtype = arrays.get(name, ((), False, None))
    if len(shape) != 4 or 0 in shape or dtype != np.uint8 or in_fortran_order:
        held = ", ".join(
            f"{entry.removesuffix('.npy')} {dtype} {list(shape)}".strip()
            for entry, (shape, _, dtype) in arrays.items()
        )
        wanted = "it must hold one array of images, uint8 [N, H, W, C] in C order"
        raise UserError("path", str(path), f"{wanted}; it holds {held or 'none'}")


def _read_in_parts(path: Path, name: str, size: int) -> Iterator[np.ndarray]:
    """Read an array of an npz file from its beginning to its end, ``size`` images at a time."""
    with zipfile.ZipFile(path) as archive, archive.open(name) as file:
        (total, *image), *_ = _read_header(file)
        for start in range(0, total, size):
            count = min(size, total - start)
            data = file.read(count * math.prod(image))
            yield np.frombuffer(data, np.uint8).reshape(count, *image)


def _read_header(file: IO[bytes]) -> Header:
    if np.lib.format.read_magic(file) == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)
