from pathlib import Path

import numpy as np
from absl.testing import absltest
from PIL import Image

from flowmatch_jax.evaluation import pictures


class PicturesTest(absltest.TestCase):
    def test_levels_are_stretched_to_bytes(self):
        x = np.array([-1.0, -0.9, 0.0, 0.99, 1.2])
        np.testing.assert_array_equal(pictures.to_uint8(x, 17), [0, 0, 128, 255, 255])
        np.testing.assert_array_equal(pictures.to_uint8(x, 256), [0, 12, 128, 254, 255])

    def test_grid_layout(self):
        images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 2, 3, 1), np.uint8)
        grid = pictures.image_grid(images, columns=3, gap=1)
        self.assertEqual(grid.shape, (2 * 3 - 1, 3 * 4 - 1, 1))
        self.assertEqual([grid[0, 0, 0], grid[0, 4, 0], grid[0, 8, 0], grid[3, 0, 0]], [0, 1, 2, 3])
        self.assertEqual(grid[0, 3, 0], 255)  # the gap
        self.assertEqual(grid[3, 8, 0], 255)  # no sixth image

    def test_files(self):
        folder = Path(self.create_tempdir().full_path)
        rng = np.random.RandomState(0)
        pictures.save_images(folder / "new" / "grey.png", rng.uniform(-1, 1, (4, 8, 8, 1)), 17)
        pictures.save_images(folder / "rgb.png", rng.uniform(-1, 1, (6, 64, 64, 3)), 256, columns=3)
        pictures.save_points(folder / "points.png", rng.randn(1000, 2))
        grey, rgb = Image.open(folder / "new" / "grey.png"), Image.open(folder / "rgb.png")
        self.assertEqual((grey.mode, grey.size), ("L", (66, 66)))  # 8 px enlarged to 32, gap 2
        self.assertEqual((rgb.mode, rgb.size), ("RGB", (3 * 66 - 2, 2 * 66 - 2)))
        pictures.save_points(folder / "broken.png", np.array([[np.nan, 0], [np.inf, 1], [1, 2]]))
        pictures.save_points(folder / "nothing.png", np.full((3, 2), np.nan))
        points = np.asarray(Image.open(folder / "points.png"))
        self.assertLess(points[150:250, 150:250].mean(), points[:50, :50].mean())  # dark: dense

    def test_points_of_other_dimensions(self):
        """A single coordinate is shown as bands; a third one is not shown."""
        path = Path(self.create_tempdir().full_path) / "points.png"
        x = np.random.RandomState(0).randn(2000, 3)
        shown = []
        for d in (1, 2, 3):
            pictures.save_points(path, x[:, :d])
            shown.append(np.asarray(Image.open(path)))
        line, plane, space = shown
        self.assertEqual(np.ptp(line, axis=0).max(), 0)
        self.assertLess(line[0, 150:250].mean(), line[0, :50].mean() - 100)
        np.testing.assert_array_equal(space, plane)
        pictures.save_points(path, np.full((3, 1), np.nan))


if __name__ == "__main__":
    absltest.main()
