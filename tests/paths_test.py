import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax import paths
from flowmatch_jax.arrays import expand_time
from flowmatch_jax.runtime.errors import UserError
from tests.cases import EACH_PATH, PATHS, Float64TestCase, coefficients, gaussian_velocity


def batch(key, shape=(6, 4, 4, 3)):
    x0, x1 = jax.random.normal(key, (2, *shape))
    t = jnp.linspace(0.0, 0.99, shape[0])
    return t, x0, x1


class PathTest(Float64TestCase):
    @parameterized.named_parameters(EACH_PATH)
    def test_velocity_of_equation_15_is_the_time_derivative_of_the_flow(self, path):
        t, x0, x1 = batch(jax.random.key(0))
        x_t, u_t = paths.flow_and_velocity(path, t, x0, x1)
        np.testing.assert_allclose(x_t, paths.flow(path, t, x0, x1))
        np.testing.assert_allclose(u_t, paths.velocity(path, t, x_t, x1), rtol=1e-8)

        h = 1e-6
        t = t + h  # stay inside [0, t_end] on both sides
        difference = paths.flow(path, t + h, x0, x1) - paths.flow(path, t - h, x0, x1)
        _, u_t = paths.flow_and_velocity(path, t, x0, x1)
        np.testing.assert_allclose(u_t, difference / (2 * h), rtol=1e-5, atol=1e-7)

    @parameterized.named_parameters(EACH_PATH)
    def test_score_is_the_gradient_of_the_log_density(self, path):
        t, x, x1 = batch(jax.random.key(1), (5, 3))

        def log_density(x):
            z = (x - path.mean(t, x1)) / path.std(t, x1)
            return jax.scipy.stats.norm.logpdf(z).sum()

        np.testing.assert_allclose(paths.score(path, t, x, x1), jax.grad(log_density)(x), rtol=1e-9)

    @parameterized.named_parameters(EACH_PATH)
    def test_scalar_time_equals_the_same_time_for_each_sample(self, path):
        _, x0, x1 = batch(jax.random.key(2))
        for function in (paths.flow, paths.velocity, paths.score):
            np.testing.assert_allclose(
                function(path, 0.3, x0, x1), function(path, jnp.full(6, 0.3), x0, x1)
            )

    @parameterized.named_parameters(EACH_PATH)
    def test_finite_on_its_whole_interval_in_float32(self, path):
        x0, x1 = jax.random.normal(jax.random.key(3), (2, 2, 3), jnp.float32)
        t = jnp.array([0.0, path.t_end], jnp.float32)
        x_t, u_t = paths.flow_and_velocity(path, t, x0, x1)
        for value in (x_t, u_t, paths.velocity(path, t, x_t, x1), paths.score(path, t, x_t, x1)):
            self.assertTrue(bool(jnp.isfinite(value).all()))
            self.assertEqual(value.dtype, jnp.float32)

    @parameterized.named_parameters(EACH_PATH)
    def test_continuity_equation_for_a_mixture_of_data_points(self, path):
        """d/dt p_t + div (p_t u_t) = 0 for p_t = mean_i p_t(. | x_i) and its u_t (Eqs. 1-2, 24)."""
        data = jnp.array([[-1.0, 0.5], [0.3, -0.7], [1.2, 1.0]])

        def densities(t, x):
            sigma = path.std(t, data)
            z = (x - path.mean(t, data)) / sigma
            return jnp.prod(jax.scipy.stats.norm.pdf(z) / sigma, axis=-1)

        def density(t, x):
            return densities(t, x).mean()

        def flux(t, x):
            u = paths.velocity(path, t, jnp.broadcast_to(x, data.shape), data)
            return (densities(t, x)[:, None] * u).mean(axis=0)

        for t in (0.1, 0.5, 0.8):
            for x in jax.random.normal(jax.random.key(4), (5, 2)) * coefficients(path, t)[1]:
                change = jax.grad(density)(t, x)
                outflow = jnp.trace(jax.jacfwd(lambda x: flux(t, x))(x))  # noqa: B023
                scale = abs(change) + density(t, x)
                self.assertLess(float(abs(change + outflow)), 1e-9 * float(scale))

    @parameterized.named_parameters(EACH_PATH)
    def test_marginal_velocity_of_gaussian_data(self, path):
        """E[u_t(x | x_1) | x] is u_t at the posterior mean of x_1, u_t being linear in x_1."""
        m, s = 0.4, 0.7
        x = jax.random.normal(jax.random.key(5), (7, 2))
        for t in (0.0, 0.2, 0.6, 0.95):
            alpha, sigma = coefficients(path, t)
            posterior = m + alpha * s**2 / (alpha**2 * s**2 + sigma**2) * (x - alpha * m)
            np.testing.assert_allclose(
                paths.velocity(path, t, x, posterior),
                gaussian_velocity(path, m, s)(t, x),
                rtol=1e-7,
                atol=1e-10,
            )

    def test_ends_of_each_path(self):
        one = jnp.ones((1, 1))
        ends = {name: [coefficients(p, t) for t in (0.0, 1.0)] for name, p in PATHS.items()}
        np.testing.assert_allclose(ends["ot"], [(0, 1), (1, 1e-5)])
        np.testing.assert_allclose(ends["ve"], [(1, 50), (1, 0.01)])
        self.assertEqual(PATHS["ve"].source_std, 50)
        # alpha_1 = exp(-(0.1 + 19.9 / 2) / 2): p_0 is not exactly N(0, I).
        np.testing.assert_allclose(ends["vp"][0], (np.exp(-5.025), np.sqrt(1 - np.exp(-10.05))))
        np.testing.assert_allclose(ends["vp"][1], (1, 0))
        self.assertEqual(PATHS["vp"].t_end, 1 - 1e-5)
        np.testing.assert_allclose(
            PATHS["vp"].std(0.5, one) ** 2 + PATHS["vp"].mean(0.5, one) ** 2, 1
        )

    def test_ot_target_is_the_straight_line(self):
        t, x0, x1 = batch(jax.random.key(6))
        _, u_t = paths.flow_and_velocity(paths.optimal_transport(1e-3), t, x0, x1)
        np.testing.assert_allclose(u_t, x1 - (1 - 1e-3) * x0)

    @parameterized.parameters(
        (paths.optimal_transport, {"sigma_min": 1.0}, "sigma_min"),
        (paths.optimal_transport, {"sigma_min": -1e-3}, "sigma_min"),
        (paths.variance_preserving, {"beta_min": 2.0, "beta_max": 1.0}, "beta_max"),
        (paths.variance_preserving, {"eps": 0.0}, "eps"),
        (paths.variance_exploding, {"sigma_min": 0.0}, "sigma_min"),
        (paths.variance_exploding, {"sigma_min": 60.0}, "sigma_min"),
    )
    def test_impossible_parameters(self, make, arguments, field):
        with self.assertRaises(UserError) as caught:
            make(**arguments)
        self.assertEqual(caught.exception.field, field)


