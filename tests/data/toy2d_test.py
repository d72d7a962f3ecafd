import math

import numpy as np
from absl.testing import absltest, parameterized
from scipy.stats import chisquare

from flowmatch_jax.data.toy2d import checkerboard


class CheckerboardTest(parameterized.TestCase):
    @parameterized.parameters("train", "test")
    def test_uniform_on_the_dark_squares(self, split):
        source = checkerboard(split)
        column, row = np.floor(source.x[:10_000] / 2).astype(int).T + 2
        self.assertTrue(((column + row) % 2 == 0).all())
        counts = np.unique(4 * column + row, return_counts=True)[1]
        self.assertLen(counts, 8)
        self.assertGreater(chisquare(counts).pvalue, 1e-3)
        self.assertAlmostEqual(source.entropy, math.log(8 * 2 * 2))
        self.assertFalse(source.is_image)
        self.assertCountEqual(source[0], ["x"])

    def test_splits_differ(self):
        self.assertFalse(
            np.array_equal(checkerboard("train").x[:100], checkerboard("test").x[:100])
        )


if __name__ == "__main__":
    absltest.main()
