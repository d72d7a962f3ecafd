import jax
import numpy as np
from absl.testing import absltest

from flowmatch_jax.metrics.features.extractor import compiled
from flowmatch_jax.runtime.errors import UserError


class CompiledTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.images = np.random.RandomState(0).randint(0, 256, (3, 4, 5, 3), np.uint8)
        self.apply = compiled(lambda w, x: (x.reshape(len(x), -1) @ w, x), np.ones((60, 2)))

    def test_pixels_reach_the_net_as_they_are(self):
        features, pixels = self.apply(self.images)
        self.assertEqual((features.dtype, pixels.dtype), (np.float32, np.float32))
        np.testing.assert_array_equal(pixels, self.images)
        np.testing.assert_array_equal(features[:, 0], self.images.sum(axis=(1, 2, 3)))

    def test_grey_is_repeated(self):
        grey = self.images[..., :1]
        np.testing.assert_array_equal(self.apply(grey)[1], np.repeat(grey, 3, axis=-1))
        with self.assertRaisesRegex(UserError, "grey or RGB"):
            self.apply(self.images[..., :2])

    def test_full_precision(self):
        """Of products in float32, whatever the device's default."""
        program = str(jax.make_jaxpr(self.apply)(self.images))
        self.assertIn("precision=(Precision.HIGHEST, Precision.HIGHEST)", program.replace("\n", ""))


if __name__ == "__main__":
    absltest.main()
