from pathlib import Path

import numpy as np
from absl.testing import absltest
from PIL import Image

from flowmatch_jax.report import plots


class PlotsTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.path = Path(self.create_tempdir().full_path) / "new" / "picture.png"

    def pixels(self):
        return np.asarray(Image.open(self.path).convert("RGB"), np.float64)

    def test_curves_with_gaps(self):
        curves = {"a": ([1, 2, 3], [0.1, None, 0.3]), "b": ([1, 2], [1e-3, 1e-9])}
        plots.save_curves(self.path, curves, "NFE", "error", log_y=True)
        colours = {tuple(c) for c in self.pixels().reshape(-1, 3)}
        self.assertContainsSubset({(31.0, 119.0, 180.0), (255.0, 127.0, 14.0)}, colours)

    def test_points_are_bright_where_they_are(self):
        points = np.random.RandomState(0).uniform(0, 2, (10_000, 2))  # the upper right quarter
        plots.save_point_rows(self.path, {"row": {"t = 1": points, "t = 0": -points}}, 2.0)
        picture = self.pixels().sum(axis=2)
        height, width = picture.shape
        rows = slice(int(0.2 * height), int(0.5 * height))
        columns = slice(int(0.3 * width), int(0.45 * width))  # the right half of the first panel
        in_the_other = slice(int(0.8 * width), int(0.95 * width))
        self.assertGreater(picture[rows, columns].mean(), picture[rows, in_the_other].mean() + 100)

    def test_rows_of_different_lengths(self):
        x = np.zeros((10, 2))
        plots.save_point_rows(self.path, {"a": {"1": x, "2": x}, "b": {"1": x}}, 1.0)
        images = np.random.RandomState(0).uniform(-1, 1, (5, 8, 8, 3))
        plots.save_image_rows(self.path, {"a": images, "b": images[:2]}, 256)
        self.assertGreater(self.pixels().std(), 10)

    def test_fields_and_trajectories(self):
        grid = np.random.RandomState(0).randn(9, 2)
        lines = np.random.RandomState(1).randn(3, 5, 2)
        plots.save_fields(self.path, {"ot": [(0.0, grid, 0 * grid)]}, {"ot": lines}, np.zeros(2))
        plots.save_trajectories(self.path, lines)
        plots.save_density(self.path, np.eye(4), 1.0)
        self.assertGreater(self.pixels().std(), 10)


if __name__ == "__main__":
    absltest.main()
