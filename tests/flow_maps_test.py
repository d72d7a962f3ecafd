import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax import flow_maps, marginals
from flowmatch_jax.divergence import divergence
from flowmatch_jax.solvers import Solver, integrate
from tests.cases import EACH_PATH, PATHS, Float64TestCase, gaussian_velocity

MEAN, STD = 0.4, 0.7


def points(path, n=5):
    return path.source_std * jax.random.normal(jax.random.key(0), (n, 2))


class GaussianTest(Float64TestCase):
    """The closed forms of `marginals` and the relations of flow maps check each other."""

    @parameterized.named_parameters(EACH_PATH)
    def test_the_map_of_the_average_velocity(self, path):
        exact = marginals.gaussian_flow_map(path, MEAN, STD)
        u = marginals.gaussian_average_velocity(path, MEAN, STD)
        x, t, s = points(path), jnp.linspace(0, 0.6, 5), jnp.linspace(0.5, 0.9, 5)
        found = flow_maps.from_average_velocity(u)(t, s, x)
        np.testing.assert_allclose(found, exact(t, s, x), rtol=1e-9)
        np.testing.assert_array_equal(flow_maps.from_average_velocity(u)(t, t, x), x)

    @parameterized.named_parameters(EACH_PATH)
    def test_composition(self, path):
        exact = marginals.gaussian_flow_map(path, MEAN, STD)
        x, t, s, r = points(path), 0.1, jnp.linspace(0.2, 0.6, 5), 0.9
        np.testing.assert_allclose(exact(s, r, exact(t, s, x)), exact(t, r, x), rtol=1e-10)

    @parameterized.named_parameters(EACH_PATH)
    def test_the_field_is_the_derivative_by_the_end(self, path):
        exact = marginals.gaussian_flow_map(path, MEAN, STD)
        u = marginals.gaussian_average_velocity(path, MEAN, STD)
        field, x, t, s = gaussian_velocity(path, MEAN, STD), points(path), 0.2, jnp.array(0.7)
        at_s, derivative = jax.jvp(lambda s: exact(t, s, x), (s,), (jnp.ones(()),))
        np.testing.assert_allclose(derivative, field(s, at_s), rtol=1e-9)
        np.testing.assert_allclose(u(s, s, x), field(s, x), rtol=1e-9)

    @parameterized.named_parameters(EACH_PATH)
    def test_the_identity_of_mean_flow(self, path):
        u = marginals.gaussian_average_velocity(path, MEAN, STD)
        field, x = gaussian_velocity(path, MEAN, STD), points(path)
        t, s = jnp.linspace(0.05, 0.6, 5), jnp.linspace(0.5, 0.95, 5)
        v = jnp.stack([field(t, x[None])[0] for t, x in zip(t, x, strict=True)])
        value, derivative = flow_maps.along_flow(u, v, t, s, x)
        correction = (s - t)[:, None] * derivative
        np.testing.assert_allclose(value, v + correction, rtol=1e-7, atol=1e-9)
        # With the sign of a time that runs from data to noise it does not hold.
        self.assertGreater(float(jnp.abs(value - (v - correction)).max()), 1e-2)

    @parameterized.parameters("ot", "vp", "ve")
    def test_the_density_along_the_map(self, name):
        """With D = log |dX/dx| / (s - t): log p_s(X) = log p_t(x) - (s - t) D, and D's identity."""
        path, t, s = PATHS[name], jnp.linspace(0.05, 0.6, 5), jnp.linspace(0.5, 0.95, 5)
        exact, x = marginals.gaussian_flow_map(path, MEAN, STD), points(path)
        field, data = gaussian_velocity(path, MEAN, STD), jnp.full((1, 2), MEAN)

        def mean_divergence(t, s, x):
            each = lambda t, s, x: jax.jacfwd(lambda x: exact(t, s, x[None])[0])(x)  # noqa: E731
            return jnp.linalg.slogdet(jax.vmap(each)(t, s, x))[1] / (s - t)

        smooth = marginals.smoothed(path, STD)
        before, after = (
            marginals.log_density(smooth, time, at, data)
            for time, at in ((t, x), (s, exact(t, s, x)))
        )
        np.testing.assert_allclose(after, before - (s - t) * mean_divergence(t, s, x), rtol=1e-9)
        v, div = divergence(field, t, x)
        value, derivative = flow_maps.along_flow(mean_divergence, v, t, s, x)
        np.testing.assert_allclose(value, div + (s - t) * derivative, rtol=1e-7)

    def test_the_mean_divergence_of_a_mixture(self):
        """D = div v + (s - t) dD/dt; D by solves, its derivative by differences of 2 h."""
        path, data = marginals.smoothed(PATHS["ot"], 0.4), jnp.array([[-1.0, 0.5], [0.7, 0.2]])
        field = lambda t, x: marginals.velocity(path, t, x, data)  # noqa: E731
        accurate = Solver(rtol=1e-10, atol=1e-10)
        t, s, h, x = 0.3, 0.9, 1e-3, points(path)

        def mean_divergence(t, x):
            end = integrate(field, x, t, s, accurate).x
            change = marginals.log_density(path, t, x, data) - marginals.log_density(
                path, s, end, data
            )
            return change / (s - t)

        earlier, later = (
            mean_divergence(at, integrate(field, x, t, at, accurate).x) for at in (t - h, t + h)
        )
        derivative, (_, div) = (later - earlier) / (2 * h), divergence(field, t, x)
        expected = div + (s - t) * derivative
        np.testing.assert_allclose(mean_divergence(t, x), expected, rtol=1e-5)

    @parameterized.parameters("ot", "ve")
    def test_it_carries_points_where_a_solver_does(self, name):
        path = PATHS[name]
        exact, x = marginals.gaussian_flow_map(path, MEAN, STD), points(path)
        field, solver = gaussian_velocity(path, MEAN, STD), Solver(rtol=1e-9, atol=1e-9)
        save_at = [0.0, 0.3, 0.5, 0.8, path.t_end]
        solved = integrate(field, x, 0.0, path.t_end, solver, save_at)
        for times in ([0.0, path.t_end], [0.0, 0.4, 0.5, path.t_end]):
            found = flow_maps.follow(exact, x, times, save_at)
            np.testing.assert_allclose(found.x, solved.x, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(found.trajectory, solved.trajectory, rtol=1e-6, atol=1e-6)


class FollowTest(parameterized.TestCase):
    @parameterized.parameters(1, 2, 4)
    def test_calls_are_counted(self, steps):
        """By a map that counts its own: each call adds one."""
        count = lambda t, s, x: x + 1  # noqa: E731
        times = np.linspace(0, 1, steps + 1)
        solution = jax.jit(lambda x: flow_maps.follow(count, x, times))(jnp.zeros((3, 2)))
        self.assertEqual((int(solution.nfe), float(solution.x[0, 0])), (steps, steps))
        self.assertTrue(solution.converged)
        saved = flow_maps.follow(count, jnp.zeros((3, 2)), times, [0.0, 1.0])
        self.assertEqual(int(saved.nfe), steps + 2)
        np.testing.assert_array_equal(saved.trajectory[:, 0, 0], [1, steps])

    def test_a_map_that_is_not_finite(self):
        solution = flow_maps.follow(lambda t, s, x: x / 0, jnp.ones((1, 2)), [0.0, 1.0])
        self.assertFalse(solution.converged)

    def test_steps_compose_to_the_map(self):
        """The steps of the exact map reach the same points; those of Euler's method do not."""
        path = PATHS["ot"]
        exact = marginals.gaussian_flow_map(path, MEAN, STD)
        x, times = points(path), [0.0, 0.2, 0.7, 1.0]
        once = flow_maps.follow(exact, x, [0.0, 1.0]).x
        np.testing.assert_allclose(flow_maps.follow(exact, x, times).x, once, rtol=1e-4, atol=1e-5)
        euler = flow_maps.from_average_velocity(
            lambda t, s, x: gaussian_velocity(path, MEAN, STD)(t, x)
        )
        error = jnp.abs(flow_maps.follow(euler, x, times).x - once).max()
        self.assertGreater(float(error), 0.05)


if __name__ == "__main__":
    absltest.main()
