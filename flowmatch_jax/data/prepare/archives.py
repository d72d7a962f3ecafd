"""The archives that data sets are published as, and the images in them.

A `Layout` says which archives make a set, how to check them and how to walk through them.
Checksums are those that tensorflow-datasets records, but for Fashion-MNIST's, which are of the
files decompressed: packagers compress them anew.
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

IMAGENET_TRAIN, IMAGENET_TEST = 1_281_167, 50_000
IMAGENET_DOWNLOAD = "https://image-net.org/download-images (it asks for an account)"


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
    number = {wnid: i for i, wnid in enumerate(_bundled("labels.txt"))}
    with tarfile.open(paths[0]) as tar:
        for outer in tar:
            wnid = outer.name.removesuffix(".tar")
            with tarfile.open(fileobj=tar.extractfile(outer)) as inner:
                for member, load in _files(inner):
                    yield Item(member, number.get(wnid, -1), load)


def walk_imagenet_test(paths: Sequence[Path]) -> Iterator[Item]:
    """The validation tar, flat; labels go by the number in a picture's name."""
    number = {wnid: i for i, wnid in enumerate(_bundled("labels.txt"))}
    labels = _bundled("validation_labels.txt")
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


def _bundled(file: str) -> list[str]:
    """Lines of a file on ImageNet that tensorflow-datasets carries."""
    import tensorflow_datasets as tfds  # here: training does not need it for such sets

    return tfds.core.tfds_path(f"datasets/imagenet2012/{file}").read_text().split()


def _fashion_mnist() -> Layout:
    def split(name: str, images: int, pixels_sha: str, labels_sha: str) -> Split:
        site = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
        archives = tuple(
            Archive(file, sha256, f"{site}/{file}", decompressed=True)
            for file, sha256 in (
                (f"{name}-images-idx3-ubyte.gz", pixels_sha),
                (f"{name}-labels-idx1-ubyte.gz", labels_sha),
            )
        )
        return Split(archives, walk_idx, images)

    return Layout(
        name="fashion_mnist",
        version="1.0.0",
        shape=(28, 28, 1),
        splits={
            "train": split(
                "train",
                60_000,
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            ),
            "test": split(
                "t10k",
                10_000,
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
        },
        num_classes=10,
        origin="https://github.com/zalandoresearch/fashion-mnist, or Debian's package "
        "dataset-fashion-mnist",
        found=("/usr/share/datasets/fashion-mnist",),
    )


def _cifar10() -> Layout:
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    sha256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    archives = (Archive("cifar-10-binary.tar.gz", sha256, url),)
    train = cifar10_walk([f"data_batch_{i}.bin" for i in range(1, 6)])
    return Layout(
        name="cifar10",
        version="1.0.0",
        shape=(32, 32, 3),
        splits={
            "train": Split(archives, train, 50_000),
            "test": Split(archives, cifar10_walk(["test_batch.bin"]), 10_000),
        },
        num_classes=10,
        origin="https://www.cs.toronto.edu/~kriz/cifar.html",
    )


def _imagenet_antialiased(side: int, train: Mapping[str, str], test: Mapping[str, str]) -> Layout:
    """Chrabaszcz et al.'s box-resized ImageNet, the paper's; archives: name -> sha256."""
    split = lambda files, images: Split(  # noqa: E731
        tuple(Archive(*item) for item in files.items()), walk_npz_zips, images
    )
    return Layout(
        name=f"imagenet{side}/antialiased",
        version="1.0.0",
        shape=(side, side, 3),
        splits={"train": split(train, IMAGENET_TRAIN), "test": split(test, IMAGENET_TEST)},
        num_classes=1000,
        origin=IMAGENET_DOWNLOAD,
    )


def _imagenet_old(side: int, train_sha: str, test_sha: str) -> Layout:
    """van den Oord et al.'s downsampled ImageNet, without anti-aliasing and labels."""
    train = Archive(f"train_{side}x{side}.tar", train_sha)
    test = Archive(f"valid_{side}x{side}.tar", test_sha)
    return Layout(
        name=f"imagenet{side}/old",
        version="1.0.0",
        shape=(side, side, 3),
        # Their tars lack 18 and 1 of ImageNet's images.
        splits={
            "train": Split((train,), walk_tar, 1_281_149),
            "test": Split((test,), walk_tar, 49_999),
        },
        num_classes=None,
        origin="http://image-net.org/small, no longer public; copies carry these file names",
    )


def _imagenet_cropped(side: int) -> Layout:
    """ImageNet's own pictures: the largest centre square, area-resized."""
    train = Archive(
        "ILSVRC2012_img_train.tar",
        "b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb",
    )
    test = Archive(
        "ILSVRC2012_img_val.tar",
        "c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0",
    )
    return Layout(
        name=f"imagenet{side}",
        version="1.0.0",
        shape=(side, side, 3),
        splits={
            "train": Split((train,), walk_imagenet_train, IMAGENET_TRAIN),
            "test": Split((test,), walk_imagenet_test, IMAGENET_TEST),
        },
        num_classes=1000,
        origin=IMAGENET_DOWNLOAD,
    )


LAYOUTS = {
    layout.name: layout
    for layout in (
        _fashion_mnist(),
        _cifar10(),
        _imagenet_antialiased(
            32,
            {
                "Imagenet32_train_npz.zip": "94226337ecc1b0309d9fcd0167127aaa"
                "dc931587035fbcb53925235edbaec4fc"
            },
            {
                "Imagenet32_val_npz.zip": "013990e6dec1237dcd1f9beadbab81ea"
                "d6604cc119af5cacbfb59ae28148377a"
            },
        ),
        _imagenet_antialiased(
            64,
            {
                "Imagenet64_train_part1_npz.zip": "9422dc1dc5d092e9814a70a1cb7fc748"
                "80d2db5d88a0cb8a34ee363b12bde3f1",
                "Imagenet64_train_part2_npz.zip": "9fafc115afb7e6c301e66dc16b2d7371"
                "52b427bd5dab26e1293487a6819c7f30",
            },
            {
                "Imagenet64_val_npz.zip": "e1e75133158a1924135a9c6f97a80d2d"
                "237b158945e0b34074e58e6c8430eeb8"
            },
        ),
        _imagenet_old(
            32,
            "244a323d48f8d72f65ad8b54658c01fed68d2d7bdc77ccb43da58c11e94224e5",
            "862e559462b24cf736212a19f6b0d47b55c2dc8ebdaa95ccecfe71260124c8f7",
        ),
        _imagenet_old(
            64,
            "e2a2c1947a748d0d256e98e6d82800d855441dc9e4de2e71a773f1324c4524d7",
            "eeac03ec4f585baf871d2b4cb9c974bfe345e74878a74e5820fe6eb1041629cd",
        ),
        _imagenet_cropped(128),
        _imagenet_cropped(256),
    )
}
