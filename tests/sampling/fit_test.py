import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax import paths
from flowmatch_jax.marginals import smoothed, velocity
from flowmatch_jax.sampling import fit, linear
from flowmatch_jax.solvers import Solver, integrate

CALLS = 4
GRIDS = {
    "uniform": lambda n: np.linspace(0, 1, n + 1),
    "to the data": lambda n: np.sin(np.linspace(0, np.pi / 2, n + 1)),
}
POINTS = jnp.asarray([[1.0, 0.2], [-0.6, 0.9], [0.1, -1.1]])


def mixture(scale, t, x):
    """The field of the OT path to three Gaussians, of which ``scale`` multiplies the means."""
    return velocity(smoothed(paths.optimal_transport(), 0.4), t, x, scale * POINTS)


@functools.cache
def problem():
    x0 = jax.random.normal(jax.random.key(0), (300, 2))
    solver = Solver("dopri5", rtol=1e-6, atol=1e-6)
    x1 = integrate(functools.partial(mixture, 1.0), x0, solver=solver).x
    pairs = fit.Pairs(np.asarray(x0), np.asarray(x1), {})
    wanted = fit.Fit(
        field=lambda scale, inputs: functools.partial(mixture, scale),
        method="ab2",
        calls=CALLS,
        t_end=1.0,
        pairs=pairs.at(slice(200)),
        chosen_by=pairs.at(slice(200, 250)),
        steps=200,
        batch_size=40,
        learning_rate=2e-2,
    )
    return wanted, fit.make_errors(wanted), pairs.at(slice(250, 300))


class FitTest(parameterized.TestCase):
    def test_best_known_method(self):
        wanted, errors_of, _ = problem()
        error = lambda solver: fit.typical(errors_of(1.0, solver, wanted.chosen_by))  # noqa: E731
        methods = dict.fromkeys(linear.METHODS, paths.optimal_transport())
        name, known, least = fit.best_known(error, CALLS, GRIDS, methods)
        errors = {
            f"{method}, {grid}": error(
                linear.of_method(method, make(CALLS // linear.calls_per_step(method)), path)
            )
            for grid, make in GRIDS.items()
            for method, path in methods.items()
        }
        self.assertLen(errors, 16)
        self.assertEqual((name, least), min(errors.items(), key=lambda item: item[1]))
        self.assertEqual(error(known), least)
        name, *_ = fit.best_known(error, 3, GRIDS, methods)
        self.assertRegex(name, "^(euler|ab2|ab3|abm2|dpmpp2m), ")

    def test_no_change_is_the_start(self):
        wanted, *_ = problem()
        got = wanted.coefficients(wanted.init(1.0).variables)
        for value, expected in zip(got, wanted.start, strict=True):
            np.testing.assert_allclose(value, expected, atol=1e-6)

    def test_error_is_that_of_the_solutions(self):
        """Also of a last batch that is filled up."""
        wanted, errors_of, _ = problem()
        pairs = wanted.chosen_by
        x = linear.solve(functools.partial(mixture, 1.0), jnp.asarray(pairs.x0), wanted.start).x
        errors = errors_of(1.0, wanted.start, pairs)
        np.testing.assert_allclose(errors, ((x - pairs.x1) ** 2).mean(axis=1), rtol=1e-4)

    def test_the_typical_error_is_hardly_changed_by_one_that_is_large(self):
        errors = np.full(100, 1e-4, np.float32)
        self.assertAlmostEqual(fit.typical(errors), 1e-4, places=8)
        errors[0] = 1e-2
        self.assertAlmostEqual(fit.typical(errors), 1e-4 * 100**0.01, places=8)
        self.assertGreater(errors.mean(), 1.9e-4)
        self.assertGreater(fit.typical(np.zeros(2, np.float32)), 0)

    @parameterized.parameters("ab2", "rk4")
    def test_gradient_is_the_derivative_through_the_solve(self, method):
        """Of a field that depends on t and x, by all coefficients, none of which is special."""
        wanted, *_ = problem()
        x0, x1, _ = wanted.pairs.at(slice(7))
        field = functools.partial(mixture, 1.0)
        solver = linear.of_method(method, np.linspace(0, 1, 5 if method == "ab2" else 2))
        noise = np.random.RandomState(0)
        solver = jax.tree.map(lambda c: c + 0.05 * noise.standard_normal(c.shape), solver)
        by_solver = fit.gradient(
            jax.jit(field),
            jax.jit(lambda t, x, g: jax.vjp(field, t, x)[1](g)),
            solver,
            x0,
            x1,
        )
        through = lambda solver: fit.loss(linear.solve(field, jnp.asarray(x0), solver).x, x1)  # noqa: E731
        expected = jax.grad(through)(jax.tree.map(jnp.float32, solver))
        for got, wanted in zip(by_solver, expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())

    def test_held_out_error_falls_and_a_fit_that_goes_on_ends_alike(self):
        wanted, errors_of, held_out = problem()
        states = list(fit.run(wanted, 1.0, wanted.init(np.inf), errors_of))
        self.assertEqual([int(state.step) for state in states], list(range(25, 201, 25)))
        best = wanted.coefficients(states[-1].best)
        before, after = (errors_of(1.0, c, held_out) for c in (wanted.start, best))
        self.assertLess(fit.typical(after), 0.2 * fit.typical(before))
        self.assertLess(after.mean(), 0.2 * before.mean())
        self.assertTrue((np.diff(best.t) > 0).all())
        self.assertEqual(best.t[0], 0)
        self.assertLess(best.t[-1], 1)
        *_, resumed = fit.run(wanted, 1.0, states[3], errors_of)
        jax.tree.map(np.testing.assert_array_equal, resumed, states[-1])

    @parameterized.parameters("ab2", "midpoint")
    def test_times_alone(self, method):
        """The error falls by the grid, and the coefficients stay the method's."""
        wanted, _, held_out = problem()
        wanted = dataclasses.replace(wanted, method=method, times_only=True, steps=100)
        errors_of = fit.make_errors(wanted)
        start = wanted.coefficients(wanted.init(1.0).variables)
        for value, expected in zip(start, wanted.start, strict=True):
            np.testing.assert_allclose(value, expected, atol=1e-6)
        *_, last = fit.run(wanted, 1.0, wanted.init(np.inf), errors_of)
        best = wanted.coefficients(last.best)
        before, after = (errors_of(1.0, c, held_out) for c in (wanted.start, best))
        self.assertLess(fit.typical(after), 0.7 * fit.typical(before))
        grid = np.append(np.asarray(best.t)[:: linear.calls_per_step(method)], 1.0)
        kept = linear.of_method(method, grid)
        np.testing.assert_allclose(best.b, kept.b, atol=1e-6)

    def test_steps_that_do_worse_are_not_chosen(self):
        wanted, errors_of, *_ = problem()
        state = wanted.init(0.0)._replace(step=jnp.int32(150))  # no error is below 0
        *_, last = fit.run(wanted, 1.0, state, errors_of)
        self.assertEqual(jax.tree.map(lambda x: float(abs(x).max()), last.best), (0, 0, 0))


if __name__ == "__main__":
    absltest.main()
