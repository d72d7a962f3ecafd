import numpy as np
from absl.testing import absltest

from flowmatch_jax.metrics.extractors import EXTRACTORS
from flowmatch_jax.pixels import quantise


class PixelsTest(absltest.TestCase):
    def test_a_level_is_the_centre_of_its_bin(self):
        images = np.array([0, 8, 16], np.uint8).reshape(3, 1, 1, 1)
        features = EXTRACTORS["pixels"](images, 17)
        np.testing.assert_allclose(features, [[-16 / 17], [0], [16 / 17]], atol=1e-15)
        np.testing.assert_array_equal(quantise(features.astype(np.float32), 17), [[0], [8], [16]])

    def test_shape(self):
        features = EXTRACTORS["pixels"](np.zeros((5, 4, 4, 3), np.uint8), 256)
        self.assertEqual((features.shape, features.dtype), ((5, 48), np.float64))


if __name__ == "__main__":
    absltest.main()
