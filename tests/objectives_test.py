import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy.stats import kstest

from flowmatch_jax import couplings, objectives, paths, predictions
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.solvers import Solver
from tests.cases import PATHS, Float64TestCase, optimal_prediction

METHODS = [
    (name, path, predicts)
    for name in objectives.TARGETS
    for path in ("ot", "vp", "ve")
    for predicts in ("velocity", "noise", "score", "data")
    if path != "ot" or (name == "flow_matching" and predicts in ("velocity", "data"))
]


class FlowMatchingTest(parameterized.TestCase):
    def test_loss_of_a_zero_network_is_the_mean_squared_target(self):
        """OT on data N(0, s^2): E (x_1 - (1 - sigma_min) x_0)^2 = s^2 + (1 - sigma_min)^2."""
        sigma_min, s = 0.1, 0.5
        objective = objectives.matching("flow_matching", paths.optimal_transport(sigma_min))
        x1 = s * jax.random.normal(jax.random.key(0), (20_000, 2))
        zero = lambda params, t, x, **_: jnp.zeros_like(x)  # noqa: E731
        loss, metrics = objective(zero, None, {"x": x1}, jax.random.key(1))
        expected = s**2 + (1 - sigma_min) ** 2
        # A squared Gaussian's standard deviation is sqrt(2) times its mean.
        standard_error = np.sqrt(2) * expected / np.sqrt(x1.size)
        self.assertLess(abs(float(loss) - expected), 4 * standard_error)
        self.assertEqual(loss, metrics["loss"])

    def test_pairs_whose_paths_do_not_cross(self):
        """For x_1 = 3 x_0, (x_0, x_1) is on the line x_t = c_t x_0, c_t = 1 + (2 + sigma_min) t."""
        path, slope = paths.optimal_transport(0.1), 2.1
        objective = objectives.matching("flow_matching", path, coupling=couplings.of_the_batch)
        apply = lambda rate, t, x, **_: rate * x / (1 + slope * t)[:, None]  # noqa: E731
        x0 = jax.random.normal(jax.random.key(0), (500, 2))
        batch, key = {"x": 3 * x0, "x0": x0}, jax.random.key(1)
        self.assertLess(float(objective(apply, slope, batch, key)[0]), 1e-10)
        self.assertAlmostEqual(float(objective(apply, slope + 1, batch, key)[0]), 1, delta=0.2)

    @parameterized.parameters(*METHODS)
    def test_the_exact_prediction_minimises_it(self, name, path_name, predicts):
        """For (1 + a) times it, plus b, the loss has its minimum at a = b = 0 (Eqs. 5, 8)."""
        path, m, s = PATHS[path_name], 0.4, 0.7
        exact = optimal_prediction(path, m, s, predicts)
        # Targets grow without bound towards t_end; the data's side is enough here.
        until_0_9 = lambda key, n, path: jax.random.uniform(key, (n,), maxval=0.9)  # noqa: E731
        objective = objectives.matching(name, path, predicts, time=until_0_9)
        to_unit = lambda t, x: predictions.network_input(path, t, jnp.ones_like(x))  # noqa: E731

        def apply(params, t, x, **_):
            output = exact(t, x / to_unit(t, x))
            return (1 + params[0]) * output + params[1] * jnp.abs(output).mean()

        def gradient(key, params):
            data_key, key = jax.random.split(key)
            x1 = m + s * jax.random.normal(data_key, (500, 1))
            return jax.grad(lambda p: objective(apply, p, {"x": x1}, key)[0])(params)

        keys = jax.random.split(jax.random.key(0), 60)
        gradients_at = jax.jit(lambda params: jax.vmap(gradient, (0, None))(keys, params))
        gradients = gradients_at(jnp.zeros(2))
        standard_error = gradients.std(axis=0) / np.sqrt(len(gradients))
        self.assertTrue(bool((jnp.abs(gradients.mean(axis=0)) < 4 * standard_error).all()))
        # A minimum, and not just a flat place: elsewhere the gradient points back.
        self.assertGreater(float(gradients_at(jnp.full(2, 0.5)).mean(axis=0).sum()), 0)

    @parameterized.parameters(
        ("flow_matching", "ot", 0.5, 2.0),
        ("flow_matching", "ot", 0.99, 20.0),
        ("flow_matching", "ot", 1.0, 20.0),
        ("flow_matching", "vp", 1 - 1e-5, 20.0),
        ("ddpm", "ot", 0.75, 3.0),
        ("ddpm", "ot", 1.0, 20.0),
        ("score_matching", "ot", 0.75, 3.0),
        ("score_matching", "vp", 1 - 1e-5, 20.0),
        ("scoreflow", "vp", 1 - 1e-5, 20.0),
    )
    def test_an_error_of_predicted_data_weighs_400_at_most(self, name, path, t, share):
        """On OT its share in the velocity is 1 / (1 - t), and in the noise t / (1 - t)."""
        at_t = lambda key, n, path: jnp.full(n, t)  # noqa: E731
        objective = objectives.matching(name, PATHS[path], "data", time=at_t)
        x1 = jax.random.normal(jax.random.key(0), (100, 2))
        off = lambda params, t, x, **_: x1 + 0.1  # noqa: E731
        loss, _ = objective(off, None, {"x": x1}, jax.random.key(1))
        np.testing.assert_allclose(loss, (0.1 * share) ** 2, rtol=1e-3)

    def test_predicted_data_on_ve_weigh_alike_at_all_times(self):
        for t in (0.0, 0.5, 1.0):
            at_t = lambda key, n, path: jnp.full(n, t)  # noqa: B023, E731
            objective = objectives.matching("flow_matching", PATHS["ve"], "data", time=at_t)
            x1 = jnp.zeros((10, 2))
            off = lambda params, t, x, **_: jnp.full_like(x, 0.1)  # noqa: E731
            loss, _ = objective(off, None, {"x": x1}, jax.random.key(1))
            np.testing.assert_allclose(loss, (0.1 * np.log(5000)) ** 2, rtol=1e-4)

    def test_what_the_network_gets(self):
        path, seen = paths.optimal_transport(), {}

        def apply(params, t, x, **inputs):
            seen.update(t=t, x=x, **inputs)
            return jnp.zeros_like(x)

        batch = {"x": jnp.ones((6, 2, 2, 1)), "label": jnp.arange(6)}
        objectives.matching("flow_matching", path)(apply, None, batch, jax.random.key(0))
        self.assertEqual((seen["t"].shape, seen["x"].shape), ((6,), (6, 2, 2, 1)))
        np.testing.assert_array_equal(seen["label"], batch["label"])
        self.assertIsNone(seen["condition"])
        self.assertIsNotNone(seen["key"])  # training mode

    def test_noise_is_the_coupling_s(self):
        """With x_0 = -x_1 the target of OT is (2 - sigma_min) x_1: the coupling's noise is used."""
        path = paths.optimal_transport(0.0)
        objective = objectives.matching("flow_matching", path, coupling=lambda key, x1: -x1)
        x1 = jax.random.normal(jax.random.key(0), (8, 3))
        perfect = lambda params, t, x, **_: 2 * x1  # noqa: E731
        loss, _ = objective(perfect, None, {"x": x1}, jax.random.key(1))
        self.assertLess(float(loss), 1e-10)

    def test_a_pure_function_of_its_key(self):
        objective = objectives.matching("flow_matching", paths.optimal_transport())
        zero = lambda params, t, x, **_: jnp.zeros_like(x)  # noqa: E731
        batch = {"x": jnp.ones((8, 3))}
        losses = [objective(zero, None, batch, jax.random.key(seed))[0] for seed in (0, 0, 1)]
        self.assertEqual(losses[0], losses[1])
        self.assertNotEqual(losses[0], losses[2])


