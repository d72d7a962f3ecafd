import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.sampling import fitted
from flowmatch_jax.solvers import Solver, integrate

UNEVEN = np.linspace(0, 1, 6) ** 1.3


def field(t, x):
    """Nonlinear in t and in x."""
    return t**2 * jnp.cos(x) - x * jnp.sin(3 * t)


class SpecialCasesTest(parameterized.TestCase):
    @parameterized.parameters("euler", "midpoint", "ab2")
    def test_is_the_method_on_an_uneven_grid(self, name):
        x0 = jax.random.normal(jax.random.key(0), (5, 3))
        got = fitted.solve(field, x0, getattr(fitted, name)(UNEVEN))
        expected = integrate(field, x0, solver=Solver(name, grid=UNEVEN))
        np.testing.assert_allclose(got.x, expected.x, atol=1e-6)
        self.assertEqual(got.nfe, expected.nfe)

    def test_calls_are_counted_and_failure_is_told(self):
        solution = fitted.solve(lambda t, x: x / 0, jnp.ones((2, 3)), fitted.euler(UNEVEN))
        self.assertEqual((solution.nfe, solution.converged), (5, False))

    def test_what_is_above_the_diagonal_is_unused(self):
        x0 = jnp.ones((1, 2))
        plain = fitted.ab2(UNEVEN)
        other = plain._replace(b=plain.b + np.triu(np.full((5, 5), 7.0), 1))
        np.testing.assert_array_equal(
            fitted.solve(field, x0, plain).x, fitted.solve(field, x0, other).x
        )


if __name__ == "__main__":
    absltest.main()
