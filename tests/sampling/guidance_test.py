import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmatch_jax import solvers
from flowmatch_jax.marginals import velocity
from flowmatch_jax.paths import optimal_transport
from flowmatch_jax.runge_kutta import FIXED
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.sampling import flows, guidance, linear, piecewise
from flowmatch_jax.sampling.guidance import Fields, Guidance
from flowmatch_jax.solvers import Solver
from tests.cases import Float64TestCase

X = np.random.RandomState(0).randn(5, 4, 4, 1)
LABEL = np.array([2, 0, 1, 2, 0], np.int32)
EULER = Solver("euler", steps=10)
RATES = jnp.array([1.0, -2.0, 0.5, 3.0])  # of each label, and of none


def field_given(label, condition=0.0):
    """rate x + t + condition; what it is given is told apart by sample."""

    def field(t, x):
        t = jnp.broadcast_to(t, x.shape[:1])[:, None, None, None]
        return RATES[label][:, None, None, None] * x + t + condition

    return field


class GuidedTest(Float64TestCase):
    @given(scale=st.floats(0, 10))
    @settings(max_examples=20, deadline=None)
    def test_formula(self, scale):
        field = guidance.guided(Fields(field_given), {"label": jnp.asarray(LABEL)}, scale)
        none = np.full(5, -1)
        without, conditional = field_given(none)(0.3, X), field_given(LABEL)(0.3, X)
        expected = without + scale * (conditional - without)
        np.testing.assert_allclose(field(0.3, X), expected, rtol=1e-9, atol=1e-9)

    def test_one_is_the_conditional_field_and_zero_that_without_label(self):
        inputs = {"label": jnp.asarray(LABEL)}
        for scale, label in ((1.0, LABEL), (0.0, np.full(5, -1))):
            v = guidance.guided(Fields(field_given), inputs, scale)(0.3, X)
            np.testing.assert_allclose(v, field_given(label)(0.3, X), rtol=1e-12)

    def test_times_and_conditions_of_each_sample(self):
        """They are the same with and without the label."""
        t, condition = np.linspace(0, 1, 5), np.random.RandomState(1).randn(*X.shape)
        inputs = {"label": jnp.asarray(LABEL), "condition": jnp.asarray(condition)}
        v = guidance.guided(Fields(field_given), inputs, 2.0)(t, X)
        rate = 2 * RATES[LABEL] - RATES[-1]
        expected = rate[:, None, None, None] * X + t[:, None, None, None] + condition
        np.testing.assert_allclose(v, expected, rtol=1e-9)

    def test_one_call_of_twice_the_batch(self):
        sizes = []

        def counting(**inputs):
            return lambda t, x: (sizes.append(len(x)), field_given(**inputs)(t, x))[1]

        guidance.guided(Fields(counting), {"label": jnp.asarray(LABEL)}, 2.0)(0.3, X)
        self.assertEqual(sizes, [10])

    def test_labels_are_followed_further(self):
        """Of two points, one a label: the exact field goes to its own; guided, it gets there
        sooner."""
        path, data = optimal_transport(0.1), jnp.array([[-1.0], [1.0]])

        def exact(label):
            weights = jnp.where(label[:, None] < 0, 1.0, jnp.eye(2)[label])

            def field(t, x):
                t = jnp.broadcast_to(t, x.shape[:1])
                each = zip(t, x, weights, strict=True)
                return jnp.stack([velocity(path, t, x[None], data, w)[0] for t, x, w in each])

            return field

        inputs, x = {"label": jnp.array([0, 1])}, jnp.array([[0.1], [-0.1]])
        plain, further = (
            exact(**inputs)(0.2, x),
            guidance.guided(Fields(exact), inputs, 3.0)(0.2, x),
        )
        self.assertGreater(float(plain[1, 0]), 0)
        self.assertGreater(float(further[1, 0]), float(plain[1, 0]))
        self.assertLess(float(further[0, 0]), float(plain[0, 0]))


class AutoguidedTest(Float64TestCase):
    """By a model of half the rate."""

    def follow(self, scale, interval=(0.0, 1.0), solver=EULER):
        fields = Fields(lambda: lambda t, x: x, lambda: lambda t, x: 0.5 * x)
        by_weak = Guidance(scale, interval, by_weak_model=True)
        by_weak.validate(labels=False, label_dropout=0.0)
        return piecewise.follow(
            guidance.stretches(fields, {}, by_weak), jnp.asarray(X), solver=solver
        )

    @parameterized.parameters((2.0, 1.5, 20), (0.0, 0.5, 10), (3.0, 2.0, 20))
    def test_formula_and_calls(self, scale, rate, calls):
        solution = self.follow(scale)
        np.testing.assert_allclose(solution.x, X * (1 + rate / 10) ** 10, rtol=1e-9)
        self.assertEqual(solution.nfe, calls)

    def test_interval(self):
        solution = self.follow(2.0, (0.3, 0.5))
        np.testing.assert_allclose(solution.x, X * 1.1**8 * 1.15**2, rtol=1e-9)
        self.assertEqual(solution.nfe, 12)

    def test_labels_reach_both_models(self):
        inputs = {"label": jnp.asarray(LABEL)}
        weak = lambda label: lambda t, x: 0.5 * field_given(label)(t, x)  # noqa: E731
        v = guidance.guided(Fields(field_given, weak), inputs, 3.0)(0.3, X)
        np.testing.assert_allclose(v, 2 * field_given(LABEL)(0.3, X), rtol=1e-9)

    def test_names_of_files(self):
        self.assertEqual(Guidance().label, "")
        self.assertEqual(Guidance(2.0).label, "_guidance2")
        self.assertEqual(Guidance(1.5, by_weak_model=True).label, "_autoguidance1.5")


