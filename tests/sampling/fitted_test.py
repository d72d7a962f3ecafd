import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.sampling import fitted
from flowmatch_jax.solvers import Solver, integrate

UNEVEN = np.linspace(0, 1, 6) ** 1.3


def field(t, x):
    """Nonlinear in t and in x."""
    return t**2 * jnp.cos(x) - x * jnp.sin(3 * t)


class SpecialCasesTest(parameterized.TestCase):
    @parameterized.parameters("euler", "midpoint", "ab2", "ab3", "abm2")
    def test_is_the_method_on_an_uneven_grid(self, name):
        x0 = jax.random.normal(jax.random.key(0), (5, 3))
        own = {"euler": fitted.euler, "midpoint": fitted.midpoint}
        make = own.get(name, functools.partial(fitted.adams, name))
        got = fitted.solve(field, x0, make(UNEVEN))
        expected = integrate(field, x0, solver=Solver(name, grid=UNEVEN))
        np.testing.assert_allclose(got.x, expected.x, atol=1e-6)
        self.assertEqual(got.nfe, expected.nfe)

    def test_calls_are_counted_and_failure_is_told(self):
        solution = fitted.solve(lambda t, x: x / 0, jnp.ones((2, 3)), fitted.euler(UNEVEN))
        self.assertEqual((solution.nfe, solution.converged), (5, False))

    def test_what_is_above_the_diagonal_is_unused(self):
        x0 = jnp.ones((1, 2))
        plain = fitted.adams("ab2", UNEVEN)
        other = plain._replace(b=plain.b + np.triu(np.full((5, 5), 7.0), 1))
        np.testing.assert_array_equal(
            fitted.solve(field, x0, plain).x, fitted.solve(field, x0, other).x
        )


class FileTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.path = Path(self.create_tempdir().full_path) / "solvers" / "5_calls.json"

    def test_what_is_written_is_read(self):
        wanted = fitted.adams("ab2", UNEVEN)
        fitted.write(self.path, wanted, {"step": 7})
        got, facts = fitted.read(self.path)
        jax.tree.map(np.testing.assert_array_equal, got, wanted)
        self.assertEqual(facts, {"step": 7})

    @parameterized.parameters(
        "",
        "[]",
        "{}",
        '{"calls": 1, "t": [0.0], "a": [1.0], "b": [["x"]]}',
        '{"calls": 2, "t": [0.0], "a": [1.0], "b": [[1.0]]}',
        '{"calls": 1, "t": [0.0], "a": [1.0], "b": [[1.0, 2.0]]}',
    )
    def test_what_is_no_solver_is_told(self, text):
        self.path.parent.mkdir()
        self.path.write_text(text)
        with self.assertRaisesRegex(UserError, "file.*5_calls.json.*no fitted solver"):
            fitted.read(self.path)

    def test_missing(self):
        with self.assertRaisesRegex(UserError, "--mode=fit_solver"):
            fitted.read(self.path)


if __name__ == "__main__":
    absltest.main()
