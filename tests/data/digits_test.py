import numpy as np
from absl.testing import absltest

from flowmatch_jax.data.digits import digits


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


if __name__ == "__main__":
    absltest.main()
