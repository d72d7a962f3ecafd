import jax
import numpy as np
from absl.testing import absltest
from scipy.stats import kstest

from flowmatch_jax import couplings


class IndependentTest(absltest.TestCase):
    def test_unit_gaussian_noise_that_ignores_the_data(self):
        x1 = jax.random.normal(jax.random.key(0), (2000, 3)) * 4 + 1
        x0 = couplings.independent(jax.random.key(1), x1)
        self.assertEqual((x0.shape, x0.dtype), (x1.shape, x1.dtype))
        self.assertGreater(kstest(np.ravel(x0), "norm").pvalue, 1e-3)
        np.testing.assert_array_equal(x0, couplings.independent(jax.random.key(1), 0 * x1))
        correlation = np.corrcoef(np.ravel(x0), np.ravel(x1))[0, 1]
        self.assertLess(abs(correlation), 4 / np.sqrt(x0.size))


if __name__ == "__main__":
    absltest.main()
