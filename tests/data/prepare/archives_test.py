import importlib.util
import io
import tarfile
import unittest
import zipfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from flowmatch_jax.data.images.decode import decode
from flowmatch_jax.data.prepare import archives
from flowmatch_jax.data.prepare.layouts import LAYOUTS
from tests.data.prepare import archive_cases

HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None


def walked(layout, folder, split):
    """[(image, label)] of a split; encoded pictures are decoded at their own size."""
    part = layout.splits[split]
    result = []
    for item in part.walk([folder / archive.file for archive in part.archives]):
        data = item.load()
        image = np.asarray(decode(data)) if isinstance(data, bytes) else np.array(data)
        result.append((image, item.label))
    return result


class ArchivesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)

    def test_published_counts_and_checksums(self):
        counts = {
            name: tuple(split.images for split in layout.splits.values())
            for name, layout in LAYOUTS.items()
        }
        self.assertEqual(counts["cifar10"], (50_000, 10_000))
        self.assertEqual(counts["fashion_mnist"], (60_000, 10_000))
        self.assertEqual(counts["imagenet64/antialiased"], (1_281_167, 50_000))
        for layout in LAYOUTS.values():
            for archive in layout.archives:
                self.assertRegex(archive.sha256, "^[0-9a-f]{64}$")

    @parameterized.parameters(*archive_cases.MAKERS)
    def test_every_layout_is_walked_in_full(self, name):
        layout = archive_cases.make(name, self.folder)
        for split, n in (("train", 30), ("test", 6)):
            items = walked(layout, self.folder, split)
            self.assertLen(items, n)
            for image, label in items:
                self.assertEqual(image.dtype, np.uint8)
                if layout.num_classes is None:
                    self.assertIsNone(label)
                else:
                    self.assertBetween(label, 0, layout.num_classes - 1)

    def test_channels_first_becomes_channels_last(self):
        layout = archive_cases.make("cifar10", self.folder)
        (image, label), *_ = walked(layout, self.folder, "test")
        with tarfile.open(self.folder / "cifar-10-binary.tar.gz") as tar:
            data = tar.extractfile("cifar-10-batches-bin/test_batch.bin").read()
        self.assertEqual((image[3, 5, 2], label), (data[1 + 2 * 1024 + 3 * 32 + 5], data[0]))

    def test_batches_of_a_zip_go_by_number(self):
        layout = archive_cases.make("imagenet32/antialiased", self.folder)
        items = walked(layout, self.folder, "train")
        with zipfile.ZipFile(self.folder / "Imagenet32_train_npz.zip") as archive:
            tenth = np.load(io.BytesIO(archive.read("train_data_batch_10.npz")))
        np.testing.assert_array_equal(
            items[20][0], tenth["data"][0].reshape(3, 32, 32).transpose(1, 2, 0)
        )
        self.assertEqual(items[21][1], tenth["labels"][1] - 1)

    def test_imagenet_s_odd_pictures_are_rgb(self):
        layout = archive_cases.make("imagenet128", self.folder)
        items = walked(layout, self.folder, "train")
        self.assertEqual([label for _, label in items], [59] * 15 + [230] * 15)
        for index, seed in ((0, 0), (15, 10)):  # CMYK; the PNG in disguise
            width = 200 - 20 * (index // 15)
            plain = Image.open(io.BytesIO(archive_cases.picture(seed, 160, width)))
            self.assertEqual(items[index][0].shape, (160, width, 3))
            difference = items[index][0].astype(int) - np.asarray(plain)
            self.assertLess(np.abs(difference).mean(), 6)

    def test_labels_of_imagenet_s_validation_go_by_the_picture_s_number(self):
        layout = archive_cases.make("imagenet128", self.folder)
        # ILSVRC2012_val_00000001 is n01751748, a sea snake, class 65; ..2 is n09193705, class 970.
        labels = [label for _, label in walked(layout, self.folder, "test")]
        self.assertEqual(labels[::-1][:2], [65, 970])

    def _entries(self, path):
        """(name, open file) of an archive, as the builders get them from TensorFlow's reader."""
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = sorted(archive.namelist(), key=lambda name: int(name.split("_")[-1][:-4]))
                return [(name, io.BytesIO(archive.read(name))) for name in names]
        with tarfile.open(path) as archive:
            files = [member for member in archive if member.isfile()]
            return [(f.name, io.BytesIO(archive.extractfile(f).read())) for f in files]

    @unittest.skipUnless(HAS_TENSORFLOW, "tensorflow is not installed; the stock builders need it")
    @parameterized.parameters(
        ("cifar10", "cifar10"),
        ("imagenet32/antialiased", "imagenet_resized/32x32"),
        ("imagenet64/antialiased", "imagenet_resized/64x64"),
        ("imagenet64/old", "downsampled_imagenet/64x64"),
        ("imagenet128", "imagenet2012"),
    )
    def test_agrees_with_tensorflow_datasets_own_builders(self, name, stock):
        import tensorflow_datasets as tfds

        layout = archive_cases.make(name, self.folder)
        builder = tfds.builder(stock, data_dir=self.create_tempdir().full_path)
        names = [archive.file for archive in layout.splits["train"].archives]
        if name == "cifar10":
            with tarfile.open(self.folder / names[0]) as tar:
                tar.extractall(self.folder, filter="data")
            batches = sorted((self.folder / "cifar-10-batches-bin").glob("data_batch*"))
            examples = builder._generate_examples("train_", map(str, batches))
        else:
            walk = [entry for file in names for entry in self._entries(self.folder / file)]
            examples = builder._generate_examples(walk)
        ours = iter(walked(layout, self.folder, "train"))
        wnids = {wnid: i for i, wnid in enumerate(archives.bundled("labels.txt"))}
        for _, example in examples:
            theirs = example["image"]
            if not isinstance(theirs, np.ndarray):
                theirs = np.asarray(decode(theirs.read()))
            image, label = next(ours)
            # TensorFlow's way with CMYK and the PNG is through JPEG once more.
            odd = (archive_cases.CMYK, archive_cases.PNG_IN_DISGUISE)
            tolerance = 6 if example.get("file_name") in odd else 0
            self.assertLessEqual(np.abs(theirs.astype(int) - image).mean(), tolerance)
            if label is not None:
                self.assertEqual(wnids.get(example["label"], example["label"]), label)
        self.assertEmpty(list(ours))


if __name__ == "__main__":
    absltest.main()
