"""Small archives in the layouts of the published ones."""

import gzip
import hashlib
import io
import struct
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
from PIL import Image

from flowmatch_jax.data.prepare.layouts import LAYOUTS

WNIDS = ("n01739381", "n02105855")  # vine snake, 59, and Shetland sheepdog, 230
PNG_IN_DISGUISE, CMYK = "n02105855_2933.JPEG", "n01739381_1309.JPEG"


def images(seed, n, *shape):
    return np.random.RandomState(seed).randint(0, 256, (n, *shape)).astype(np.uint8)


def picture(seed, height, width, kind="JPEG", mode="RGB"):
    """A smooth encoded picture: what JPEG keeps."""
    small = Image.fromarray(images(seed, 3, 4, 3)).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.convert(mode).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def make_fashion_mnist(folder, counts):
    for name, n in zip(("train", "t10k"), counts, strict=True):
        pixels, labels = images(n, n, 28, 28), np.arange(n, dtype=np.uint8) % 10
        header = struct.pack(">iiii", 2051, n, 28, 28)
        path = folder / f"{name}-images-idx3-ubyte.gz"
        path.write_bytes(gzip.compress(header + pixels.tobytes()))
        path = folder / f"{name}-labels-idx1-ubyte.gz"
        path.write_bytes(gzip.compress(struct.pack(">ii", 2049, n) + labels.tobytes()))


def make_cifar10(folder, counts, labels=10):
    train, test = counts
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
        meta = "\n".join("abcdefghij").encode()
        add(tar, "cifar-10-batches-bin/batches.meta.txt", meta)
        names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
        for seed, (name, n) in enumerate(zip(names, [train // 5] * 5 + [test], strict=True)):
            records = images(seed, n, 1 + 3 * 32 * 32)
            records[:, 0] = np.arange(n) % labels
            add(tar, f"cifar-10-batches-bin/{name}", records.tobytes())


def make_imagenet_antialiased(side):
    def make(folder, counts):
        train, test = counts
        if side == 32:
            zips = {"Imagenet32_train_npz.zip": [1, 2, 10]}
        else:
            zips = {"Imagenet64_train_part1_npz.zip": [1], "Imagenet64_train_part2_npz.zip": [2]}
        batches = sum(map(len, zips.values()))
        for name, numbers in zips.items():
            with zipfile.ZipFile(folder / name, "w") as archive:
                for i in numbers:
                    archive.writestr(f"train_data_batch_{i}.npz", _npz(i, train // batches, side))
        with zipfile.ZipFile(folder / f"Imagenet{side}_val_npz.zip", "w") as archive:
            archive.writestr("val_data.npz", _npz(99, test, side))

    return make


def _npz(seed, n, side):
    buffer = io.BytesIO()
    labels = np.arange(n) * 37 % 1000 + 1
    np.savez(buffer, data=images(seed, n, 3 * side * side), labels=labels)
    return buffer.getvalue()


def make_imagenet_old(side):
    def make(folder, counts):
        for split, n in zip(("train", "valid"), counts, strict=True):
            name = f"{split}_{side}x{side}"
            with tarfile.open(folder / f"{name}.tar", "w") as tar:
                directory = tarfile.TarInfo(name)
                directory.type = tarfile.DIRTYPE
                tar.addfile(directory)
                for i in range(n):
                    add(tar, f"{name}/{i:07d}.png", picture(i, side, side, "PNG"))

    return make


def make_imagenet(folder, counts):
    """With a CMYK JPEG and a PNG that is called JPEG, as there are in the real one."""
    train, test = counts
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as tar:
        for c, wnid in enumerate(WNIDS):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as pictures:
                for i in range(train // 2):
                    height, width = 160 + 30 * i, 200 - 20 * c
                    name, data = f"{wnid}_{i}.JPEG", picture(10 * c + i, height, width)
                    if c == 0 and i == 0:
                        name, data = CMYK, picture(0, height, width, mode="CMYK")
                    if c == 1 and i == 0:
                        name, data = PNG_IN_DISGUISE, picture(10, height, width, "PNG")
                    add(pictures, name, data)
            add(tar, f"{wnid}.tar", inner.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as tar:
        for i in range(test, 0, -1):
            add(tar, f"ILSVRC2012_val_{i:08d}.JPEG", picture(i, 150, 170))


MAKERS = {
    "fashion_mnist": make_fashion_mnist,
    "cifar10": make_cifar10,
    "imagenet32/antialiased": make_imagenet_antialiased(32),
    "imagenet64/antialiased": make_imagenet_antialiased(64),
    "imagenet32/old": make_imagenet_old(32),
    "imagenet64/old": make_imagenet_old(64),
    "imagenet128": make_imagenet,
    "imagenet256": make_imagenet,
}


def make(name, folder, counts=(30, 6)):
    """Archives of a set with (train, test) images, and the layout that knows them."""
    MAKERS[name](folder, counts)
    return small_layout(name, folder, counts)


def small_layout(name, folder, counts):
    """A published layout, but for the number of images and the checksums."""

    def small(archive):
        data = (folder / archive.file).read_bytes()
        data = gzip.decompress(data) if archive.decompressed else data
        return replace(archive, sha256=hashlib.sha256(data).hexdigest(), url=None)

    layout = LAYOUTS[name]
    splits = {
        split: replace(old, archives=tuple(map(small, old.archives)), images=n)
        for (split, old), n in zip(layout.splits.items(), counts, strict=True)
    }
    return replace(layout, splits=splits, found=())
