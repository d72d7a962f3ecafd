"""The datasets by name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from flowmatch_jax.data.arrays import ArrayOptions, open_arrays
from flowmatch_jax.data.dataset import Dataset, Items
from flowmatch_jax.data.digits import digits
from flowmatch_jax.data.images import decode as images
from flowmatch_jax.data.images.encoded import CorruptImage, Pictures, decoded
from flowmatch_jax.data.images.folder import open_folder
from flowmatch_jax.data.images.records import default_data_dir, open_records
from flowmatch_jax.data.prepare.layouts import LAYOUTS
from flowmatch_jax.data.toy2d import DENSITIES
from flowmatch_jax.runtime.errors import UserError, fraction, one_of, section
from flowmatch_jax.runtime.own import blamed, is_own, one_of_or_own, resolve

# Datasets generated in memory: name -> function (split: "train" | "test") -> Dataset
MADE = {"digits": digits, **DENSITIES}
PREPARED = sorted({name.partition("/")[0] for name in LAYOUTS})
NAMES = (*MADE, *PREPARED, "folder", "arrays")
STORAGES = ("memory", "records", "device")


@dataclass(frozen=True)
class FolderOptions:
    """Options of datasets from folders; see `folder.open_folder` and `images.decode`."""

    path: str | None = None
    channels: int = 3
    background: str = "white"
    test_fraction: float = 0.1
    exclude: Sequence[str] = ()


@dataclass(frozen=True)
class Options:
    """The choice of a dataset and its storage.

    Attributes:
        name: one of NAMES, or a user's own dataset, module:function.
        version: version, for datasets with several.
        data_dir: folder of prepared datasets and decoded images; None: `default_data_dir`.
        size: images are cropped and resized to squares with this side; None: unchanged.
        classes: numbers of the classes whose items are kept; empty: all items.
        storage: "memory" (decoded once into a memory-mapped file), "device" (in addition copied to
            each device and indexed in the step) or "records" (decoded on access).
        max_corrupt: maximum number of unreadable images.
        folder: options of the dataset "folder".
        arrays: options of the dataset "arrays".
        options: keyword arguments of a user's own dataset.
    """

    name: str
    version: str | None = None
    data_dir: str | None = None
    size: int | None = None
    classes: Sequence[int] = ()
    storage: str = "memory"
    max_corrupt: int = 10
    folder: FolderOptions = FolderOptions()
    arrays: ArrayOptions = field(default_factory=ArrayOptions)
    options: Mapping[str, Any] = field(default_factory=dict)

    def validate(self) -> None:
        """Raise UserError for invalid options, as far as they can be checked without files."""
        one_of_or_own("name", self.name, NAMES)
        one_of("storage", self.storage, STORAGES)
        versions = [n.partition("/")[2] for n in LAYOUTS if n.startswith(f"{self.name}/")]
        if versions:
            one_of("version", self.version, versions)
        elif self.version is not None:
            raise UserError("version", self.version, f"{self.name} has one: leave it unset")
        if self.size is not None and (self.name in (*MADE, "arrays") or is_own(self.name)):
            raise UserError("size", self.size, f"{self.name} has its own: leave it unset")
        if self.classes and self.storage == "records":
            allowed = "images decoded on access are all used: leave it empty, or use memory"
            raise UserError("classes", self.classes, allowed)
        if self.name == "arrays":
            with section("arrays"):
                self.arrays.validate()
        if self.name == "folder":
            with section("folder"):
                if self.folder.path is None:
                    raise UserError("path", None, "name the folder of images")
                fraction("test_fraction", self.folder.test_fraction)
                images.validate(None, self.folder.channels, self.folder.background)
            if self.size is None:
                raise UserError("size", None, "pictures of a folder need one, such as 64")
        images.validate(self.size, 3, "white")


def open_dataset(options: Options, split: str) -> Dataset:
    """Open one split ("train" or "test") of a dataset.

    Raises:
        UserError: the dataset is not prepared, is damaged, has no images, has too many unreadable
            images, or lacks one of the classes.
    """
    dataset = _open_whole(options, split)
    return _of_classes(dataset, options.classes) if options.classes else dataset


def _open_whole(options: Options, split: str) -> Dataset:
    if options.name in MADE or is_own(options.name):
        return _make(options, split)
    if options.name == "arrays":
        with section("arrays"):
            return open_arrays(options.arrays, split)
    data_dir = Path(options.data_dir).expanduser() if options.data_dir else default_data_dir()
    if options.name == "folder":
        return _open_folder(options, split, data_dir)
    return _open_prepared(options, split, data_dir)


def _make(options: Options, split: str) -> Dataset:
    make = resolve("name", options.name, MADE, options.options)
    with blamed("name", options.name):
        dataset = make(split)
    if not isinstance(dataset, Dataset):
        allowed = f"it returns {type(dataset).__name__} for the split {split!r}: return a Dataset"
        raise UserError("name", options.name, allowed)
    return dataset


def _of_classes(dataset: Dataset, classes: Sequence[int]) -> Dataset:
    """Keep the items of these classes, in order; labels keep their numbers."""
    if dataset.label is None:
        raise UserError("classes", classes, f"{dataset.name} has none: leave it empty")
    if not isinstance(dataset.x, np.ndarray | Items):
        allowed = f"items of {dataset.name} are read one by one, and all used: leave it empty"
        raise UserError("classes", classes, allowed)
    for label in classes:
        if label not in dataset.label:
            allowed = f"no item of the {dataset.split} split of {dataset.name} has it"
            raise UserError("classes", label, allowed)
    chosen = np.flatnonzero(np.isin(dataset.label, classes))
    return replace(
        dataset,
        x=dataset.x[chosen],
        label=dataset.label[chosen],
        sha256=_hash(dataset.content_hash, *sorted(classes)),
    )


def _open_prepared(options: Options, split: str, data_dir: Path) -> Dataset:
    name = f"{options.name}/{options.version}" if options.version else options.name
    files = open_records(data_dir, name, LAYOUTS[name].version, split)
    manifest = files.manifest
    height, width, channels = manifest["shape"]
    size = None if options.size == height == width else options.size
    shape = (len(files), size or height, size or width, channels)
    x, kept = _stored(Pictures(files, shape, size), options, files.folder / "decoded", split)
    return Dataset(
        name=options.name,
        version=name.partition("/")[2] or manifest["version"],
        split=split,
        x=x,
        label=None if files.label is None else files.label[kept],
        levels=manifest["levels"],
        num_classes=manifest["num_classes"],
        sha256=_hash(manifest["splits"][split]["sha256"], *shape, *_missing(kept, shape[0])),
    )


def _open_folder(options: Options, split: str, data_dir: Path) -> Dataset:
    root, cache = Path(options.folder.path).expanduser().absolute(), data_dir / "folder"
    fields = options.folder
    try:
        with section("folder"):
            files = open_folder(root, split, cache, fields.test_fraction, fields.exclude)
    except OSError as error:
        raise UserError("folder.path", str(root), f"it cannot be read: {error}") from error
    shape = (len(files), options.size, options.size, fields.channels)
    pictures = Pictures(files, shape, options.size, fields.background, upright=True)
    sha256 = _hash(files.content_hash, *shape, fields.background)
    x, kept = _stored(pictures, options, cache / sha256[:16], split)
    if missing := _missing(kept, shape[0]):
        sha256 = _hash(sha256, *missing)
    return Dataset(
        name=root.name,
        version=files.content_hash[:16],
        split=split,
        x=x,
        label=None if files.label is None else files.label[kept],
        levels=256,
        num_classes=len(files.classes) or None,
        classes=tuple(files.classes) or None,
        sha256=sha256,
    )


def _stored(
    pictures: Pictures, options: Options, folder: Path, split: str
) -> tuple[np.ndarray | Pictures, np.ndarray | slice]:
    if options.storage == "records":
        _check_two_are_readable(pictures, options.max_corrupt, split)
        return pictures, slice(None)
    name = split if pictures.size is None else f"{split}-{pictures.size}"
    x, kept = decoded(pictures, folder / name, options.max_corrupt, f"decoding {split} images")
    if len(x) < 2:
        allowed = f"it leaves the {split} split {len(x)} images that can be read: too few"
        raise UserError("max_corrupt", options.max_corrupt, allowed)
    return x, kept


def _check_two_are_readable(pictures: Pictures, max_corrupt: int, split: str) -> None:
    """Raise UserError early if the split has fewer than two readable images."""
    readable, tried = 0, min(len(pictures), max_corrupt + 2)
    for i in range(tried):
        with suppress(CorruptImage):
            _ = pictures[i]
            readable += 1
        if readable == 2:
            return
    allowed = f"of the first {tried} images of the {split} split {readable} can be read: too few"
    raise UserError("max_corrupt", max_corrupt, allowed)


def _missing(kept: np.ndarray | slice, count: int) -> list[int]:
    """Return the indices of the images that could not be read."""
    everything = np.arange(count)
    return np.setdiff1d(everything, everything[kept]).tolist()


def _hash(*parts: object) -> str:
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()
