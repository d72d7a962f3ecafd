"""Any folder of images.

Subfolders are classes where every image is in one; hidden ones and links to folders are not
looked into. Files of the same content count once. Which
split an image belongs to is told by its content's hash, so that it stays there when others come
and go; splits are ordered by that hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.files import Unreadable, read_json, remembered
from flowmatch_jax.runtime.progress import progress_bar

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class FolderFiles:
    """The encoded pictures of one split; see `encoded.Files`.

    Attributes:
        root: of the folder.
        paths: below it.
        sha256: of each file.
        label: int32 [N], or None without classes.
        classes: their names.
    """

    root: Path
    paths: tuple[str, ...]
    sha256: tuple[str, ...]
    label: np.ndarray | None
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int) -> bytes:
        return (self.root / self.paths[i]).read_bytes()

    def name(self, i: int) -> str:
        return self.paths[i]

    @property
    def content_hash(self) -> str:
        """sha256 of the files' hashes."""
        return hashlib.sha256("".join(self.sha256).encode()).hexdigest()


def open_folder(
    root: Path, split: str, cache: Path, test_fraction: float, exclude: Sequence[str] = ()
) -> FolderFiles:
    """The images of one split of a folder.

    Args:
        cache: folder where the files' hashes are kept, so that they are computed once.
        test_fraction: of the images, by their hash.
        exclude: patterns of file names that are left out.

    Raises:
        UserError: no such folder, no images in it, or none in the split.
    """
    files = list_pictures(root, exclude)
    hashes = _hashes(root, files, cache)
    first = {sha: path for path, sha in zip(reversed(files), reversed(hashes), strict=True)}
    chosen = [sha for sha in sorted(first) if _is_test(sha, test_fraction) == (split == "test")]
    if len(chosen) < 2:
        allowed = f"that leaves the {split} split {len(chosen)} of {len(first)} images in {root}"
        raise UserError("test_fraction", test_fraction, allowed)
    paths = [first[sha] for sha in chosen]
    classes = sorted({Path(path).parts[0] for path in files})
    label = None
    if all(len(Path(path).parts) > 1 for path in files):
        numbers = {name: number for number, name in enumerate(classes)}
        label = np.array([numbers[Path(path).parts[0]] for path in paths], np.int32)
    return FolderFiles(
        root, tuple(paths), tuple(chosen), label, tuple(classes) if label is not None else ()
    )


def _is_test(sha: str, fraction: float) -> bool:
    return int(sha[:8], 16) < fraction * 2**32


def list_pictures(root: Path, exclude: Sequence[str] = ()) -> list[str]:
    """Paths below root of its pictures, in order, hidden ones left out.

    Args:
        exclude: patterns of file names that are left out too.

    Raises:
        UserError: no such folder, or no picture in it.
    """
    if not root.is_dir():
        raise UserError("path", str(root), "there is no such folder")
    below = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    files = sorted(
        path.as_posix()
        for path in below
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.parts)
        and not any(fnmatch(path.name, pattern) for pattern in exclude)
    )
    if not files:
        left = " that is not excluded" if exclude else ""
        allowed = f"there is no image in it ({', '.join(SUFFIXES)}){left}"
        raise UserError("path", str(root), allowed)
    return files


def _hashes(root: Path, files: list[str], cache: Path) -> list[str]:
    """sha256 of each file; remembered until a name, size or time of change is another."""
    stats = [(root / path).stat() for path in files]
    listing = [
        [path, stat.st_size, stat.st_mtime_ns] for path, stat in zip(files, stats, strict=True)
    ]
    known = cache / f"{hashlib.sha256(json.dumps([str(root), listing]).encode()).hexdigest()}.json"

    def sha256(path: str) -> str:
        return hashlib.sha256((root / path).read_bytes()).hexdigest()

    def make() -> list[str]:
        with ThreadPoolExecutor() as pool:
            hashing = pool.map(sha256, files)
            with progress_bar(hashing, total=len(files), desc=f"hashing {root.name}") as bar:
                return list(bar)

    def load(path: Path) -> list[str]:
        hashes = read_json(path)
        if len(hashes) != len(files) or not all(len(sha) == 64 for sha in hashes):
            raise Unreadable(path, "it does not hold a hash of each file")
        return hashes

    return remembered(known, load, make, lambda hashes: json.dumps(hashes).encode())
