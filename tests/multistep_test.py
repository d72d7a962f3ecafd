import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmatch_jax import marginals, multistep, paths, times
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.solvers import Solver, integrate
from tests.cases import (
    EACH_PATH,
    PATHS,
    Float64TestCase,
    coefficients,
    coupled_velocity,
    gaussian_velocity,
)

METHODS = sorted(multistep.MULTISTEP)
ORDERS = {"ab2": 2, "ab3": 3, "abm2": 2, "dpmpp2m": 2}
POINTS = np.array([[-1.0, 0.5], [0.3, -0.7], [1.2, 1.0]])
NOISE = np.random.RandomState(0).randn(5, 2)


def mixture(path):
    """The velocity of Gaussians of standard deviation 0.4 around three points: not linear in x."""
    smoothed = marginals.smoothed(path, 0.4)
    return lambda t, x: marginals.velocity(smoothed, t, x, jnp.asarray(POINTS, x.dtype))


def predicting(path, data):
    """The field whose predicted data is data(t, x)."""

    def field(t, x):
        c, x1 = paths.coefficients(path, t, x), data(t, x)
        return c.alpha_dot * x1 + c.sigma_dot * (x - c.alpha * x1) / c.sigma

    return field


def grids(steps, begin, end):
    """Equal steps, and steps of the lengths 1, 2, 1, 2, .."""
    uneven = np.cumsum([0.0, *np.tile([1.0, 2.0], steps // 2)])
    for u in (np.linspace(0, 1, steps + 1), uneven / uneven[-1]):
        yield begin + (end - begin) * u


class WeightsTest(parameterized.TestCase):
    def test_textbook_weights_of_equal_steps(self):
        steps, ends = np.array([3]), np.array([4.0])
        for method, expected in (
            ("ab2", [3 / 2, -1 / 2]),
            ("ab3", [23 / 12, -16 / 12, 5 / 12]),
            # 3/2, -1/2 of the next step; 1/2, 1/2 of the last one, which was 3/2, -1/2.
            ("abm2", [3 / 2 + 1 / 2, -1 / 2 + 1 / 2 - 3 / 2, 1 / 2]),
        ):
            of = multistep.MULTISTEP[method].weights
            keep, weights = of(np.arange(5.0), steps, ends, None)
            self.assertEqual(keep, 1)
            np.testing.assert_allclose(weights, [expected], rtol=1e-12)

    @given(st.floats(0.1, 10), st.floats(0.1, 10))
    @settings(max_examples=30, deadline=None)
    def test_formula_of_order_2(self, last, h):
        """(1 + w/2) h and -w/2 h with w = h / last."""
        grid, w = np.array([0.0, 1.0, 1.0 + last, 1.0 + last + h]), h / last
        _, weights = multistep.adams(2, 1, grid, np.array([2]), grid[3:])
        np.testing.assert_allclose(weights, [[h * (1 + w / 2), -h * w / 2]], rtol=1e-9)

    @given(st.lists(st.floats(0.1, 1), min_size=3, max_size=3), st.floats(0.1, 1))
    @settings(max_examples=30, deadline=None)
    def test_integrals_are_exact_for_polynomials(self, gaps, h):
        nodes, polynomial = np.cumsum(gaps), np.polynomial.Polynomial([0.3, -2.0, 1.5])
        w = multistep.integrals(nodes, nodes[-1], nodes[-1] + h)
        exact = polynomial.integ()(nodes[-1] + h) - polynomial.integ()(nodes[-1])
        np.testing.assert_allclose(w @ polynomial(nodes), exact, rtol=1e-7, atol=1e-9)


class OrderTest(Float64TestCase):
    @parameterized.product(method=METHODS, path=("ot", "vp", "ve"))
    def test_order_of_convergence(self, method, path):
        """Inside of the path, where lambda is smooth, on equal and on uneven steps."""
        path = PATHS[path]
        field = mixture(path)
        x, ends = path.source_std * jnp.asarray(NOISE), (0.2, 0.8)
        exact = integrate(field, x, *ends, Solver(rtol=1e-11, atol=1e-11)).x
        errors = [
            [
                np.sqrt(np.mean((integrate(field, x, *ends, solver).x - exact) ** 2))
                for grid in grids(steps, *ends)
                for solver in [Solver(method, grid=grid, path=path)]
            ]
            for steps in (128, 256)
        ]
        order = np.log2(np.divide(*errors))
        np.testing.assert_allclose(order, ORDERS[method], atol=0.3)

    @parameterized.parameters("ab2", "ab3", "abm2")
    def test_the_whole_way_keeps_the_order(self, method):
        """From noise to data on OT; Euler's first step alone would leave order 3 at order 2."""
        path = PATHS["ot"]
        field, x = mixture(path), jnp.asarray(NOISE)
        exact = integrate(field, x, solver=Solver(rtol=1e-11, atol=1e-11)).x
        errors = [
            np.sqrt(np.mean((integrate(field, x, solver=Solver(method, steps=n)).x - exact) ** 2))
            for n in (128, 256)
        ]
        self.assertGreater(np.log2(errors[0] / errors[1]), ORDERS[method] - 0.1)


class ExactTest(Float64TestCase):
    @given(st.lists(st.floats(0.05, 1), min_size=2, max_size=6))
    @settings(max_examples=10, deadline=None)
    def test_velocity_linear_in_time(self, gaps):
        """From two steps on: the trapezoidal rule corrects Euler's first step."""
        grid = np.cumsum([0.0, *gaps])
        field = lambda t, x: jnp.ones_like(x) * (2.0 - 3.0 * t)  # noqa: E731
        x, end = jnp.asarray(NOISE), grid[-1]
        for method in ("ab2", "ab3", "abm2"):
            solution = integrate(field, x, 0.0, end, Solver(method, grid=grid))
            np.testing.assert_allclose(solution.x, x + 2 * end - 1.5 * end**2, rtol=1e-9, atol=1e-9)

    @parameterized.product(path=sorted(PATHS), steps=(1, 2, 5), grid=("uniform", "edm"))
    def test_constant_predicted_data(self, path, steps, grid):
        """x = alpha D + sigma x_0 all the way, in any number of steps."""
        path, data = PATHS[path], 0.7
        field = predicting(path, lambda t, x: jnp.full_like(x, data))
        solver = Solver("dpmpp2m", grid=times.GRIDS[grid](steps, path), path=path)
        x = coefficients(path, 0.0)[0] * data + coefficients(path, 0.0)[1] * jnp.asarray(NOISE)
        solution = integrate(field, x, 0.0, path.t_end, solver)
        alpha, sigma = coefficients(path, path.t_end)
        np.testing.assert_allclose(solution.x, alpha * data + sigma * NOISE, rtol=1e-6)

    def test_algorithm_2_of_dpm_solver_pp(self):
        """Its loop, as the paper writes it, between times at which lambda is finite."""
        path, grid = PATHS["vp"], np.array([0.1, 0.2, 0.35, 0.5, 0.7])
        data = lambda t, x: jnp.sin(3 * t) + 0.3 * jnp.tanh(x)  # noqa: E731
        x, last = jnp.asarray(NOISE), None
        for s, t in itertools.pairwise(grid):
            (alpha_s, sigma_s), (alpha_t, sigma_t) = (coefficients(path, u) for u in (s, t))
            h, d = jnp.log(alpha_t / sigma_t) - jnp.log(alpha_s / sigma_s), data(s, x)
            r = 1.0 if last is None else last[0] / h
            mean = d if last is None else (1 + 1 / (2 * r)) * d - 1 / (2 * r) * last[1]
            last = h, d
            x = sigma_t / sigma_s * x - alpha_t * (jnp.exp(-h) - 1) * mean
        solver = Solver("dpmpp2m", grid=grid, path=path)
        solution = integrate(predicting(path, data), jnp.asarray(NOISE), 0.1, 0.7, solver)
        np.testing.assert_allclose(solution.x, x, rtol=1e-8)

    def test_predictor_and_corrector(self):
        """The loop of PEC: predict, evaluate there, correct."""
        field, grid = mixture(PATHS["ot"]), np.array([0.0, 0.1, 0.3, 0.4, 0.8, 1.0])
        h, x = np.diff(grid), jnp.asarray(NOISE)
        corrected, v = x, []
        for i in range(len(h)):
            v.append(field(grid[i], x))
            if i == 0:
                x = x + h[0] * v[0]
                continue
            corrected = corrected + h[i - 1] / 2 * (v[i - 1] + v[i])
            w = h[i] / h[i - 1]
            x = corrected + h[i] * ((1 + w / 2) * v[i] - w / 2 * v[i - 1])
        solution = integrate(field, jnp.asarray(NOISE), solver=Solver("abm2", grid=grid))
        np.testing.assert_allclose(solution.x, x, rtol=1e-10)


class EndsTest(parameterized.TestCase):
    @parameterized.named_parameters(EACH_PATH)
    def test_finite_at_both_ends_in_float32(self, path):
        x = path.source_std * jnp.asarray(NOISE, jnp.float32)
        for method in METHODS:
            for steps, grid in ((1, "uniform"), (6, "edm")):
                solver = Solver(method, grid=times.GRIDS[grid](steps, path), path=path)
                solution = integrate(mixture(path), x, 0.0, path.t_end, solver)
                self.assertTrue(solution.converged, f"{method}, {steps} {grid} steps")
                self.assertEqual((solution.nfe, solution.x.dtype), (steps, jnp.float32))

    @parameterized.parameters("ot", "vp", "ve", "cosine")
    def test_samples_have_the_moments_of_the_data(self, name):
        path, n = PATHS[name], 4000
        x = path.source_std * jax.random.normal(jax.random.key(0), (n, 2))
        solver = Solver("dpmpp2m", grid=times.edm_grid(60, path), path=path)
        x = integrate(gaussian_velocity(path, 0.7, 0.4), x, 0.0, path.t_end, solver).x
        np.testing.assert_allclose(x.mean(axis=0), 0.7, atol=4 * 0.4 / np.sqrt(n) + 0.01)
        np.testing.assert_allclose(x.std(axis=0), 0.4, atol=4 * 0.4 / np.sqrt(2 * n) + 0.01)

    def test_noise_that_is_coupled_to_the_data(self):
        """The predicted data are those of the coupling: the flow takes x_0 to a multiple of it."""
        path = PATHS["ot_sigma_min_0"]
        solver = Solver("dpmpp2m", steps=200, path=path)
        x = integrate(coupled_velocity(path, 0.8, 0.3), jnp.asarray(NOISE), solver=solver).x
        np.testing.assert_allclose(x, np.hypot(0.8, 0.3) * NOISE, atol=1e-3)


class SaveTest(Float64TestCase):
    @parameterized.product(method=METHODS, backwards=(False, True))
    def test_states_on_the_way(self, method, backwards):
        path = PATHS["vp"]
        field, ends = gaussian_velocity(path, 0.7, 0.4), (0.9, 0.1) if backwards else (0.1, 0.9)
        at = np.linspace(*ends, 8)
        solver = Solver(method, steps=400, path=path)
        solution = integrate(field, jnp.asarray(NOISE), *ends, solver, save_at=at)
        exact = integrate(
            field, jnp.asarray(NOISE), *ends, Solver(rtol=1e-10, atol=1e-10), save_at=at
        )
        np.testing.assert_allclose(solution.trajectory, exact.trajectory, atol=2e-4)
        np.testing.assert_allclose(solution.trajectory[-1], solution.x, rtol=1e-12)
        np.testing.assert_array_equal(solution.trajectory[0], NOISE)

    def test_what_is_refused(self):
        with self.assertRaisesRegex(UserError, "t1: got 0.5; the steps of ab2 end at another time"):
            integrate(lambda t, x: x, jnp.ones(2), 0.5, 0.5, Solver("ab2", steps=2))
        solver = Solver("dpmpp2m", steps=4, path=PATHS["ot"])
        with self.assertRaisesRegex(UserError, "method: got 'dpmpp2m'; .*log-densities"):
            integrate(lambda t, x: x, (jnp.ones(2), jnp.ones(2)), solver=solver)

    def test_derivatives(self):
        """By the field's parameter and by the start, against differences."""
        path = PATHS["ot"]
        end = lambda s, x: integrate(  # noqa: E731
            gaussian_velocity(path, 0.7, s), x, solver=Solver("dpmpp2m", steps=6, path=path)
        ).x.sum()
        x, small = jnp.asarray(NOISE), 1e-6
        by_s, by_x = jax.grad(end, (0, 1))(0.4, x)
        np.testing.assert_allclose(
            by_s, (end(0.4 + small, x) - end(0.4 - small, x)) / (2 * small), rtol=1e-6
        )
        shift = jnp.zeros_like(x).at[0, 0].set(small)
        difference = (end(0.4, x + shift) - end(0.4, x - shift)) / (2 * small)
        np.testing.assert_allclose(by_x[0, 0], difference, rtol=1e-6)


if __name__ == "__main__":
    absltest.main()
