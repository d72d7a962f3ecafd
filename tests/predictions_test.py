import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from flowmatch_jax import predictions
from tests.cases import PATHS


class VectorFieldTest(absltest.TestCase):
    def test_velocity_prediction_is_the_field(self):
        seen = {}

        def apply(params, t, x, label=None, condition=None):
            seen.update(t=t, label=label, condition=condition)
            return params * x + t[:, None]

        x = jax.random.normal(jax.random.key(0), (4, 2))
        label, condition = jnp.arange(4), jnp.ones((4, 2))
        for path in PATHS.values():
            field = predictions.vector_field(apply, 2.0, path, "velocity", label, condition)
            np.testing.assert_allclose(field(0.5, x), 2 * x + 0.5)
            times = jnp.linspace(0, 1, 4)
            np.testing.assert_allclose(field(times, x), 2 * x + times[:, None])
        self.assertEqual(seen["t"].shape, (4,))  # networks always get one time a sample
        np.testing.assert_array_equal(seen["label"], label)
        np.testing.assert_array_equal(seen["condition"], condition)


if __name__ == "__main__":
    absltest.main()
