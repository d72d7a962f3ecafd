import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax import couplings, marginals, objectives
from flowmatch_jax.arrays import NO_LABEL
from flowmatch_jax.map_objectives import (
    MAP_OBJECTIVES,
    MapOptions,
    draw_times,
    guided_velocity,
)
from flowmatch_jax.runtime.errors import UserError
from tests.cases import PATHS, Float64TestCase

MEAN, STD = 0.4, 0.7
# Plain squared errors, at times well inside the path.
PLAIN = MapOptions(power=0.0, start=(0.0, 1.0), end=(-2.0, 1.0))


def exact(path):
    return marginals.gaussian_average_velocity(path, MEAN, STD)


class GaussianTest(Float64TestCase):
    @parameterized.parameters("ot", "vp")
    def test_the_exact_average_velocity_is_where_mean_flow_stands_still(self, name):
        """For (1 + a) u + b the gradient by a and b is 0 in the mean at a = b = 0 alone."""
        path = PATHS[name]
        for tangent in ("conditional", "predicted"):
            options = dataclasses.replace(PLAIN, tangent=tangent, equal=0.0)
            gradients = self._gradients("mean_flow", path, options)
            at_exact = gradients(jnp.zeros(2))
            standard_error = at_exact.std(axis=0) / np.sqrt(len(at_exact))
            beyond = jnp.abs(at_exact.mean(axis=0)) / standard_error
            self.assertLess(float(beyond.max()), 4, (name, tangent))
            elsewhere = gradients(jnp.full(2, 0.3))
            self.assertGreater(float(elsewhere.mean(axis=0).min()), 10 * standard_error.max())

    def test_alpha_flow_tends_to_mean_flow(self):
        """Its error in the target is of order alpha: at the same points and times, by Taylor."""
        path = PATHS["ot"]
        options = dataclasses.replace(PLAIN, equal=0.0)
        wanted = self._gradients("mean_flow", path, options)(jnp.full(2, 0.3)).mean(axis=0)
        distances = []
        for alpha in (0.02, 0.01):
            changed = dataclasses.replace(options, alpha=alpha)
            found = self._gradients("alpha_flow", path, changed)(jnp.full(2, 0.3))
            distances.append(jnp.abs(found.mean(axis=0) - wanted).max())
        self.assertLess(float(distances[0]), 0.1 * float(jnp.abs(wanted).max()))
        np.testing.assert_allclose(distances[0] / distances[1], 2, rtol=0.2)

    @parameterized.parameters("mean_flow", "alpha_flow")
    def test_pairs_on_straight_lines_have_their_velocity_as_average(self, name):
        """For x_1 = 3 x_0, (x_0, x_1) is on the line x_t = c_t x_0, c_t = 1 + (2 + sigma_min) t."""
        slope = 2.1
        apply = lambda _, t, x, end, **__: slope * x / (1 + slope * t)[:, None]  # noqa: E731
        objective = MAP_OBJECTIVES[name](PATHS["ot_sigma_min_0.1"], PLAIN, couplings.of_the_batch)
        x0 = jax.random.normal(jax.random.key(0), (200, 2))
        metrics = objective(apply, None, {"x": 3 * x0, "x0": x0}, jax.random.key(1))[1]
        self.assertLess(float(metrics["squared_error"]), 1e-20)

    def _gradients(self, name, path, options):
        """The gradients of a few batches by the two parameters, as a function of these."""
        objective = MAP_OBJECTIVES[name](path, options)

        def apply(params, t, x, end, **_):
            return (1 + params[0]) * exact(path)(t, end, x) + params[1]

        def gradient(key, params):
            data_key, key = jax.random.split(key)
            x1 = MEAN + STD * jax.random.normal(data_key, (500, 1))
            return jax.grad(lambda p: objective(apply, p, {"x": x1}, key)[0])(params)

        keys = jax.random.split(jax.random.key(0), 40)
        return jax.jit(lambda params: jax.vmap(gradient, (0, None))(keys, params))


