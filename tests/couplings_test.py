import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy.stats import kstest

from flowmatch_jax import couplings
from flowmatch_jax.solvers import integrate
from tests.cases import PATHS, gaussian_velocity


class SourceTest(parameterized.TestCase):
    def test_gaussian_noise(self):
        x = couplings.draw_source(jax.random.key(0), (1000, 3), 50.0)
        self.assertGreater(kstest(np.ravel(x) / 50, "norm").pvalue, 1e-3)

    @parameterized.parameters("ot", "vp", "ve")
    def test_along_the_marginal_field_it_becomes_the_data(self, name):
        path, m, s = PATHS[name], 0.7, 0.4
        x0 = couplings.draw_source(jax.random.key(0), (1000, 2, 2, 1), path.source_std)
        solution = integrate(gaussian_velocity(path, m, s), x0, 0.0, path.t_end)
        self.assertEqual((solution.x.shape, solution.x.dtype), ((1000, 2, 2, 1), jnp.float32))
        self.assertGreater(kstest((np.ravel(solution.x) - m) / s, "norm").pvalue, 1e-3)


class IndependentTest(absltest.TestCase):
    def test_unit_gaussian_noise_that_ignores_the_data(self):
        x1 = jax.random.normal(jax.random.key(0), (2000, 3)) * 4 + 1
        x0 = couplings.independent(jax.random.key(1), x1)
        self.assertEqual((x0.shape, x0.dtype), (x1.shape, x1.dtype))
        self.assertGreater(kstest(np.ravel(x0), "norm").pvalue, 1e-3)
        np.testing.assert_array_equal(x0, couplings.independent(jax.random.key(1), 0 * x1))
        correlation = np.corrcoef(np.ravel(x0), np.ravel(x1))[0, 1]
        self.assertLess(abs(correlation), 4 / np.sqrt(x0.size))


class PairedTest(absltest.TestCase):
    def test_pairs_bring_their_noise(self):
        pair = {"x": jnp.ones((4, 3)), "x0": jnp.arange(12.0).reshape(4, 3)}
        key = jax.random.key(0)
        np.testing.assert_array_equal(couplings.noise_of(couplings.paired, key, pair), pair["x0"])
        with self.assertRaisesRegex(ValueError, "the batch has no x0"):
            couplings.noise_of(couplings.paired, key, {"x": pair["x"]})
        drawn = couplings.noise_of(couplings.independent, key, {"x": pair["x"]})
        np.testing.assert_array_equal(drawn, couplings.independent(key, pair["x"]))


if __name__ == "__main__":
    absltest.main()