class DiffusionTest(parameterized.TestCase):
    """Losses of a network that predicts zero noise, in closed form."""

    def loss(self, name, t):
        path = PATHS["vp"]
        at_t = lambda key, n, path: jnp.full(n, t)  # noqa: E731
        zero = lambda params, t, x, **_: jnp.zeros_like(x)  # noqa: E731
        x1 = jnp.zeros((20_000, 2))
        objective = objectives.matching(name, path, "noise", time=at_t)
        return float(objective(zero, None, {"x": x1}, jax.random.key(0))[0])

    def test_noise_and_score_matching_weigh_all_times_alike(self):
        """E ||x_0||^2 = 1 a dimension."""
        for name, t in itertools.product(("ddpm", "score_matching"), (0.1, 0.9)):
            self.assertAlmostEqual(self.loss(name, t), 1, delta=4 * np.sqrt(2 / 40_000))

    def test_scoreflow_weighs_by_beta_over_the_variance(self):
        for t in (0.1, 0.9):
            beta = 0.1 + (1 - t) * 19.9
            alpha = np.exp(-0.5 * ((1 - t) * 0.1 + (1 - t) ** 2 * 19.9 / 2))
            expected = beta / (1 - alpha**2)
            self.assertAlmostEqual(self.loss("scoreflow", t) / expected, 1, delta=0.03)

    @parameterized.parameters("vp", "ve")
    def test_scoreflow_by_importance_has_the_expectation_of_uniform_times(self, name):
        """And a hundredth of the variance, for an error that does not depend on t."""
        path = PATHS[name]
        apply = lambda params, t, x, **_: 0.3 * x  # noqa: E731
        losses = {}
        for objective in (
            objectives.matching("scoreflow", path),
            objectives.scoreflow_by_importance(path),
        ):
            one = lambda key, x1, f=objective: f(apply, None, {"x": x1}, key)[0]  # noqa: E731
            x1 = jax.random.normal(jax.random.key(0), (200_000, 1, 4))
            keys = jax.random.split(jax.random.key(1), len(x1))
            losses[objective] = np.asarray(jax.jit(jax.vmap(one))(keys, x1), np.float64)
        (uniform, importance) = losses.values()
        error = np.hypot(*(x.std() / np.sqrt(len(x)) for x in (uniform, importance)))
        self.assertLess(abs(uniform.mean() - importance.mean()), 4 * error)
        if name == "vp":  # on VE the two are the same
            self.assertLess(importance.var(), uniform.var() / 100)

    def test_scoreflow_by_importance_stratified(self):
        """The log signal-to-noise ratios of a batch are spread evenly over those of the path."""
        path, seen = PATHS["vp"], []

        def apply(params, t, x, **_):
            seen.append(t)
            return x

        objective = objectives.scoreflow_by_importance(path, stratified=True)
        objective(apply, None, {"x": jnp.ones((8, 3))}, jax.random.key(0))
        ratios = np.sort(paths.log_snr(path, seen[0]))
        first, last = (float(paths.log_snr(path, t)) for t in (0.0, path.t_end))
        np.testing.assert_allclose(np.diff(ratios), (last - first) / 8, rtol=1e-2)

    def test_noise_output_makes_score_matching_ddpm_bit_for_bit(self):
        """Up to rounding, that is: sigma (S + x_0 / sigma) with S = -eps / sigma."""
        batch, key = {"x": jnp.ones((50, 3))}, jax.random.key(0)
        apply = lambda params, t, x, **_: 0.3 * x  # noqa: E731
        ddpm, score = (
            objectives.matching(name, PATHS["vp"], "noise")(apply, None, batch, key)[0]
            for name in ("ddpm", "score_matching")
        )
        np.testing.assert_allclose(ddpm, score, rtol=1e-5)

    @parameterized.parameters(
        partial(objectives.matching, "scoreflow"), objectives.scoreflow_by_importance
    )
    def test_scoreflow_needs_a_diffusion(self, objective):
        with self.assertRaisesRegex(UserError, "no diffusion"):
            objective(PATHS["ot"])


