from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy.linalg import expm

from flowmatch_jax import solvers
from flowmatch_jax.multistep import MULTISTEP
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.solvers import Solver
from flowmatch_jax.times import edm_grid
from tests.cases import PATHS, Float64TestCase, coefficients, gaussian_velocity

A = np.array([[-1.0, 2.0], [-1.5, 0.3]])  # not symmetric
START = np.array([[1.0, 0.5], [-0.3, 2.0], [0.1, -1.0]])
ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "ab2": 2, "ab3": 3}
CALLS_A_STEP = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "ab2": 1, "ab3": 1, "abm2": 1}
FIXED = sorted(
    CALLS_A_STEP
)  # of any field; tests/multistep_test.py has dpmpp2m, which takes a path
METHODS = FIXED + sorted(solvers.ADAPTIVE)


def linear(t, x):
    return x @ A.T


def program(field, solver):
    """The solve as a function (x, t0, t1), compiled once for all ends if the method allows it."""

    def solve(x, t0, t1):
        return solvers.integrate(field, x, t0, t1, solver)

    return solve if solver.method in MULTISTEP else jax.jit(solve)


class CallCounter:
    """A field that counts its own calls at run time."""

    def __init__(self, field):
        self.calls, self.times = 0, []
        self._field = field

    def __call__(self, t, x):
        def count(t, x):
            self.calls += 1
            self.times.append(float(t))
            return x

        x = jax.pure_callback(count, jax.ShapeDtypeStruct(x.shape, x.dtype), t, x)
        return self._field(t, x)


class AccuracyTest(Float64TestCase):
    @parameterized.parameters(*ORDERS)
    def test_order_of_convergence(self, method):
        exact = START @ expm(A).T
        errors = [
            np.abs(solvers.integrate(linear, START, solver=Solver(method, steps=n)).x - exact).max()
            for n in (16, 32)
        ]
        self.assertAlmostEqual(np.log2(errors[0] / errors[1]), ORDERS[method], delta=0.15)

    @parameterized.parameters(*sorted(solvers.ADAPTIVE))
    def test_adaptive_methods_reach_their_tolerance(self, method):
        exact = START @ expm(A).T
        for tolerance in (1e-4, 1e-8):
            solver = Solver(method, rtol=tolerance, atol=tolerance)
            solution = solvers.integrate(linear, START, solver=solver)
            self.assertLess(np.abs(solution.x - exact).max(), 20 * tolerance)
            self.assertTrue(solution.converged)

    @parameterized.parameters(*METHODS)
    def test_backwards_in_time_undoes_forwards(self, method):
        steps = 4000 if method == "euler" else 400
        options = {"steps": steps} if method in FIXED else {"rtol": 1e-9, "atol": 1e-9}
        solve = program(linear, Solver(method, **options))
        there = solve(START, 0.2, 0.9)
        back = solve(there.x, 0.9, 0.2)
        np.testing.assert_allclose(back.x, START, atol=1e-3 if method == "euler" else 1e-5)

    @parameterized.parameters("ot", "vp", "ve")
    def test_gaussian_data_samples(self, name):
        """x_t = alpha_t m + sqrt(V_t / V_0) (x_0 - alpha_0 m) for data N(m, s^2 I)."""
        path, m, s = PATHS[name], 0.7, 0.4
        x = path.source_std * START
        solution = solvers.integrate(
            gaussian_velocity(path, m, s), x, 0.0, path.t_end, Solver(rtol=1e-9, atol=1e-9)
        )
        (alpha0, sigma0), (alpha1, sigma1) = (coefficients(path, t) for t in (0.0, path.t_end))
        spread = np.sqrt(((alpha1 * s) ** 2 + sigma1**2) / ((alpha0 * s) ** 2 + sigma0**2))
        np.testing.assert_allclose(solution.x, alpha1 * m + spread * (x - alpha0 * m), rtol=1e-6)

    def test_trajectory_at_no_further_calls(self):
        times = [0.0, 0.35, 1.0]
        for solver in (
            Solver(rtol=1e-8, atol=1e-8),
            Solver("rk4", steps=40),
            Solver("ab3", steps=400),
        ):
            plain = solvers.integrate(linear, START, solver=solver)
            solution = solvers.integrate(linear, START, solver=solver, save_at=times)
            exact = np.stack([START @ expm(t * A).T for t in times])
            np.testing.assert_allclose(solution.trajectory, exact, atol=1e-5)
            self.assertEqual(solution.nfe, plain.nfe)
            # By another program, which may round otherwise.
            np.testing.assert_allclose(solution.x, plain.x, rtol=1e-14, atol=1e-15)

    def test_states_may_be_pytrees(self):
        field = lambda t, s: {"a": -s["a"], "b": s["a"]}  # noqa: E731
        for solver in (Solver(rtol=1e-8, atol=1e-8), Solver("ab3", steps=400)):
            solution = solvers.integrate(field, {"a": START, "b": START}, solver=solver)
            np.testing.assert_allclose(solution.x["a"], START * np.exp(-1), rtol=1e-6)
            np.testing.assert_allclose(solution.x["b"], START * (2 - np.exp(-1)), rtol=1e-6)


