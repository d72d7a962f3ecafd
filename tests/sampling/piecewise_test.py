import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax import solvers
from flowmatch_jax.sampling import piecewise
from flowmatch_jax.sampling.piecewise import Stretch
from flowmatch_jax.solvers import Solver
from tests.cases import Float64TestCase

START = np.array([[1.0, 0.5], [-0.3, 2.0]])
FIXED = (Solver("euler", steps=10), Solver("rk4", grid=tuple(np.linspace(0, 1, 11) ** 2)))
ADAPTIVE = (Solver("dopri5", rtol=1e-3, atol=1e-3),)
RATES = (-1.0, 0.5, 2.0)


class Network:
    """A field rate x that counts its own calls at run time, and says when they were."""

    def __init__(self, rate, calls=1):
        self.rate, self.calls, self.times = rate, calls, []

    def __call__(self, t, x):
        def count(t, x):
            self.times.append(float(t))
            return x

        x = jax.pure_callback(count, jax.ShapeDtypeStruct(x.shape, x.dtype), t, x)
        return self.rate * x


def stretches(begin, end, fields):
    return [
        Stretch(until, field, field.calls)
        for until, field in zip((begin, end, 1.0), fields, strict=True)
    ]


class FollowTest(Float64TestCase):
    @parameterized.product(
        solver=FIXED + ADAPTIVE,
        border=((0.25, 0.8), (0.0, 0.6)),
    )
    def test_calls_are_those_of_the_network(self, solver, border):
        fields = [Network(rate, calls) for rate, calls in zip(RATES, (1, 2, 1), strict=True)]
        solution = piecewise.follow(stretches(*border, fields), START, solver=solver)
        jax.block_until_ready(solution)
        expected = sum(field.calls * len(field.times) for field in fields)
        self.assertEqual(int(solution.nfe), expected)
        self.assertTrue(solution.converged)
        if not solver.is_adaptive:
            self.assertEqual(int(solution.steps), 10)

    def test_each_field_in_its_time(self):
        """Rates a, b, c over times s, t, u grow x by exp(a s + b t + c u)."""
        fields = [
            Stretch(until, lambda t, x, rate=rate: rate * x)
            for until, rate in zip((0.2, 0.7, 1.0), RATES, strict=True)
        ]
        solution = piecewise.follow(fields, START, solver=Solver(rtol=1e-9, atol=1e-9))
        growth = np.exp(-1.0 * 0.2 + 0.5 * 0.5 + 2.0 * 0.3)
        np.testing.assert_allclose(solution.x, growth * START, rtol=1e-7)

    def test_fewer_steps_than_across_the_jump(self):
        jump = lambda t, x: jnp.where(t < 0.437, -1.0, 40.0) * x  # noqa: E731
        across = solvers.integrate(jump, START)
        fields = [Stretch(0.437, lambda t, x: -x), Stretch(1.0, lambda t, x: 40.0 * x)]
        solution = piecewise.follow(fields, START)
        self.assertLess(solution.nfe, across.nfe)
        self.assertGreater(across.rejected, solution.rejected)

    def test_a_step_belongs_to_where_it_begins(self):
        """Euler at 0, 0.1, ..: from 0.25 to 0.6 are the steps at 0.3, 0.4, 0.5."""
        fields = [Network(rate) for rate in RATES]
        solver = Solver("euler", steps=10)
        solution = piecewise.follow(stretches(0.25, 0.6, fields), START, solver=solver)
        growth = 0.9**3 * 1.05**3 * 1.2**4
        np.testing.assert_allclose(solution.x, growth * START, rtol=1e-12)
        np.testing.assert_allclose(sorted(fields[1].times), [0.3, 0.4, 0.5])

    def test_one_stretch_is_a_plain_solve(self):
        field = Network(0.7)
        how = {"t1": 0.9, "solver": Solver("heun", steps=7)}
        alone = piecewise.follow([Stretch(1.0, field)], START, **how)
        plain = solvers.integrate(field, START, **how)
        np.testing.assert_allclose(alone.x, plain.x, rtol=1e-12)
        self.assertEqual(alone.nfe, plain.nfe)

    @parameterized.parameters((np.linspace(0, 1, 11),), ([0.9],))
    def test_states_on_the_way(self, times):
        """Each once, those at the borders too; of some stretches none."""
        fields = [Network(1.0) for _ in RATES]
        solver = Solver("rk4", steps=20)
        solution = piecewise.follow(
            stretches(0.3, 0.75, fields), START, solver=solver, save_at=times
        )
        np.testing.assert_allclose(
            solution.trajectory, np.exp(times)[:, None, None] * START, rtol=1e-4
        )

    def test_one_that_is_not_finite_ends_it(self):
        fields = [Stretch(0.5, lambda t, x: jnp.nan * x), Stretch(1.0, lambda t, x: x)]
        self.assertFalse(piecewise.follow(fields, START).converged)


if __name__ == "__main__":
    absltest.main()
