import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from scipy.stats import kstest

from flowmatch_jax import pixels


class PixelsTest(absltest.TestCase):
    @hypothesis.settings(deadline=None, max_examples=15)
    @hypothesis.given(st.integers(2, 256), st.integers(0, 2**31 - 1))
    def test_quantising_undoes_dequantising(self, levels, seed):
        image = jnp.arange(levels)
        x = pixels.dequantise(jax.random.key(seed), image, levels)
        np.testing.assert_array_equal(pixels.quantise(x, levels), image)

    def test_paper_scaling_of_bytes(self):
        """phi(y) = 2^7 (y + 1) maps [-1, 1] to [0, 256]."""
        image = jnp.array([[0, 128, 255]], jnp.uint8)
        x = pixels.dequantise(jax.random.key(0), image, 256)
        inside = 128 * (x + 1) - image
        self.assertTrue(bool(((inside >= 0) & (inside <= 1)).all()))

    def test_noise_is_uniform_in_each_bin(self):
        image = jnp.full((5000,), 3, jnp.uint8)
        u = (pixels.dequantise(jax.random.key(0), image, 17) + 1) * 17 / 2 - 3
        self.assertGreater(kstest(np.asarray(u), "uniform").pvalue, 1e-3)

    def test_flips_are_left_to_right_half_of_the_time_and_independent(self):
        image = np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1).repeat(4000, axis=0)
        flipped = np.asarray(pixels.random_flip(jax.random.key(0), image))
        self.assertEqual(flipped.dtype, np.uint8)
        mirrored = (flipped == image[:, :, ::-1]).all(axis=(1, 2, 3))
        np.testing.assert_array_equal(flipped[~mirrored], image[~mirrored])
        self.assertAlmostEqual(mirrored.mean(), 0.5, delta=4 * 0.5 / np.sqrt(4000))
        pairs = mirrored[:-1] == mirrored[1:]
        self.assertAlmostEqual(pairs.mean(), 0.5, delta=4 * 0.5 / np.sqrt(4000))

    def test_values_outside_are_clipped(self):
        x = jnp.array([-7.0, -1.0, -0.999, 0.0, 0.999, 1.0, 7.0])
        np.testing.assert_array_equal(pixels.quantise(x, 256), [0, 0, 0, 128, 255, 255, 255])


if __name__ == "__main__":
    absltest.main()
