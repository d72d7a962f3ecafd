import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from scipy.stats import kstest

from flowmatch_jax.paths import log_snr
from flowmatch_jax.sampling import ancestral
from tests.cases import PATHS, Float64TestCase

VP = PATHS["vp"]


def noise_in(m, s):
    """The best prediction of x_0 from x_a = a x_1 + sqrt(1 - a^2) x_0, of data N(m, s^2)."""

    def predict(a, x):
        variance = a**2 * s**2 + 1 - a**2
        return jnp.sqrt(1 - a**2) / variance * (x - a * m)

    return predict


class LevelsTest(Float64TestCase):
    def test_schedule_of_the_path(self):
        """a^2 = exp(-T(s)), T the integral of beta, at equal steps of s = 1 - t."""
        levels = ancestral.noise_levels(VP, 4)
        s = 1 - np.linspace(0, 1 - 1e-5, 5)
        np.testing.assert_allclose(levels**2, np.exp(-(0.1 * s + 19.9 * s**2 / 2)), rtol=1e-6)

    def test_drawn_between_neighbours_that_are_equally_likely(self):
        levels = jnp.array([0.0, 0.1, 0.8, 1.0])
        a = np.asarray(ancestral.draw_levels(jax.random.key(0), 9000, levels))
        # The square is uniform between neighbours, as in SR3's paper.
        rank = np.interp(a**2, levels**2, np.arange(4) / 3)
        self.assertGreater(kstest(rank, "uniform").pvalue, 1e-3)

    def test_log_snr_is_the_path_s(self):
        t = np.linspace(0.1, 0.9, 5)
        a = VP.mean(t, np.ones(5))
        np.testing.assert_allclose(ancestral.log_snr(a), log_snr(VP, t), rtol=1e-9)


class SampleTest(Float64TestCase):
    def test_samples_of_gaussian_data(self):
        m, s = 0.7, 0.4
        x = jax.random.normal(jax.random.key(0), (4000,))
        levels = ancestral.noise_levels(VP, 1000)
        solution = ancestral.sample(noise_in(m, s), jax.random.key(1), x, levels)
        self.assertGreater(kstest((np.asarray(solution.x) - m) / s, "norm").pvalue, 1e-3)
        self.assertEqual((solution.nfe, solution.steps), (1000, 1000))
        self.assertTrue(solution.converged)

    def test_the_noise_of_a_sample_is_that_of_its_key(self):
        """The others of its batch do not matter."""
        levels, x = ancestral.noise_levels(VP, 5), jnp.zeros((3, 2))
        keys = jax.random.split(jax.random.key(1), 3)
        draw = lambda n: ancestral.sample(noise_in(0.3, 0.5), keys[n:], x[n:], levels).x  # noqa: E731
        np.testing.assert_allclose(draw(1), draw(0)[1:], rtol=1e-12)
        self.assertLen(np.unique(draw(0)[:, 0]), 3)

    def test_one_possible_image_is_found_by_any_number_of_steps(self):
        """The last step is from x_a to its x_1, without noise."""
        for steps in (1, 2, 7):
            levels = ancestral.noise_levels(VP, steps)
            x = jax.random.normal(jax.random.key(0), (5, 2))
            end = ancestral.sample(noise_in(0.3, 0.0), jax.random.key(1), x, levels).x
            np.testing.assert_allclose(end, 0.3, atol=2e-3)  # the path ends at sigma = 1e-3

    def test_noise_is_the_key_s(self):
        x, levels = jnp.zeros((3, 2)), ancestral.noise_levels(VP, 5)
        draw = lambda seed: ancestral.sample(noise_in(0, 1), jax.random.key(seed), x, levels).x  # noqa: E731
        np.testing.assert_array_equal(draw(0), draw(0))
        self.assertGreater(float(jnp.abs(draw(0) - draw(1)).min()), 1e-3)


if __name__ == "__main__":
    absltest.main()