class NoiseLevelTest(absltest.TestCase):
    def test_what_the_network_gets(self):
        """A level for each sample, in the place of t, of a point that has it."""
        seen = {}

        def apply(params, a, x, **inputs):
            seen.update(a=a, x=x, **inputs)
            return jnp.zeros_like(x)

        levels = jnp.array([0.2, 0.5, 1.0])
        batch = {"x": jnp.full((5000, 2, 2, 1), 3.0), "condition": jnp.ones((5000, 2, 2, 1))}
        loss, _ = objectives.sr3(levels)(apply, None, batch, jax.random.key(0))
        self.assertLess(abs(float(loss) - 1), 4 * np.sqrt(2 / 20_000))  # E x_0^2
        self.assertIsNotNone(seen["key"])
        np.testing.assert_array_equal(seen["condition"], batch["condition"])
        a = np.asarray(seen["a"])
        self.assertBetween(a.min(), 0.2, 0.21)
        self.assertAlmostEqual(np.mean(a < 0.5), 0.5, delta=4 * 0.5 / np.sqrt(5000))
        # x_a = 3 a + sqrt(1 - a^2) x_0
        x0 = (np.asarray(seen["x"])[:, 0, 0, 0] - 3 * a) / np.sqrt(1 - a**2)
        self.assertGreater(kstest(x0, "norm").pvalue, 1e-3)


