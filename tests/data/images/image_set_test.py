import warnings
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from flowmatch_jax.data.images.decode import decode, square
from flowmatch_jax.data.images.image_set import open_images
from flowmatch_jax.runtime.errors import UserError

X = np.random.RandomState(0).randint(0, 256, (10, 6, 5, 3)).astype(np.uint8)


def read(images, size=4):
    """All images, and the sizes of the batches."""
    batches = list(images.batches(size))
    return np.concatenate(batches), [len(batch) for batch in batches]


class ImageSetTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = Path(self.create_tempdir().full_path)

    def folder(self, x, suffix=".png"):
        folder = self.root / "pictures"
        folder.mkdir(exist_ok=True)
        for i, image in enumerate(x):
            Image.fromarray(image.squeeze()).save(folder / f"{i:02d}{suffix}")
        return folder

    @parameterized.parameters("folder", "npy", "npz", "compressed")
    def test_images_are_read_in_batches(self, kind):
        path = self.root / "x.npz"
        if kind == "folder":
            path = self.folder(X)
        elif kind == "npy":
            path = self.root / "x.npy"
            np.save(path, X)
        else:
            save = np.savez if kind == "npz" else np.savez_compressed
            save(path, images=X, label=np.arange(10), settings="{}")
        images = open_images(path)
        self.assertEqual((images.shape, len(images), images.path), (X.shape, 10, path))
        for _ in range(2):
            x, sizes = read(images)
            np.testing.assert_array_equal(x, X)
            self.assertEqual((x.dtype, sizes), (np.uint8, [4, 4, 2]))

    def test_a_folder_is_grey_if_all_its_pictures_are(self):
        grey = X[..., :1]
        images = open_images(self.folder(grey))
        np.testing.assert_array_equal(read(images)[0], grey)
        Image.fromarray(X[0]).save(self.root / "pictures" / "coloured.png")
        mixed, _ = read(open_images(self.root / "pictures"))
        np.testing.assert_array_equal(mixed[:-1], np.repeat(grey, 3, axis=-1))
        np.testing.assert_array_equal(mixed[-1], X[0])

    def test_pictures_are_cropped_and_resized_as_training_does(self):
        folder = self.folder(X[:3])
        Image.fromarray(X[3, :4]).save(folder / "wide.png")
        x, _ = read(open_images(folder, size=3))
        expected = [square(decode(path.read_bytes()), 3) for path in sorted(folder.iterdir())]
        np.testing.assert_array_equal(x, expected)

    @parameterized.parameters(
        ({}, "it holds none"),
        ({"x": X / 255}, r"it holds x float64 \[10, 6, 5, 3\]"),
        ({"x": X, "y": X}, r"one array of images, .* it holds x uint8 .*, y uint8"),
        ({"x": X[0]}, r"it holds x uint8 \[6, 5, 3\]"),
        ({"x": X[:0]}, r"it holds x uint8 \[0, 6, 5, 3\]"),
        ({"x": np.asfortranarray(X)}, "in C order"),
    )
    def test_an_npz_has_one_array_of_images(self, arrays, message):
        path = self.root / "x.npz"
        np.savez(path, **arrays)
        if not arrays:
            path.write_bytes(b"PK\5\6" + bytes(18))  # an archive without files
        with self.assertRaisesRegex(UserError, message):
            open_images(path)

    def test_an_npy_has_images(self):
        path = self.root / "x.npy"
        np.save(path, X.astype(np.int64))
        with self.assertRaisesRegex(UserError, "path: got .*x.npy'; it must hold .* int64"):
            open_images(path)
        with warnings.catch_warnings(), self.assertRaisesRegex(UserError, "cannot be read"):
            warnings.simplefilter("ignore")
            np.save(path, np.array([{}]))
            open_images(path)

    def test_what_is_no_set(self):
        with self.assertRaisesRegex(UserError, "it does not exist; give a folder of pictures"):
            open_images(self.root / "absent")
        with self.assertRaisesRegex(UserError, "there is no image in it"):
            open_images(self.root)
        (self.root / "x.npz").write_bytes(b"no array")
        with self.assertRaisesRegex(UserError, "x.npz'; it cannot be read"):
            open_images(self.root / "x.npz")

    def test_pictures_of_a_folder_have_one_size(self):
        folder = self.folder(X[:2])
        Image.fromarray(X[0, :4]).save(folder / "02.png")
        message = r"00.png of \(6, 5\) and .*02.png of \(4, 5\) pixels'; .* --size"
        with self.assertRaisesRegex(UserError, message):
            open_images(folder)

    def test_damage_is_told(self):
        folder = self.folder(X[:3])
        path = folder / "01.png"
        whole = path.read_bytes()
        path.write_bytes(whole[:-40])  # its header is whole
        with self.assertRaisesRegex(UserError, "01.png'; it cannot be read"):
            read(open_images(folder))
        path.write_bytes(b"no picture")
        with self.assertRaisesRegex(UserError, "01.png'; it cannot be read"):
            open_images(folder)
        path = self.root / "x.npz"
        np.savez(path, x=X)
        whole = path.read_bytes()
        for cut in (whole[:-30], whole[60:]):
            path.write_bytes(cut)
            with self.assertRaisesRegex(UserError, "x.npz'; it cannot be read"):
                open_images(path)
        path.write_bytes(whole)
        data = bytearray(path.read_bytes())
        data[500] ^= 1
        path.write_bytes(data)
        with self.assertRaisesRegex(UserError, "x.npz'; it cannot be read .*CRC"):
            read(open_images(path))


if __name__ == "__main__":
    absltest.main()
