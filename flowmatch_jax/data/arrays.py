"""Datasets from NumPy files: images or points.

A .npy file is the array itself, which is memory-mapped. An .npz file has the array as `images`,
`points` or `x`, or as its only one, and may have labels as `labels` or `label`. Without a file for
the test split, the hash of an item's bytes determines its split, as in folders of images: an item
stays in its split when others are added or removed.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowmatch_jax.data.dataset import Dataset
from flowmatch_jax.data.images.folder import is_test
from flowmatch_jax.runtime.errors import UserError, fraction

NAMES = ("images", "points", "x")
LABELS = ("labels", "label")
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class ArrayOptions:
    """Options of datasets from NumPy files.

    Attributes:
        train: file of the training split.
        test: file of the test split; None: a part of the other file.
        test_fraction: fraction of the items in the test split, if it has no file.
        levels: grey levels of images.
    """

    train: str | None = None
    test: str | None = None
    test_fraction: float = 0.1
    levels: int = 256

    def validate(self) -> None:
        """Raise UserError for invalid options, as far as they can be checked without files."""
        if self.train is None:
            raise UserError("train", None, "name a .npy or .npz file")
        fraction("test_fraction", self.test_fraction)
        if not 2 <= self.levels <= 256:
            raise UserError("levels", self.levels, "bytes have 2 to 256 levels")


@dataclass(frozen=True)
class _Arrays:
    """The content of a file: images uint8 [N, H, W, C] or points float32 [N, D], and labels [N]."""

    x: np.ndarray
    label: np.ndarray | None

    def __getitem__(self, chosen: np.ndarray) -> _Arrays:
        return _Arrays(self.x[chosen], None if self.label is None else self.label[chosen])

    @property
    def kind(self) -> str:
        labels = "without labels" if self.label is None else "with labels"
        return f"{self.x.dtype} of shape {self.x.shape[1:]} {labels}"


def open_arrays(options: ArrayOptions, split: str) -> Dataset:
    """Open one split ("train" or "test") of a dataset from NumPy files.

    Raises:
        UserError: a file cannot be read, has other arrays than images or points and their labels,
            or is unlike the other split's.
    """
    train = _read("train", options.train, options.levels)
    if options.test is None:
        parts = (train,)
        here = train[_is_in(split, train.x, options)]
    else:
        parts = (train, _read("test", options.test, options.levels))
        if parts[1].kind != train.kind:
            allowed = f"the training split is {train.kind}: give a test split of that kind"
            raise UserError("test", f"{options.test}: {parts[1].kind}", allowed)
        here = parts[split == "test"]
    sha256 = hashlib.sha256(np.ascontiguousarray(here.x))
    if here.label is not None:
        sha256.update(here.label)
    return Dataset(
        name=Path(options.train).stem,
        version=sha256.hexdigest()[:16],
        split=split,
        x=here.x,
        label=here.label,
        levels=options.levels if here.x.dtype == np.uint8 else None,
        num_classes=None if here.label is None else 1 + max(int(a.label.max()) for a in parts),
        sha256=sha256.hexdigest(),
    )


def _is_in(split: str, x: np.ndarray, options: ArrayOptions) -> np.ndarray:
    """Return which items are in a split of a file that holds both; bool [N]."""
    hashes = (hashlib.sha256(item).hexdigest() for item in np.ascontiguousarray(x))
    test = np.array([is_test(sha, options.test_fraction) for sha in hashes])
    for name, count in (("test", test.sum()), ("train", (~test).sum())):
        if count < 2:
            allowed = f"that leaves the {name} split {count} of {len(x)} items in {options.train}"
            raise UserError("test_fraction", options.test_fraction, allowed)
    return test if split == "test" else ~test


def _read(field: str, path: str, levels: int) -> _Arrays:
    try:
        loaded = np.load(Path(path).expanduser(), mmap_mode="r")
        x, label = loaded, None
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                name, of_labels = _names(field, path, loaded.files)
                x, label = loaded[name], loaded[of_labels] if of_labels else None
    except FileNotFoundError as error:
        raise UserError(field, path, "there is no such file") from error
    except UserError:
        raise
    except UNREADABLE as error:
        reason = str(error).partition(". ")[0]  # NumPy's next sentences are advice on pickles
        allowed = f"it is no .npy or .npz file that can be read: {reason}"
        raise UserError(field, path, allowed) from error
    x = _items(field, path, x, levels)
    return _Arrays(x, None if label is None else _labels(field, path, label, x))


def _names(field: str, path: str, names: Sequence[str]) -> tuple[str, str | None]:
    """Return the names of the items and of the labels in an .npz file."""
    labels = [name for name in names if name in LABELS]
    others = [name for name in names if name not in LABELS]
    items = [name for name in others if name in NAMES] or others
    if len(items) != 1 or len(labels) > 1:
        allowed = (
            f"name the array of its items {', '.join(NAMES[:-1])} or {NAMES[-1]}, and their labels "
            f"{' or '.join(LABELS)}"
        )
        raise UserError(field, f"{path}: {', '.join(names) or 'no arrays'}", allowed)
    return items[0], next(iter(labels), None)


def _items(field: str, path: str, x: np.ndarray, levels: int) -> np.ndarray:
    got = f"{path}: {x.dtype} {x.shape}"
    is_image = x.dtype == np.uint8 and x.ndim == 4
    if not is_image and not (x.dtype.kind == "f" and x.ndim == 2):
        raise UserError(field, got, "images are uint8 [N, H, W, C], points are floats [N, D]")
    if x.size == 0:
        raise UserError(field, got, "it is empty")
    if is_image:
        if x.max() >= levels:
            allowed = f"with levels = {levels} they are 0 to {levels - 1}"
            raise UserError(field, f"{got} up to {x.max()}", allowed)
        return x
    with np.errstate(over="ignore"):
        x = x.astype(np.float32, copy=False)
    if not np.isfinite(x).all():
        raise UserError(field, got, "points are finite, also in float32")
    return x


def _labels(field: str, path: str, label: np.ndarray, x: np.ndarray) -> np.ndarray:
    is_right = label.dtype.kind in "iu" and label.shape == x.shape[:1]
    if not is_right or label.min() < 0 or label.max() >= 2**31:
        allowed = f"labels are integers from 0, one for each of the {len(x)} items"
        raise UserError(field, f"{path}: labels {label.dtype} {label.shape}", allowed)
    return label.astype(np.int32)
