"""Archives, and how to walk through the images in them.

A `Layout` says which archives make a dataset, how to check them and how to walk through them.
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
        name: for messages.
        label: in [0, num_classes), or None.
        load: gives the image, uint8 [H, W, C] or encoded; to be called before the next item.
    """

    name: str
    label: int | None
    load: Callable[[], np.ndarray | bytes]


Walk = Callable[[Sequence[Path]], Iterator[Item]]


@dataclass(frozen=True)
class Archive:
    """A file as it is published.

    Attributes:
        file: its name.
        sha256: of the file, or of what is in it where ``decompressed``.
        url: where anybody can download it, if anybody can.
    """

    file: str
    sha256: str
    url: str | None = None
    decompressed: bool = False


@dataclass(frozen=True)
class Split:
    """Archives of a split, the way through them, and the images they hold."""

    archives: tuple[Archive, ...]
    walk: Walk
    images: int


@dataclass(frozen=True)
class Layout:
    """A data set, as it is published.

    Attributes:
        name, version: of the prepared set.
        shape: (H, W, C) of the prepared images.
        splits: "train" and "test".
        num_classes: None without labels.
        origin: where the archives come from, for people.
        found: folders where packages put them.
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
        """All archives, each once."""
        return list(dict.fromkeys(a for split in self.splits.values() for a in split.archives))


def walk_idx(paths: Sequence[Path]) -> Iterator[Item]:
    """Images and labels as idx files, gzipped: MNIST's layout."""
    images, labels = (gzip.decompress(path.read_bytes()) for path in paths)
    count, height, width = np.frombuffer(images, ">i4", 3, offset=4)
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(count, height, width, 1)
    for i, label in enumerate(np.frombuffer(labels, np.uint8, offset=8)):
        yield Item(f"{paths[0].name}:{i}", int(label), lambda i=i: pixels[i])


def cifar10_walk(files: Sequence[str]) -> Walk:
    """The binary version: records of a label and 3 x 32 x 32 bytes, in some files of a tar."""

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
    """Zips of npz files: data uint8 [N, 3 s s], channels first, and labels from 1 on."""
    for path in paths:
        with zipfile.ZipFile(path) as archive:
            for member in sorted(archive.namelist(), key=_natural):
                if member.endswith(".npz"):
                    yield from _npz_items(archive, member)


def _npz_items(archive: zipfile.ZipFile, member: str) -> Iterator[Item]:
    # Those of ImageNet-64 take 1.6 GB each: a function of its own lets go of one before the next.
    with np.load(io.BytesIO(archive.read(member))) as batch:
        data, labels = batch["data"], batch["labels"]
    side = round((data.shape[1] / 3) ** 0.5)
    pixels = data.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
    for i, label in enumerate(labels):
        yield Item(f"{member}:{i}", int(label) - 1, lambda i=i: pixels[i])


def walk_tar(paths: Sequence[Path]) -> Iterator[Item]:
    """A tar of pictures without labels."""
    with tarfile.open(paths[0]) as tar:
        for member, load in _files(tar):
            yield Item(member, None, load)


def walk_imagenet_train(paths: Sequence[Path]) -> Iterator[Item]:
    """A tar of a tar for each class."""
    number = {wnid: i for i, wnid in enumerate(bundled("labels.txt"))}
    with tarfile.open(paths[0]) as tar:
        for outer in tar:
            wnid = outer.name.removesuffix(".tar")
            with tarfile.open(fileobj=tar.extractfile(outer)) as inner:
                for member, load in _files(inner):
                    yield Item(member, number.get(wnid, -1), load)


def walk_imagenet_test(paths: Sequence[Path]) -> Iterator[Item]:
    """The validation tar, flat; labels go by the number in a picture's name."""
    number = {wnid: i for i, wnid in enumerate(bundled("labels.txt"))}
    labels = bundled("validation_labels.txt")
    with tarfile.open(paths[0]) as tar:
        for member, load in _files(tar):
            i = int(Path(member).stem.rsplit("_", 1)[-1])  # ILSVRC2012_val_00000001.JPEG
            yield Item(member, number[labels[i - 1]], load)


def _files(tar: tarfile.TarFile) -> Iterator[tuple[str, Callable[[], bytes]]]:
    for member in tar:
        tar.members = []  # which would hold a million of them
        if member.isfile():
            yield member.name, lambda member=member: tar.extractfile(member).read()


def _natural(name: str) -> tuple[int, str]:
    digits = "".join(c for c in Path(name).stem if c.isdigit())
    return int(digits or 0), name


def bundled(file: str) -> list[str]:
    """Lines of a file on ImageNet that tensorflow-datasets carries."""
    import tensorflow_datasets as tfds  # here: training does not need it for such sets

    return tfds.core.tfds_path(f"datasets/imagenet2012/{file}").read_text().split()
