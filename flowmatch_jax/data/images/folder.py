"""Datasets from arbitrary folders of images.

If every image is in a subfolder, the subfolders are the classes. Hidden folders and links to
folders are skipped. Files with equal content count once. The hash of an image's content determines
its split and its position in the split, so that an image stays in its split when others are added
or removed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import numpy as np

from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.files import Unreadable, read_json, remembered
from flowmatch_jax.runtime.progress import progress_bar

logger = logging.getLogger(__name__)

SHOWN = 10  # classes in the log
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class FolderFiles:
    """The encoded images of one split; see `encoded.Files`.

    Attributes:
        root: the folder.
        paths: paths of the images relative to ``root``.
        sha256: hash of each file.
        label: int32 [N], or None without classes.
        classes: names of the classes.
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
        """The sha256 of the files' hashes."""
        return hashlib.sha256("".join(self.sha256).encode()).hexdigest()


def open_folder(
    root: Path, split: str, cache: Path, test_fraction: float, exclude: Sequence[str] = ()
) -> FolderFiles:
    """Open one split of a folder of images.

    Args:
        root: the folder.
        split: "train" or "test".
        cache: folder that stores the files' hashes, so that they are computed only once.
        test_fraction: fraction of the images in the test split, selected by hash.
        exclude: patterns of file names to leave out.

    Raises:
        UserError: the folder does not exist or has no images, or the split has fewer than two.
    """
    files = list_pictures(root, exclude)
    hashes = _hashes(root, files, cache)
    first = {sha: path for path, sha in zip(reversed(files), reversed(hashes), strict=True)}
    chosen = [sha for sha in sorted(first) if is_test(sha, test_fraction) == (split == "test")]
    if len(chosen) < 2:
        allowed = f"that leaves the {split} split {len(chosen)} of {len(first)} images in {root}"
        raise UserError("test_fraction", test_fraction, allowed)
    paths = [first[sha] for sha in chosen]
    classes = sorted({Path(path).parts[0] for path in files})
    label = None
    if all(len(Path(path).parts) > 1 for path in files):
        numbers = {name: number for number, name in enumerate(classes)}
        label = np.array([numbers[Path(path).parts[0]] for path in paths], np.int32)
    classes = classes if label is not None else []
    tests = sum(is_test(sha, test_fraction) for sha in first)
    _tell(root, len(files), len(first), tests, tuple(classes))
    return FolderFiles(root, tuple(paths), tuple(chosen), label, tuple(classes))


@cache  # once for both splits
def _tell(root: Path, files: int, pictures: int, tests: int, classes: tuple[str, ...]) -> None:
    """Log what was found in a folder."""
    more = files - pictures
    duplicates = f", {more} duplicate{'s' if more > 1 else ''}" if more else ""
    shown = ", ".join(f"{number} {name}" for number, name in enumerate(classes[:SHOWN]))
    last = f", ... {len(classes) - 1} {classes[-1]}" if len(classes) > SHOWN else ""
    logger.info(
        "%s: %d pictures%s; %d to train, %d to test; %s",
        root,
        pictures,
        duplicates,
        pictures - tests,
        tests,
        f"classes {shown}{last}" if classes else "no classes",
    )


def is_test(sha: str, fraction: float) -> bool:
    """Whether the item with this sha256 belongs to the test split, a fraction of all items."""
    return int(sha[:8], 16) < fraction * 2**32


def list_pictures(root: Path, exclude: Sequence[str] = ()) -> list[str]:
    """List the paths of the images below ``root``, sorted, without hidden ones.

    Args:
        root: the folder.
        exclude: patterns of file names to leave out.

    Raises:
        UserError: the folder does not exist or has no images.
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
    """Compute the sha256 of each file; cached until a name, size or modification time changes."""
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
