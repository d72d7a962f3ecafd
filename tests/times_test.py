import jax
import numpy as np
from absl.testing import absltest
from scipy.stats import kstest

from flowmatch_jax import times


class TimesTest(absltest.TestCase):
    def test_uniform_on_its_interval(self):
        t = np.asarray(times.uniform(jax.random.key(0), 5000, 0.9))
        self.assertEqual(t.shape, (5000,))
        self.assertGreater(kstest(t / 0.9, "uniform").pvalue, 1e-3)
        self.assertLess(t.max(), 0.9)


if __name__ == "__main__":
    absltest.main()