class CostTest(parameterized.TestCase):
    @parameterized.parameters(*METHODS)
    def test_nfe_is_the_number_of_calls(self, method):
        def rough(t, x):  # a jump, where adaptive methods reject steps
            return jnp.where(t < 0.5, -1.0, 5.0) * x

        rejected, field = 0, CallCounter(rough)
        solve = program(field, Solver(method, steps=7 if method in FIXED else None))
        for ends in ((0.0, 1.0), (1.0, 0.0)):
            field.calls = 0
            solution = jax.block_until_ready(solve(START.astype(np.float32), *ends))
            self.assertEqual(solution.nfe, field.calls)
            self.assertEqual(solution.x.dtype, jnp.float32)
            rejected += solution.rejected
        self.assertEqual(rejected > 0, method in solvers.ADAPTIVE)

    @parameterized.parameters(*FIXED)
    def test_steps_are_steps(self, method):
        for steps in (1, 49):
            field = CallCounter(linear)
            solver = Solver(method, steps=steps)
            solution = solvers.integrate(field, START.astype(np.float32), solver=solver)
            self.assertEqual(solution.steps, steps)
            self.assertEqual(solution.nfe, CALLS_A_STEP[method] * steps)
            self.assertEqual(field.calls, CALLS_A_STEP[method] * steps)

    def test_a_grid_is_where_the_steps_end(self):
        grid = [0.0, 0.1, 0.5, 0.9]
        field = CallCounter(linear)
        solvers.integrate(field, START.astype(np.float32), 0.0, 0.9, Solver("euler", grid=grid))
        np.testing.assert_allclose(field.times, grid[:-1], rtol=1e-6)

    def test_heun_on_the_edm_grid(self):
        """On x' = A x Heun multiplies by I + h A + (h A)^2 / 2 at each step h; two calls a step."""
        grid = edm_grid(50, PATHS["ot"])
        field = CallCounter(linear)
        solver = Solver("heun", grid=grid)
        solution = solvers.integrate(field, START.astype(np.float32), solver=solver)
        expected = START
        for h in np.diff(grid):
            expected = expected @ (np.eye(2) + h * A + (h * A) @ (h * A) / 2).T
        np.testing.assert_allclose(solution.x, expected, rtol=1e-4)
        np.testing.assert_allclose(solution.x, START @ expm(A).T, atol=0.02)
        self.assertEqual((field.calls, int(solution.nfe)), (100, 100))

    @parameterized.parameters(jnp.bfloat16, jnp.float16)
    def test_low_precision_ends(self, dtype):
        """In bfloat16 itself no step keeps to 1e-5, and t + h is t: the solve would never end."""
        x = jnp.array([[0.5, -1.0]], dtype)
        solve = program(lambda t, x: -x * t, Solver())
        for t1 in (1.0, -1.0):
            solution = solve(x, 0.0, t1)
            self.assertTrue(solution.converged)
            self.assertEqual(solution.x.dtype, dtype)
            expected = np.asarray(x, np.float64) * np.exp(-0.5)
            np.testing.assert_allclose(np.asarray(solution.x, np.float64), expected, rtol=0.02)

    def test_an_end_that_is_no_time_is_not_reached(self):
        solve = program(lambda t, x: x, Solver())
        for t1 in (np.nan, np.inf):
            self.assertFalse(solve(jnp.ones((1, 2)), 0.0, t1).converged)

    @parameterized.parameters(([0.5, 0.2],), ([-0.1, 0.5],), ([0.5, 1.2],), ([],), ([[0.5]],))
    def test_times_to_keep_that_are_not_in_order_on_the_way(self, save_at):
        with self.assertRaisesRegex(UserError, "save_at: got"):
            solvers.integrate(lambda t, x: x, jnp.ones((1, 2)), save_at=save_at)

    def test_first_step_saves_calls_over_a_fixed_guess(self):
        """Hairer's first step of x' = -x is near the largest that passes: none is rejected."""
        solution = solvers.integrate(lambda t, x: -x, START.astype(np.float32))
        self.assertEqual(solution.rejected, 0)
        self.assertLess(solution.steps, 8)


