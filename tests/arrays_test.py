import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.arrays import expand_time, sum_dims
from flowmatch_jax.runtime.errors import UserError


class ArraysTest(parameterized.TestCase):
    def test_time_broadcasts_over_samples(self):
        x = jnp.ones((3, 2, 2), jnp.float16)
        self.assertEqual(expand_time(0.5, x).shape, ())
        t = expand_time(np.arange(3.0), x)
        self.assertEqual((t.shape, t.dtype), ((3, 1, 1), jnp.float16))
        np.testing.assert_array_equal((t * x)[:, 1, 1], [0, 1, 2])

    @parameterized.parameters((3, 1), (2,), (1,), (1, 3))
    def test_times_that_would_broadcast_to_something_else(self, *shape):
        with self.assertRaisesRegex(UserError, r"t: got .*for x of shape \(3, 2\) it is \[\] or"):
            expand_time(jnp.zeros(shape), jnp.ones((3, 2)))

    def test_sums_over_all_but_the_batch(self):
        np.testing.assert_array_equal(sum_dims(jnp.ones((3, 2, 4))), [8, 8, 8])


if __name__ == "__main__":
    absltest.main()
