import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax import couplings, paths
from flowmatch_jax.interpolants import gamma, stochastic_interpolant

T, NOISE = 0.3, 0.7
SOURCE_STD, DATA_STD = 0.5, 2.0
SIGMA_MIN = 0.01


def ways(n):
    rng = np.random.default_rng(0)
    return {
        "x0": jnp.asarray(SOURCE_STD * rng.standard_normal((n, 1), np.float32)),
        "x": jnp.asarray(DATA_STD * rng.standard_normal((n, 1), np.float32)),
    }


class GammaTest(parameterized.TestCase):
    @parameterized.parameters(1.0, 0.9)
    def test_ends_are_without_noise_and_at_rest(self, t_end):
        t = jnp.array([0.0, t_end / 2, t_end])
        value, rate = jax.jvp(lambda t: gamma(t, t_end), (t,), (jnp.ones(3),))
        np.testing.assert_allclose(value, [0, 1, 0], atol=1e-6)
        np.testing.assert_allclose(rate, [0, 0, 0], atol=1e-5)


class StochasticInterpolantTest(parameterized.TestCase):
    def objective(self, noise, t=T):
        return stochastic_interpolant(
            paths.optimal_transport(SIGMA_MIN),
            noise,
            couplings.of_the_batch,
            lambda key, n, path: jnp.full(n, t),
        )

    @parameterized.parameters(0.0, NOISE)
    def test_the_field_between_gaussians_is_the_minimum(self, noise):
        """v = E[u | x] = cov(u, x) / var(x) x, and the loss there is var(u) - cov^2 / var(x)."""
        n = 200_000
        t, keep = T, 1 - SIGMA_MIN
        sigma, level, rate = 1 - keep * t, *jax.jvp(lambda t: gamma(t, 1.0), (t,), (1.0,))
        variances = np.array([SOURCE_STD**2, DATA_STD**2, noise**2])
        at, moved = np.array([sigma, t, level]), np.array([-keep, 1, rate])
        var_x, cov, var_u = (np.sum(variances * c) for c in (at**2, at * moved, moved**2))

        def loss(slope):
            apply = lambda params, t, x, **inputs: params * x  # noqa: E731
            return self.objective(noise)(apply, slope, ways(n), jax.random.key(1))[0]

        least, derivative = jax.value_and_grad(loss)(cov / var_x)
        wanted = var_u - cov**2 / var_x
        # Squares of Gaussian errors have a standard deviation of sqrt(2) times their mean.
        self.assertLess(abs(least - wanted), 5 * np.sqrt(2 / n) * wanted)
        # The derivative is the mean of -2 (u - v) x, a product of independent Gaussians.
        self.assertLess(abs(derivative), 5 * 2 * np.sqrt(wanted * var_x / n))

    @parameterized.parameters(0.0, 1.0)
    def test_ends_are_those_of_the_pairs(self, t):
        """At the ends the network is given x_0 and x_1 (with sigma_min x_0), whatever the noise."""
        batch, seen = ways(8), []

        def apply(params, t, x, **inputs):
            seen.append(x)
            return x

        self.objective(NOISE, t)(apply, None, batch, jax.random.key(0))
        wanted = batch["x0"] if t == 0 else batch["x"] + SIGMA_MIN * batch["x0"]
        np.testing.assert_allclose(seen[0], wanted, atol=1e-5)

    def test_inputs_reach_the_network(self):
        def apply(params, t, x, label=None, condition=None, key=None):
            self.assertIsNotNone(key)
            return x * label[:, None]

        batch = ways(4) | {"label": jnp.zeros(4, jnp.int32)}
        loss, metrics = self.objective(NOISE)(apply, None, batch, jax.random.key(0))
        self.assertEqual(loss, metrics["loss"])
        self.assertTrue(np.isfinite(loss))


if __name__ == "__main__":
    absltest.main()