class StretchesTest(Float64TestCase):
    def follow(self, scale, interval, solver=EULER):
        fields = guidance.stretches(
            Fields(field_given), {"label": jnp.asarray(LABEL)}, Guidance(scale, interval)
        )
        return piecewise.follow(fields, jnp.asarray(X), solver=solver)

    @parameterized.parameters(((0.0, 1.0), 20), ((0.2, 0.7), 15), ((0.0, 0.3), 13))
    def test_calls_of_the_network(self, interval, calls):
        self.assertEqual(self.follow(2.0, interval).nfe, calls)

    def test_without_the_label_it_is_one_call(self):
        """Scale 0: none of the field given the label is asked for."""
        solution = self.follow(0.0, (0.0, 1.0))
        self.assertEqual(solution.nfe, 10)
        none = solvers.integrate(field_given(np.full(5, -1)), jnp.asarray(X), solver=EULER)
        np.testing.assert_allclose(solution.x, none.x, rtol=1e-12)

    def test_guided_in_the_interval_alone(self):
        """Euler's ten steps, each linear in x, by hand."""
        x, solution = X, self.follow(2.0, (0.2, 0.7))
        for i in range(10):
            none, rate = np.asarray(RATES[-1]), np.asarray(RATES[LABEL])
            rate = none + (2.0 if 2 <= i < 7 else 1.0) * (rate - none)
            x = x + 0.1 * (rate[:, None, None, None] * x + i / 10)
        np.testing.assert_allclose(solution.x, x, rtol=1e-9)

    def test_scale_one_moves_no_sample(self):
        solver = Solver("rk4", steps=10)
        plain = solvers.integrate(field_given(LABEL), jnp.asarray(X), solver=solver)
        for interval in ((0.0, 1.0), (0.1, 0.6)):
            guided = self.follow(1.0, interval, solver)
            np.testing.assert_allclose(guided.x, plain.x, rtol=1e-9)


class WholeFieldTest(Float64TestCase):
    @parameterized.product(method=list(FIXED), scale=(0.0, 2.0))
    def test_up_to_the_end_it_is_the_field_of_the_stretches(self, method, scale):
        """Also in the last call of a step that ends at t = 1, in result and calls."""
        path, guided = optimal_transport(0.0), Guidance(scale, (0.0, 1.0))
        grid = np.linspace(0, 1, 4)
        found = [
            flows.sample(
                Fields(field_given),
                jnp.asarray(X),
                jax.random.key(0),
                {"label": jnp.asarray(LABEL)},
                path,
                solver,
                guided,
            )
            for solver in (Solver(method, grid=grid), linear.of_method(method, grid))
        ]
        np.testing.assert_allclose(found[1].x, found[0].x, rtol=1e-9)
        self.assertEqual(found[1].nfe, found[0].nfe)
        self.assertEqual(found[1].nfe, (2 if scale else 1) * 3 * linear.calls_per_step(method))

    def test_borders(self):
        for interval, applies in (
            ((0.25, 0.5), [False, True, False, False]),
            ((0.25, 1.0), [False, True, True, True]),
        ):
            got = Guidance(2.0, interval).applies(jnp.array([0.2, 0.25, 0.5, 1.0]))
            self.assertEqual(got.tolist(), applies)


class MistakesTest(parameterized.TestCase):
    @parameterized.parameters(
        (Guidance(-0.5), {}, "scale: got -0.5; it must be 0 or more"),
        (Guidance(2.0), {"labels": False}, "scale: got 2.0; the model is given no labels"),
        (Guidance(2.0), {"label_dropout": 0.0}, "scale: got 2.0; .*label_dropout = 0"),
        (Guidance(2.0, (0.2, 1.5)), {}, r"interval: got \(0.2, 1.5\)"),
        (Guidance(2.0, (-0.1, 1.0)), {}, "interval"),
        (Guidance(2.0, (0.6, 0.4)), {}, "interval"),
        (Guidance(1.0, (0.5,)), {}, "interval"),
    )
    def test_what_cannot_be(self, guided, fields, message):
        trained = {"labels": True, "label_dropout": 0.1} | fields
        with self.assertRaisesRegex(UserError, message):
            guided.validate(**trained)

    def test_what_can_be(self):
        Guidance().validate(labels=False, label_dropout=0.0)
        Guidance(2.0, (0.1, 0.9)).validate(labels=True, label_dropout=0.1)
        self.assertFalse(Guidance())
        self.assertTrue(Guidance(0.0))


if __name__ == "__main__":
    absltest.main()
