"""Published archives and iterators over their images.

A `Layout` describes the archives of a dataset, their checksums, and how to iterate over them.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Item(NamedTuple):
    """One image of an archive.

    Attributes:
        name: name for error messages.
        label: label in [0, num_classes), or None.
        load: returns the image, uint8 [H, W, C] or encoded; it must be called before the iterator
            advances.
    """

    name: str
    label: int | None
    load: Callable[[], np.ndarray | bytes]


Walk = Callable[[Sequence[Path]], Iterator[Item]]


@dataclass(frozen=True)
class Archive:
    """A published archive.

    Attributes:
        file: file name.
        sha256: hash of the file.
        url: public download address, or None.
        decompressed: ``sha256`` is the hash of the decompressed content.
    """

    file: str
    sha256: str
    url: str | None = None
    decompressed: bool = False


@dataclass(frozen=True)
class Split:
    """The archives of a split, the iterator over their images, and the number of images."""

    archives: tuple[Archive, ...]
    walk: Walk
    images: int


@dataclass(frozen=True)
class Layout:
    """A dataset as it is published.

    Attributes:
        name, version: name and version of the prepared dataset.
        shape: (H, W, C) of the prepared images.
        splits: "train" and "test".
        num_classes: number of classes; None without labels.
        origin: source of the archives, for error messages.
        found: folders in which system packages install them.
    """

    name: str
    version: str
    shape: tuple[int, int, int]
    splits: Mapping[str, Split]
    num_classes: int | None
    origin: str
    found: tuple[str, ...] = ()

    @property
    def archives(self) -> list[Archive]:
        """All archives without duplicates."""
        return list(dict.fromkeys(a for split in self.splits.values() for a in split.archives))


def walk_idx(paths: Sequence[Path]) -> Iterator[Item]:
    """Iterate over gzipped idx files of images and labels, MNIST's layout."""
    images, labels = (gzip.decompress(path.read_bytes()) for path in paths)
    count, height, width = np.frombuffer(images, ">i4", 3, offset=4)
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(count, height, width, 1)
    for i, label in enumerate(np.frombuffer(labels, np.uint8, offset=8)):
        yield Item(f"{paths[0].name}:{i}", int(label), lambda i=i: pixels[i])


def cifar10_walk(files: Sequence[str]) -> Walk:
    """Return an iterator over files in the tar of CIFAR-10's binary version.

    The records are a label followed by 3 x 32 x 32 bytes.
    """

    def walk(paths: Sequence[Path]) -> Iterator[Item]:
        with tarfile.open(paths[0]) as tar:
            for file in files:
                data = tar.extractfile(f"cifar-10-batches-bin/{file}").read()
                records = np.frombuffer(data, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
                pixels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                for i, label in enumerate(records[:, 0]):
                    load = lambda pixels=pixels, i=i: pixels[i]  # noqa: E731
                    yield Item(f"{file}:{i}", int(label), load)

    return walk


def walk_npz_zips(paths: Sequence[Path]) -> Iterator[Item]:
    """Iterate over zips of npz files: data uint8 [N, 3 s s], channels first, labels from 1."""
    for path in paths:
        with zipfile.ZipFile(path) as archive:
            for member in sorted(archive.namelist(), key=_natural):
                if member.endswith(".npz"):
                    yield from _npz_items(archive, member)


def _npz_items(archive: zipfile.ZipFile, member: str) -> Iterator[Item]:
    # ImageNet-64's arrays take 1.6 GB each; a separate function frees them before the next.
    with np.load(io.BytesIO(archive.read(member))) as batch:
        data, labels = batch["data"], batch["labels"]
    side = round((data.shape[1] / 3) ** 0.5)
    pixels = data.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
    for i, label in enumerate(labels):
        yield Item(f"{member}:{i}", int(label) - 1, lambda i=i: pixels[i])


def walk_tar(paths: Sequence[Path]) -> Iterator[Item]:
    """Iterate over a tar of images without labels."""
    with tarfile.open(paths[0]) as tar:
        for member, load in _files(tar):
            yield Item(member, None, load)


def walk_imagenet_train(paths: Sequence[Path]) -> Iterator[Item]:
    """Iterate over a tar that holds one tar per class."""
    number = {wnid: i for i, wnid in enumerate(bundled("labels.txt"))}
    with tarfile.open(paths[0]) as tar:
        for outer in tar:
            wnid = outer.name.removesuffix(".tar")
            with tarfile.open(fileobj=tar.extractfile(outer)) as inner:
                for member, load in _files(inner):
                    yield Item(member, number.get(wnid, -1), load)


def walk_imagenet_test(paths: Sequence[Path]) -> Iterator[Item]:
    """Iterate over the flat validation tar; the number in a file's name determines its label."""
    number = {wnid: i for i, wnid in enumerate(bundled("labels.txt"))}
    labels = bundled("validation_labels.txt")
    with tarfile.open(paths[0]) as tar:
        for member, load in _files(tar):
            i = int(Path(member).stem.rsplit("_", 1)[-1])  # ILSVRC2012_val_00000001.JPEG
            yield Item(member, number[labels[i - 1]], load)


def _files(tar: tarfile.TarFile) -> Iterator[tuple[str, Callable[[], bytes]]]:
    for member in tar:
        tar.members = []  # tarfile would otherwise store a million members
        if member.isfile():
            yield member.name, lambda member=member: tar.extractfile(member).read()


def _natural(name: str) -> tuple[int, str]:
    digits = "".join(c for c in Path(name).stem if c.isdigit())
    return int(digits or 0), name


def bundled(file: str) -> list[str]:
    """Return the lines of an ImageNet metadata file shipped with tensorflow-datasets."""
    import tensorflow_datasets as tfds  # imported here because training does not need it

    return tfds.core.tfds_path(f"datasets/imagenet2012/{file}").read_text().split()
