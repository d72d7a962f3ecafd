import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from flowmatch_jax.networks.mlp import MLP
from flowmatch_jax.runtime.errors import UserError


class MLPTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.t, self.x = jnp.array([0.1, 0.5]), jnp.array([[1.0, 2.0], [0.3, -1.0]])
        self.module = MLP(width=16, depth=3)
        self.variables = self.module.init(jax.random.key(0), self.t, self.x)

    def test_zero_at_the_start(self):
        np.testing.assert_array_equal(self.module.apply(self.variables, self.t, self.x), 0)

    def test_layers_of_the_paper(self):
        params = jax.eval_shape(MLP().init, jax.random.key(0), self.t, self.x)
        kernels = [p.shape for p in jax.tree.leaves(params) if p.ndim == 2]
        # x and t, and a sine and a cosine of each in four octaves.
        self.assertCountEqual(kernels, [(3 + 2 * 4 * 3, 512), *[(512, 512)] * 4, (512, 2)])
        plain = jax.eval_shape(MLP(frequencies=0).init, jax.random.key(0), self.t, self.x)
        self.assertEqual(plain["params"]["hidden_0"]["kernel"].shape, (3, 512))

    def test_sinusoids_have_periods_of_8_and_2(self):
        variables = jax.tree.map(lambda p: p + 0.1, self.variables)
        hidden = variables["params"]["hidden_0"]
        apply = lambda t, x: self.module.apply(variables, t, x)  # noqa: E731
        before = apply(self.t, self.x)
        self.assertGreater(float(jnp.abs(apply(self.t, self.x + 8) - before).max()), 1e-3)
        hidden["kernel"] = hidden["kernel"].at[:3].set(0)  # of the coordinates themselves
        before = apply(self.t, self.x)
        np.testing.assert_allclose(apply(self.t, self.x + 8), before, rtol=1e-4)
        np.testing.assert_allclose(apply(self.t + 2, self.x), before, rtol=1e-4)
        self.assertGreater(float(jnp.abs(apply(self.t + 1, self.x) - before).max()), 1e-3)

    def test_time_may_be_a_scalar(self):
        variables = jax.tree.map(lambda p: p + 0.1, self.variables)
        np.testing.assert_allclose(
            self.module.apply(variables, 0.3, self.x),
            self.module.apply(variables, jnp.full(2, 0.3), self.x),
        )

    def test_bfloat16_tells_times_apart(self):
        """The first layer, which sees t, is float32; in bfloat16 there were a dozen times here."""
        module = MLP(16, 1, dtype=jnp.bfloat16)
        t, x = jnp.linspace(0.999, 1, 100), jnp.zeros((100, 2))
        variables = jax.tree.map(lambda p: p + 0.1, module.init(jax.random.key(0), t, x))
        _, seen = module.apply(variables, t, x, capture_intermediates=True)
        (hidden,) = seen["intermediates"]["hidden_0"]["__call__"]
        self.assertGreater(len(np.unique(np.asarray(hidden), axis=0)), 90)

    def test_bfloat16_stays_inside(self):
        variables = jax.tree.map(lambda p: p + 0.1, self.variables)
        low = MLP(16, 3, dtype=jnp.bfloat16).apply(variables, self.t, self.x)
        self.assertEqual(low.dtype, jnp.float32)
        np.testing.assert_allclose(low, self.module.apply(variables, self.t, self.x), rtol=0.05)

    def test_a_second_time(self):
        """It is two more inputs, with sinusoids; without it the velocity is predicted, at t."""
        module = MLP(16, 3, two_times=True)
        variables = module.init(jax.random.key(0), self.t, self.x)
        kernel = variables["params"]["hidden_0"]["kernel"]
        self.assertEqual(kernel.shape, (4 + 2 * 4 * 4, 16))
        variables = jax.tree.map(lambda p: p + 0.1, variables)
        at_t = module.apply(variables, self.t, self.x)
        same = module.apply(variables, self.t, self.x, end=self.t)
        np.testing.assert_array_equal(same, at_t)
        later = module.apply(variables, self.t, self.x, end=1.0)
        self.assertGreater(float(jnp.abs(later - at_t).max()), 1e-3)
        with self.assertRaisesRegex(UserError, "end: .* takes one time"):
            self.module.apply(self.variables, self.t, self.x, end=self.t)

    def test_it_takes_no_label(self):
        with self.assertRaises(UserError):
            self.module.apply(self.variables, self.t, self.x, jnp.zeros(2, jnp.int32))


if __name__ == "__main__":
    absltest.main()