class LogSnrTest(Float64TestCase):
    @parameterized.named_parameters(EACH_PATH)
    def test_log_of_signal_over_noise(self, path):
        t = np.array([0.1, 0.5, 0.9])
        alpha, sigma = np.transpose([coefficients(path, s) for s in t])
        np.testing.assert_allclose(paths.log_snr(path, t), np.log(alpha / sigma), rtol=1e-12)
        self.assertEqual(
            float(paths.log_snr(path, 0.0)) == -np.inf, paths.starts_without_data(path)
        )

    @parameterized.named_parameters(EACH_PATH)
    def test_the_time_of_each_ratio_and_the_ends_beyond(self, path):
        t = np.linspace(0.01, 0.99, 50)
        found = paths.time_at_log_snr(path, paths.log_snr(path, t))
        np.testing.assert_allclose(found, t, atol=1e-12)
        ends = paths.time_at_log_snr(path, jnp.array([-jnp.inf, -1e3, 1e3, jnp.inf]))
        np.testing.assert_array_equal(ends, [0, 0, path.t_end, path.t_end])

    def test_a_path_of_one_s_own(self):
        """Cosine: tan(pi t / 2) is signal over noise."""
        angle = lambda t, x: expand_time(t, x) * jnp.pi / 2  # noqa: E731
        cosine = paths.GaussianPath(
            mean=lambda t, x1: jnp.sin(angle(t, x1)) * x1,
            std=lambda t, x1: jnp.cos(angle(t, x1)),
            t_end=1 - 1e-5,
        )
        ratio = np.array([0.1, 1.0, 7.0])
        found = paths.time_at_log_snr(cosine, np.log(ratio))
        np.testing.assert_allclose(found, 2 / np.pi * np.arctan(ratio), rtol=1e-9)


class OptimalTransportLawsTest(Float64TestCase):
    @hypothesis.settings(deadline=None, max_examples=30)
    @hypothesis.given(
        st.floats(1e-6, 0.9), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**31 - 1)
    )
    def test_points_move_at_constant_speed(self, sigma_min, t, s, seed):
        path = paths.optimal_transport(sigma_min)
        x0, x1 = jax.random.normal(jax.random.key(seed), (2, 3, 2))
        x_t, u_t = paths.flow_and_velocity(path, t, x0, x1)
        np.testing.assert_allclose(
            x_t + (s - t) * u_t, paths.flow(path, s, x0, x1), rtol=1e-9, atol=1e-9
        )


if __name__ == "__main__":
    absltest.main()
