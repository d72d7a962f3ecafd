import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.paths import optimal_transport, variance_preserving
from flowmatch_jax.runge_kutta import ADAPTIVE
from flowmatch_jax.sampling import linear
from flowmatch_jax.solvers import Solver, integrate
from tests.cases import Float64TestCase

UNEVEN = np.linspace(0, 1, 6) ** 1.3


def field(t, x):
    """Nonlinear in t and in x."""
    return t**2 * jnp.cos(x) - x * jnp.sin(3 * t)


class OfMethodTest(Float64TestCase):
    @parameterized.product(name=linear.METHODS, path=(optimal_transport(), variance_preserving()))
    def test_is_the_method_on_an_uneven_grid(self, name, path):
        x0, grid = jax.random.normal(jax.random.key(0), (5, 3)), path.t_end * UNEVEN
        got = linear.solve(field, x0, linear.of_method(name, grid, path))
        solver = Solver(name, grid=grid, path=path)
        expected = integrate(field, x0, 0.0, path.t_end, solver)
        np.testing.assert_allclose(got.x, expected.x, rtol=1e-9)
        self.assertEqual(got.nfe, expected.nfe)
        self.assertEqual(got.nfe, 5 * linear.calls_per_step(name))

    @parameterized.parameters(*ADAPTIVE)
    def test_is_an_adaptive_method_with_given_steps(self, name):
        x0 = jax.random.normal(jax.random.key(0), (5, 3))
        got = linear.solve(field, x0, linear.of_method(name, UNEVEN))
        expected = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, x, _: field(t, x)),
            ADAPTIVE[name](),
            0.0,
            1.0,
            None,
            x0,
            stepsize_controller=diffrax.StepTo(jnp.asarray(UNEVEN)),
        )
        np.testing.assert_allclose(got.x, expected.ys[-1], rtol=1e-9)

    @parameterized.parameters(*linear.OF_VELOCITY)
    def test_derivatives_by_the_times(self, name):
        """By central differences."""

        @jax.jit
        def end(grid):
            return linear.solve(field, jnp.ones((1, 1)), linear.of_method(name, grid)).x[0, 0]

        got, h = jax.grad(end)(jnp.asarray(UNEVEN)), 1e-5
        for i in range(1, 5):
            shift = h * np.eye(6)[i]
            expected = (end(jnp.asarray(UNEVEN + shift)) - end(jnp.asarray(UNEVEN - shift))) / (
                2 * h
            )
            self.assertAlmostEqual(float(got[i]), float(expected), places=7)


class SolveTest(absltest.TestCase):
    def test_calls_are_counted_and_failure_is_told(self):
        euler = linear.of_method("euler", UNEVEN)
        solution = linear.solve(lambda t, x: x / 0, jnp.ones((2, 3)), euler)
        self.assertEqual((solution.nfe, solution.converged), (5, False))

    def test_what_is_above_the_diagonal_is_unused(self):
        x0 = jnp.ones((1, 2))
        plain = linear.of_method("ab2", UNEVEN)
        other = plain._replace(b=plain.b + np.triu(np.full((5, 5), 7.0), 1))
        np.testing.assert_array_equal(
            linear.solve(field, x0, plain).x, linear.solve(field, x0, other).x
        )


if __name__ == "__main__":
    absltest.main()
