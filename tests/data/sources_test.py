import math

import numpy as np
from absl.testing import absltest, parameterized
from scipy.stats import chisquare

from flowmatch_jax.data.digits import digits
from flowmatch_jax.data.toy2d import checkerboard


class DigitsTest(absltest.TestCase):
    def test_fixed_split_of_real_images(self):
        train, test = digits("train"), digits("test")
        self.assertEqual((len(train), len(test)), (1500, 297))
        self.assertEqual((train.shape, train.levels, train.num_classes), ((8, 8, 1), 17, 10))
        for source in (train, test):
            self.assertEqual((source.x.dtype, source.label.dtype), (np.uint8, np.int32))
            self.assertEqual((source.x.min(), source.x.max()), (0, 16))
            self.assertEqual(set(source.label), set(range(10)))
        seen = {image.tobytes() for image in train.x}
        self.assertFalse(any(image.tobytes() in seen for image in test.x))
        np.testing.assert_array_equal(digits("test").x, test.x)

    def test_items(self):
        source = digits("train")
        np.testing.assert_array_equal(source[7]["x"], source.x[7])
        self.assertEqual(source[7]["label"], source.label[7])


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
