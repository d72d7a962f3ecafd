from pathlib import Path

import numpy as np
from absl.testing import absltest
from PIL import Image

from flowmatch_jax.data.sample_files import SETTINGS, Archive, Item, Pictures
from flowmatch_jax.runtime.errors import UserError


class ArchiveTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.path = Path(self.create_tempdir().full_path) / "out.npz"
        self.items = [Item(seed, seed % 3) for seed in range(6)]
        self.x = np.random.RandomState(0).randint(0, 256, (6, 4, 4, 1), dtype=np.uint8)

    def archive(self, **settings):
        return Archive(self.path, self.items, settings, (4, 4, 1), is_image=True)

    def test_in_any_order_and_over_several_openings(self):
        for rows in ([4, 1], [0, 5], [2, 3]):
            archive = self.archive(step=1)
            self.assertFalse(archive.present()[rows].any())
            archive.add(np.array(rows), self.x[rows])
        archive.finish()
        with np.load(self.path) as held:
            np.testing.assert_array_equal(held["images"], self.x)
            self.assertEqual(held["label"].tolist(), [0, 1, 2, 0, 1, 2])
        self.assertTrue(self.archive(step=1).present().all())
        self.assertFalse(self.path.with_name("out.npz.partial").exists())

    def test_parts_that_are_damaged(self):
        self.archive()
        part = self.path.with_name("out.npz.partial") / "images.npy"
        np.save(part, np.zeros((5, 4, 4, 1), np.uint8))
        with self.assertRaisesRegex(UserError, "images.npy is damaged"):
            self.archive()
        part.write_bytes(b"")
        with self.assertRaisesRegex(UserError, "images.npy is damaged"):
            self.archive()

    def test_arrays_stay_on_disk(self):
        """2 GB of pixels are allocated without their memory."""
        items = [Item(seed, None) for seed in range(1000)]
        archive = Archive(self.path, items, {}, (1000, 2000, 1), is_image=True)
        self.assertIsInstance(archive._x, np.memmap)
        self.assertEqual(archive.present().sum(), 0)


class PicturesTest(absltest.TestCase):
    def test_colours_and_names_of_classes(self):
        folder = Path(self.create_tempdir().full_path) / "out"
        items = [Item(7, 0), Item(1234567, 1)]
        x = np.random.RandomState(0).randint(0, 256, (2, 5, 4, 3), dtype=np.uint8)
        Pictures(folder, items, {}, ("a/b", "..")).add(np.arange(2), x)
        names = ("0_a-b/000007.png", "1_../1234567.png")
        for name, expected in zip(names, x, strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(folder / name)), expected)

    def test_damaged_settings(self):
        folder = Path(self.create_tempdir().full_path)
        (folder / SETTINGS).write_text("{")
        with self.assertRaisesRegex(UserError, "output.*damaged"):
            Pictures(folder, [Item(0, None)], {})


if __name__ == "__main__":
    absltest.main()
