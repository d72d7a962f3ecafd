import jax
import numpy as np
from absl.testing import absltest, parameterized
from scipy.special import logit
from scipy.stats import kstest, norm

from flowmatch_jax import times


class TimesTest(parameterized.TestCase):
    @parameterized.product(name=sorted(times.TIMES), t_end=(1.0, 0.9))
    def test_on_the_path(self, name, t_end):
        t = np.asarray(times.TIMES[name](jax.random.key(0), 5000, t_end))
        self.assertEqual((t.shape, t.dtype), ((5000,), np.float32))
        self.assertGreaterEqual(t.min(), 0)
        self.assertLess(t.max(), t_end)

    def test_uniform(self):
        t = np.asarray(times.uniform(jax.random.key(0), 5000, 0.9))
        self.assertGreater(kstest(t / 0.9, "uniform").pvalue, 1e-3)

    def test_skewed_is_logistic_normal(self):
        """P(t <= s t_end) = P(1.2 - 1.2 z <= logit s), by the normal's distribution function."""
        t = np.asarray(times.skewed(jax.random.key(0), 5000, 0.9), np.float64)
        cdf = lambda s: norm.cdf((logit(s) - 1.2) / 1.2)  # noqa: E731
        self.assertGreater(kstest(t / 0.9, cdf).pvalue, 1e-3)
        median = 1 / (1 + np.exp(-1.2))
        self.assertAlmostEqual(np.mean(t < 0.9 * median), 0.5, delta=4 * 0.5 / np.sqrt(5000))


class GridTest(parameterized.TestCase):
    @parameterized.product(name=sorted(times.GRIDS), steps=(1, 2, 50, 1000))
    def test_leads_from_0_to_1(self, name, steps):
        grid = times.GRIDS[name](steps)
        self.assertEqual((grid.shape, grid[0], grid[-1]), ((steps + 1,), 0, 1))
        self.assertTrue((np.diff(grid.astype(np.float32)) > 0).all())

    def test_uniform(self):
        np.testing.assert_allclose(times.uniform_grid(4), [0, 0.25, 0.5, 0.75, 1])

    def test_edm_s_formula(self):
        grid, n = times.edm_grid(18), 18
        sigma = [
            (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
            for i in range(n)
        ]
        np.testing.assert_allclose(1 / grid[1:n] - 1, sigma[1:])
        self.assertAlmostEqual(sigma[-1], 0.002)
        h = np.diff(grid)
        self.assertLess(max(h[0], h[-1]), 0.2 * h.max())  # short steps at both ends


if __name__ == "__main__":
    absltest.main()
