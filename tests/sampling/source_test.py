import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy.stats import kstest

from flowmatch_jax.sampling import source as sampling
from tests.cases import PATHS, gaussian_velocity


class SamplingTest(parameterized.TestCase):
    @parameterized.parameters("ot", "vp", "ve")
    def test_samples_of_gaussian_data(self, name):
        path, m, s = PATHS[name], 0.7, 0.4
        solution = sampling.sample(
            gaussian_velocity(path, m, s),
            jax.random.key(0),
            (1000, 2, 2, 1),
            path.source_std,
            path.t_end,
        )
        self.assertEqual((solution.x.shape, solution.x.dtype), ((1000, 2, 2, 1), jnp.float32))
        self.assertGreater(kstest((np.ravel(solution.x) - m) / s, "norm").pvalue, 1e-3)

    def test_data(self):
        x = sampling.draw_source(jax.random.key(0), (1000, 3), 50.0)
        self.assertGreater(kstest(np.ravel(x) / 50, "norm").pvalue, 1e-3)


if __name__ == "__main__":
    absltest.main()
