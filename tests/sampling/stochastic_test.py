import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

from flowmatch_jax import marginals
from flowmatch_jax.paths import coefficients
from flowmatch_jax.predictions import vector_field
from flowmatch_jax.runge_kutta import STOCHASTIC
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.sampling import stochastic
from flowmatch_jax.sampling.stochastic import NOISE_LEVELS, call_times, solve
from flowmatch_jax.solvers import Solver, integrate
from tests.cases import (
    PATHS,
    Float64TestCase,
    coupled_velocity,
    gaussian_velocity,
    optimal_prediction,
)

POINTS, WEIGHTS, STD = jnp.array([[-1.0], [0.5]]), jnp.array([0.3, 0.7]), 0.2  # a mixture


def keys(n, seed=1):
    return jax.random.split(jax.random.key(seed), n)


def source(path, n, dims=1):
    return path.source_std * jax.random.normal(jax.random.key(0), (n, dims))


class MarginalsTest(parameterized.TestCase):
    """Of a mixture of two Gaussians, whose field is known."""

    @parameterized.parameters(
        ("ot", "sigma", "sea"),
        ("ot", "constant", "shark"),
        ("vp", "diffusion", "euler_maruyama"),
        ("ve", "diffusion", "shark"),
        ("cosine", "sine", "shark"),
    )
    def test_are_those_of_the_flow(self, name, noise, method):
        """By Kolmogorov and Smirnov's test, of which each would pass 999 times in 1,000."""
        path, n = PATHS[name], 8_000
        mixed = marginals.smoothed(path, STD)
        field = lambda t, x: marginals.velocity(mixed, t, x, POINTS, WEIGHTS)  # noqa: E731
        times = [0.4, 0.8, path.t_end]
        solver = Solver(method, steps=300, noise=NOISE_LEVELS[noise])
        draw = jax.jit(lambda x0: solve(field, x0, keys(n), path, solver, times))
        solution = draw(source(path, n))
        self.assertTrue(solution.converged)
        for t, x in zip(times, solution.trajectory, strict=True):
            c = coefficients(mixed, t, jnp.ones(()))
            at = lambda z, c=c: stats.norm.cdf(z, c.alpha * POINTS, c.sigma).T @ WEIGHTS  # noqa: E731
            result = stats.kstest(np.asarray(x)[:, 0], at)
            self.assertGreater(result.pvalue, 1e-3, f"t = {t}")
        np.testing.assert_allclose(solution.trajectory[-1], solution.x, atol=1e-5)

    def test_noise_that_is_the_data_is_left_to_the_flow(self):
        """x_1 = x_0 ~ N(0, 1) stays where it is, but its noise is no score: x ends at 1 - 1/e."""
        path, n = PATHS["ot_sigma_min_0"], 8_000
        still, solver = (
            coupled_velocity(path, slope=1.0, std=0.0),
            Solver("euler_maruyama", steps=100),
        )
        draw = jax.jit(lambda x0: solve(still, x0, keys(n), path, solver).x)
        variance, expected = jnp.var(draw(source(path, n))), 1 - np.exp(-1)
        self.assertAlmostEqual(float(variance), expected, delta=4 * expected * np.sqrt(2 / n))


class SolveTest(Float64TestCase):
    def solve(self, path, solver, n=4, seed=1, field=None):
        field = field or gaussian_velocity(path, 0.5, 0.3)
        return solve(field, source(path, n, 2), keys(n, seed), path, solver)

    def test_without_noise_it_is_euler_s_method(self):
        path, still = PATHS["vp"], lambda path, t: 0 * t
        got = self.solve(path, Solver("euler_maruyama", steps=20, noise=still))
        field = gaussian_velocity(path, 0.5, 0.3)
        euler = Solver("euler", steps=20)
        expected = integrate(field, source(path, 4, 2), 0.0, path.t_end, euler)
        np.testing.assert_allclose(got.x, expected.x, rtol=1e-10)

    def test_predictions(self):
        """The score follows from the field, whatever the network predicts."""
        path, solver = PATHS["vp"], Solver("shark", steps=10, noise=NOISE_LEVELS["diffusion"])
        expected = self.solve(path, solver)
        for kind in ("velocity", "noise", "score", "data"):
            predict = optimal_prediction(path, 0.5, 0.3, kind)
            apply = lambda params, t, x, predict=predict, **_: predict(t, x)  # noqa: E731
            got = self.solve(path, solver, field=vector_field(apply, None, path, kind))
            np.testing.assert_allclose(got.x, expected.x, rtol=1e-6, err_msg=kind)

    def test_a_sample_depends_on_its_own_key(self):
        path, solver = PATHS["ot"], Solver("sea", steps=5)
        field = gaussian_velocity(path, 0.5, 0.3)
        draw = jax.jit(lambda x0, keys: solve(field, x0, keys, path, solver).x)
        x0, of_each = source(path, 4, 2), keys(4)
        all_of_them = draw(x0, of_each)
        two = draw(x0[1:3], of_each[1:3])
        np.testing.assert_allclose(two, all_of_them[1:3], rtol=1e-12)
        others = draw(x0, keys(4, seed=2))
        self.assertGreater(float(jnp.abs(others - all_of_them).min()), 1e-4)

    @parameterized.parameters(*STOCHASTIC)
    def test_calls_at_their_times(self, method):
        path, asked = PATHS["ot"], []
        solver = Solver(method, grid=[0.0, 0.1, 0.5, 1.0])
        field = gaussian_velocity(path, 0.5, 0.3)

        def counting(t, x):
            like = jax.ShapeDtypeStruct(x.shape, x.dtype)
            note = lambda t, x: (asked.append(float(t)), x)[1]  # noqa: E731
            return field(t, jax.pure_callback(note, like, t, x))

        solution = self.solve(path, solver, field=counting)
        self.assertTrue(solution.converged)
        np.testing.assert_allclose(sorted(asked), call_times(solver, path), rtol=1e-12)
        self.assertEqual((solution.nfe, solution.steps), (len(asked), 3))

    def test_ends_of_all_paths_are_finite(self):
        for name in ("ot", "vp", "ve"):
            with self.subTest(name):
                solver = Solver("shark", steps=4, noise=NOISE_LEVELS["constant"])
                self.assertTrue(self.solve(PATHS[name], solver).converged)

    def test_neither_an_ode_nor_a_likelihood(self):
        field = gaussian_velocity(PATHS["ot"], 0.5, 0.3)
        self.assertTrue(Solver("sea", steps=2).is_for_samples)
        with self.assertRaisesRegex(UserError, "method: got 'sea'; it solves an SDE"):
            integrate(field, jnp.ones((2, 2)), solver=Solver("sea", steps=2))
        with self.assertRaisesRegex(UserError, "steps: got None; .*'sea' takes either steps"):
            self.solve(PATHS["ot"], Solver("sea"))


class NoiseLevelsTest(Float64TestCase):
    def test_diffusion_is_that_of_the_vp_process(self):
        """beta(s) = 0.1 + 19.9 s at s = 1 - t."""
        t = jnp.array(0.3)
        got = stochastic.diffusion(PATHS["vp"], t)
        np.testing.assert_allclose(got, np.sqrt(0.1 + 19.9 * 0.7), rtol=1e-9)

    def test_sigma(self):
        got = stochastic.root_of_sigma(PATHS["ot_sigma_min_0"], jnp.array(0.75))
        np.testing.assert_allclose(got, 0.5, rtol=1e-9)


if __name__ == "__main__":
    absltest.main()
