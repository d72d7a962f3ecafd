"""The datasets that can be prepared and their published archives.

Checksums are those of tensorflow-datasets. Fashion-MNIST's are of the decompressed files, because
packagers recompress them.
"""

from __future__ import annotations

from collections.abc import Mapping

from flowmatch_jax.data.prepare.archives import (
    Archive,
    Layout,
    Split,
    cifar10_walk,
    walk_idx,
    walk_imagenet_test,
    walk_imagenet_train,
    walk_npz_zips,
    walk_tar,
)

IMAGENET_TRAIN, IMAGENET_TEST = 1_281_167, 50_000
IMAGENET_DOWNLOAD = "https://image-net.org/download-images (it asks for an account)"


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
    """Chrabaszcz et al.'s box-resized ImageNet, which the paper uses; archives: name -> sha256."""
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
    """van den Oord et al.'s downsampled ImageNet, without antialiasing and without labels."""
    train = Archive(f"train_{side}x{side}.tar", train_sha)
    test = Archive(f"valid_{side}x{side}.tar", test_sha)
    return Layout(
        name=f"imagenet{side}/old",
        version="1.0.0",
        shape=(side, side, 3),
        # The tars lack 18 training images and 1 validation image of ImageNet.
        splits={
            "train": Split((train,), walk_tar, 1_281_149),
            "test": Split((test,), walk_tar, 49_999),
        },
        num_classes=None,
        origin="http://image-net.org/small, no longer public; copies carry these file names",
    )


def _imagenet_cropped(side: int) -> Layout:
    """ImageNet's original images, cropped to the largest centre square and area-resized."""
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