class TroubleTest(parameterized.TestCase):
    @parameterized.parameters(*sorted(solvers.ADAPTIVE))
    def test_a_field_that_is_not_finite_ends_the_solve(self, method):
        def broken(t, x):
            return jnp.where(t > 0.5, jnp.nan, 1.0) * x

        solution = solvers.integrate(broken, START.astype(np.float32), solver=Solver(method))
        self.assertFalse(solution.converged)

    @parameterized.parameters("dopri5", "bosh3", "euler", "rk4", "ab2")
    def test_not_finite_from_the_start(self, method):
        solver = Solver(method, steps=4 if method in FIXED else None)
        solve = jax.jit(lambda a, x: solvers.integrate(lambda t, x: a * x, x, solver=solver))
        start = START.astype(np.float32)
        for factor, x in ((np.nan, start), (np.inf, start), (1.0, start * np.nan)):
            self.assertFalse(solve(factor, x).converged)

    @parameterized.parameters(
        ({"method": "euler", "grid": [0.0, 0.7, 0.5, 1.0]}, "grid"),
        ({"method": "euler", "grid": [0.2, 0.5, 1.0]}, "grid"),
        ({"method": "euler", "grid": [0.0]}, "grid"),
        ({"method": "dopri5", "steps": 10}, "steps"),
        ({"method": "tsit5", "grid": [0.0, 1.0]}, "grid"),
        ({"method": "euler"}, "steps"),
        ({"method": "euler", "steps": 0}, "steps"),
        ({"method": "rk4", "steps": 2, "grid": [0.0, 1.0]}, "steps"),
        ({"method": "ab2"}, "steps"),
        ({"method": "ab2", "steps": 2, "adjoint": "backsolve"}, "adjoint"),
        ({"method": "dpmpp2m", "steps": 2}, "path"),
        ({"method": "rk45"}, "method"),
        ({"method": "dopri5", "rtol": 0.0}, "rtol"),
        ({"method": "dopri5", "atol": -1.0}, "atol"),
    )
    def test_options_that_do_not_go_together(self, options, field):
        with self.assertRaises(UserError) as caught:
            solvers.integrate(linear, START.astype(np.float32), solver=Solver(**options))
        self.assertEqual(caught.exception.field, field)


class AdjointTest(Float64TestCase):
    """Derivatives of where the flow arrives, by the field's parameter and by the start."""

    @parameterized.product(
        adjoint=("checkpointed", "backsolve"),
        solve=(
            {"method": "dopri5", "rtol": 1e-8, "atol": 1e-8},
            {"method": "rk4", "grid": tuple(np.linspace(0, 1, 41))},
            {"method": "ab3", "grid": tuple(np.linspace(0, 1, 401))},
        ),
    )
    def test_linear_field(self, adjoint, solve):
        """x1 = exp(a) x: d/da = x1 and d/dx = exp(a); the other way round with -a."""
        if (adjoint, solve["method"]) == ("backsolve", "ab3"):
            self.skipTest("no multistep method takes backsolve: Solver.validate refuses it")
        x, grid = jnp.array([[2.0, 3.0]]), solve.get("grid")
        solver = Solver(adjoint=adjoint, max_steps=64, **solve)

        def end(a, x, t0, t1, solver):
            return solvers.integrate(lambda t, y: a * y, x, t0, t1, solver).x.sum()

        slopes = jax.grad(end, (0, 1))
        either_way = jax.jit(partial(slopes, solver=solver))  # one program for both directions
        for sign, t0, t1 in ((1, 0.0, 1.0), (-1, 1.0, 0.0)):
            if grid is None:
                by_a, by_x = either_way(0.7, x, t0, t1)
            else:
                one_way = partial(slopes, t0=t0, t1=t1, solver=replace(solver, grid=grid[::sign]))
                by_a, by_x = jax.jit(one_way)(0.7, x)
            np.testing.assert_allclose(by_a, sign * 5 * np.exp(sign * 0.7), rtol=1e-6)
            np.testing.assert_allclose(by_x, np.full((1, 2), np.exp(sign * 0.7)), rtol=1e-6)

    @parameterized.parameters("dopri5", "dopri8")
    def test_at_rest(self, method):
        """From x = 0, where the norms that choose the first step have no derivative.

        With a method that takes its first velocity from there, and with one that does not.

        No error is seen there, so the steps are long: the last is nearly the whole way.
        """

        @jax.jit
        def end(x):
            solver = Solver(method, max_steps=64)
            return solvers.integrate(lambda t, y: 0.7 * y, x, solver=solver).x.sum()

        np.testing.assert_allclose(jax.grad(end)(jnp.zeros((1, 2))), np.exp([[0.7] * 2]), rtol=1e-2)

    def test_a_solve_gives_up_after_max_steps(self):
        stiff = lambda t, x: -1000 * (x - jnp.cos(100 * t))  # noqa: E731
        solution = solvers.integrate(stiff, jnp.ones((1, 1)), solver=Solver(max_steps=5))
        self.assertEqual(int(solution.steps), 5)
        self.assertFalse(bool(solution.converged))

    def test_what_it_refuses(self):
        x = jnp.ones((1, 2))
        with self.assertRaisesRegex(UserError, "adjoint: got 'direct'; .*backsolve, checkpointed"):
            solvers.integrate(lambda t, x: x, x, solver=Solver(adjoint="direct"))
        with self.assertRaisesRegex(UserError, "save_at"):
            backsolve = Solver(adjoint="backsolve")
            solvers.integrate(lambda t, x: x, x, solver=backsolve, save_at=[0.5])


if __name__ == "__main__":
    absltest.main()