class SpecialCasesTest(parameterized.TestCase):
    @parameterized.parameters(
        ("mean_flow", {"equal": 1.0}),
        ("alpha_flow", {"equal": 1.0}),
        ("alpha_flow", {"alpha": 1.0}),
    )
    def test_flow_matching(self, name, changes):
        """At equal times, or with alpha = 1, the gradient is that of the squared error to u_t."""
        path = PATHS["ot"]
        options = dataclasses.replace(PLAIN, **changes)
        times = lambda key, n, path: draw_times(key, n, path, options)[0]  # noqa: E731
        x1 = 0.5 * jax.random.normal(jax.random.key(0), (64, 2))

        def apply(params, t, x, end=None, **_):
            return params * jnp.sin(x + t[:, None])

        def gradient(objective):
            return jax.grad(
                lambda p: objective(apply, p, {"x": x1}, jax.random.key(1)), has_aux=True
            )(0.7)

        plain, metrics = gradient(objectives.matching("flow_matching", path, time=times))
        of_map, metrics_of_map = gradient(MAP_OBJECTIVES[name](path, options))
        # The error of a map is summed over the two dimensions.
        np.testing.assert_allclose(of_map, 2 * plain, rtol=1e-5)
        np.testing.assert_allclose(metrics_of_map["squared_error"], metrics["loss"], rtol=1e-5)

    def test_the_weight_has_no_gradient(self):
        """A loss of sum e / (e + eps) has the gradient of e, over (e + eps); eps is large here."""
        path, x1 = PATHS["ot"], jnp.ones((1, 2))
        apply = lambda p, t, x, end, **_: p * jnp.ones_like(x)  # noqa: E731
        options = dataclasses.replace(PLAIN, equal=1.0)
        weighted = dataclasses.replace(options, power=1.0, eps=2.0)

        def of(options):
            objective = MAP_OBJECTIVES["mean_flow"](path, options)
            return jax.value_and_grad(
                lambda p: objective(apply, p, {"x": x1}, jax.random.key(1)), has_aux=True
            )(0.3)

        ((error, _), slope), ((loss, metrics), gradient) = of(options), of(weighted)
        np.testing.assert_allclose(loss, error / (error + 2), rtol=1e-5)
        np.testing.assert_allclose(gradient, slope / (error + 2), rtol=1e-5)
        np.testing.assert_allclose(metrics["squared_error"], error / 2, rtol=1e-5)

    def test_alpha_is_annealed_over_the_training(self):
        options = MapOptions(alpha=0.01, anneal=(0.2, 0.6))
        found = [float(options.alpha_at(share)) for share in (0.0, 0.2, 0.4, 0.6, 1.0)]
        np.testing.assert_allclose(found, [1, 1, 0.1, 0.01, 0.01], rtol=1e-5)
        self.assertAlmostEqual(float(MapOptions(alpha=0.3).alpha_at(0.0)), 0.3)
        apply = lambda p, t, x, end, **_: jnp.sin(3 * x) * end[:, None]  # noqa: E731
        options = dataclasses.replace(options, power=0.0, equal=0.0)
        objective = MAP_OBJECTIVES["alpha_flow"](PATHS["ot"], options, steps=100)
        constant = dataclasses.replace(options, alpha=0.1, anneal=(0.0, 0.0))
        x1 = jax.random.normal(jax.random.key(0), (8, 2))
        at = lambda step: objective(  # noqa: E731
            apply, None, {"x": x1, "step": jnp.full(8, step)}, jax.random.key(1)
        )[0]
        wanted = MAP_OBJECTIVES["alpha_flow"](PATHS["ot"], constant)
        wanted = wanted(apply, None, {"x": x1}, jax.random.key(1))[0]
        np.testing.assert_allclose(at(40), wanted, rtol=1e-5)
        self.assertGreater(abs(float(at(10) - wanted)), 1e-3)

    def test_guidance_that_is_trained_in(self):
        u_t, x = jnp.full((3, 2), 2.0), jnp.ones((3, 2))
        label = jnp.array([4, NO_LABEL, 0])
        given = lambda label: lambda t, s, x: x * (10 + label[:, None])  # noqa: E731
        found = guided_velocity(given, {"label": label}, jnp.zeros(3), x, u_t, 3.0)
        guided = 3 * 2.0 - 2 * (10 + NO_LABEL)
        np.testing.assert_allclose(found[:, 0], [guided, 2.0, guided])


class TimesTest(parameterized.TestCase):
    @parameterized.parameters("ot", "vp")
    def test_their_order_their_ends_and_the_share_of_equal_ones(self, name):
        path, n = PATHS[name], 20_000
        t, s = draw_times(jax.random.key(0), n, path, MapOptions(equal=0.3))
        self.assertTrue(bool(((t >= 0) & (t <= s) & (s <= path.t_end)).all()))
        # s is before t where N(-4, 1.6) is above N(-0.6, 1.6).
        before = 1 - float(jax.scipy.stats.norm.cdf(3.4 / np.hypot(1.6, 1.6)))
        share = 0.3 + 0.7 * before
        error = np.sqrt(share * (1 - share) / n)
        self.assertLess(abs(float((t == s).mean()) - share), 4 * error)

    def test_noise_levels_on_the_ot_path(self):
        """1 - t = sigmoid(mean + std z) there."""
        t, _ = draw_times(jax.random.key(0), 20_000, PATHS["ot"], MapOptions(start=(0.5, 0.8)))
        z = (jnp.log((1 - t) / t) - 0.5) / 0.8
        self.assertLess(abs(float(z.mean())), 4 / np.sqrt(20_000))
        self.assertLess(abs(float(z.std()) - 1), 4 / np.sqrt(2 * 20_000))


class OptionsTest(parameterized.TestCase):
    @parameterized.parameters(
        ("tangent", "exact"),
        ("alpha", 0.0),
        ("anneal", (0.5, 0.2)),
        ("equal", 1.5),
        ("start", (0.0, 0.0)),
        ("end", (1.0,)),
        ("power", -1.0),
        ("eps", 0.0),
        ("guidance", -1.0),
    )
    def test_out_of_range(self, field, value):
        with self.assertRaisesRegex(UserError, f"^{field}: "):
            MapOptions(**{field: value}).validate()


if __name__ == "__main__":
    absltest.main()