class RegressionTest(absltest.TestCase):
    def test_squared_error_of_what_the_condition_tells(self):
        def apply(params, t, x, condition=None, **_):
            return condition + params + t[:, None] + x

        x = jnp.arange(6.0).reshape(3, 2)
        loss, _ = objectives.regression(
            apply, 0.5, {"x": x, "condition": x[::-1]}, jax.random.key(0)
        )
        self.assertAlmostEqual(float(loss), float(jnp.mean((x[::-1] + 0.5 - x) ** 2)), places=5)


class MaximumLikelihoodTest(Float64TestCase):
    """The flow is solved in each step: its gradient against finite differences, both adjoints."""

    @parameterized.parameters(("checkpointed", "exact"), ("backsolve", "hutchinson"))
    def test_gradient(self, adjoint, divergence):
        solver = Solver(rtol=1e-8, atol=1e-8, adjoint=adjoint, max_steps=128)
        objective = objectives.maximum_likelihood(PATHS["ot"], solver=solver, divergence=divergence)
        apply = lambda params, t, x, **_: jnp.tanh(x @ params["w"] + t[:, None] + params["b"])  # noqa: E731
        rng = np.random.RandomState(0)
        params = {"w": jnp.asarray(rng.randn(2, 2)), "b": jnp.asarray(rng.randn(2))}
        batch, key = {"x": jnp.asarray(rng.randn(5, 2))}, jax.random.key(0)
        solve = jax.jit(jax.value_and_grad(lambda params: objective(apply, params, batch, key)[0]))
        _, gradient = solve(params)
        for name, value in params.items():
            direction = jnp.asarray(rng.randn(*value.shape))
            up, down = (solve(params | {name: value + h * direction})[0] for h in (1e-5, -1e-5))
            np.testing.assert_allclose(
                (gradient[name] * direction).sum(), (up - down) / 2e-5, rtol=1e-5
            )

    def test_loss_of_a_scaling(self):
        """v = a x carries N(0, I) to N(0, e^2a I): -log p a dimension in closed form."""
        objective = objectives.maximum_likelihood(
            PATHS["ot"], solver=Solver(rtol=1e-8), divergence="exact"
        )
        apply = lambda a, t, x, **_: a * x  # noqa: E731
        x, a = jax.random.normal(jax.random.key(0), (50, 3)), 0.3
        loss, metrics = objective(apply, a, {"x": x}, jax.random.key(1))
        expected = 0.5 * np.log(2 * np.pi) + a + 0.5 * np.mean((x * np.exp(-a)) ** 2)
        self.assertAlmostEqual(float(loss), expected, places=6)
        self.assertEqual(metrics["converged"], 1)
        self.assertGreater(metrics["nfe"], 8)

    def test_training_finds_the_data_s_spread(self):
        """The scaling that fits data N(0, s^2) is a = log s."""
        objective = objectives.maximum_likelihood(
            PATHS["ot"], solver=Solver("ab3", steps=30), divergence="exact"
        )
        apply = lambda a, t, x, **_: a * x  # noqa: E731
        x = 0.5 * jax.random.normal(jax.random.key(0), (2000, 1))
        slope = jax.jit(jax.grad(lambda a: objective(apply, a, {"x": x}, jax.random.key(1))[0]))
        a = 0.0
        for _ in range(40):
            a -= 0.3 * slope(a)
        self.assertAlmostEqual(float(a), float(jnp.log(jnp.sqrt(jnp.mean(x**2)))), places=4)


if __name__ == "__main__":
    absltest.main()
