import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax import likelihood, marginals, objectives
from flowmatch_jax.couplings import draw_source
from flowmatch_jax.divergence import divergence
from flowmatch_jax.pixels import dequantise
from flowmatch_jax.solvers import Solver, integrate
from tests.cases import EACH_PATH, PATHS, Float64TestCase, coefficients, gaussian_velocity

POINTS = np.array([[-1.0, 0.5], [0.3, -0.7], [1.2, 1.0]])
WEIGHTS = np.array([0.5, 0.2, 0.3])


class MarginalsTest(Float64TestCase):
    @parameterized.named_parameters(EACH_PATH)
    def test_density_is_the_mixture(self, path):
        noise = jax.random.normal(jax.random.key(0), (6, 2))
        for t in (0.0, 0.4, 0.9):
            alpha, sigma = coefficients(path, t)
            x = alpha * POINTS[[0, 1, 2, 0, 1, 2]] + sigma * noise
            z = (x[:, None] - alpha * POINTS) / sigma
            each = jnp.prod(jax.scipy.stats.norm.pdf(z) / sigma, axis=-1)
            np.testing.assert_allclose(
                marginals.log_density(path, t, x, POINTS, WEIGHTS),
                jnp.log(each @ WEIGHTS),
                rtol=1e-8,
            )

    @parameterized.named_parameters(EACH_PATH)
    def test_continuity_equation(self, path):
        """d/dt log p + div u + u . grad log p = 0, on points and on images."""
        for data in (POINTS, np.random.RandomState(0).uniform(-1, 1, (4, 2, 2, 1))):
            x = jax.random.normal(jax.random.key(1), (5, *data.shape[1:]))
            t = jnp.linspace(0.05, 0.9, 5)
            density = lambda t, x: marginals.log_density(path, t, x, data)  # noqa: B023, E731
            field = lambda t, x: marginals.velocity(path, t, x, data)  # noqa: B023, E731

            @jax.jit
            def terms(t, x, density=density, field=field):
                change = jax.jvp(lambda t: density(t, x), (t,), (jnp.ones(5),))[1]
                gradient = jax.grad(lambda x: density(t, x).sum())(x)
                u, div = divergence(field, t, x)
                return change, div, (u * gradient).reshape(5, -1).sum(axis=1)

            change, div, along = terms(t, x)
            scale = jnp.abs(change) + jnp.abs(div) + jnp.abs(along)
            np.testing.assert_array_less(jnp.abs(change + div + along), 1e-7 * scale)

    @parameterized.named_parameters(EACH_PATH)
    def test_one_gaussian_is_the_known_field(self, path):
        m, s = 0.4, 0.7
        x = jax.random.normal(jax.random.key(2), (5, 2))
        for t in (0.0, 0.5, 0.95):
            np.testing.assert_allclose(
                marginals.velocity(marginals.smoothed(path, s), t, x, jnp.full((1, 2), m)),
                gaussian_velocity(path, m, s)(t, x),
                rtol=1e-7,
                atol=1e-10,
            )


class StabilityTest(parameterized.TestCase):
    @parameterized.named_parameters(EACH_PATH)
    def test_finite_to_the_end_in_float32_on_images(self, path):
        data = jax.random.uniform(jax.random.key(0), (20, 8, 8, 1), minval=-1)
        x = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
        for t in (0.0, 0.5, path.t_end):
            self.assertTrue(bool(jnp.isfinite(marginals.velocity(path, t, x, data)).all()))
            self.assertTrue(bool(jnp.isfinite(marginals.log_density(path, t, x, data)).all()))

    def test_samples_are_the_data_in_their_proportions(self):
        path = PATHS["ot"]
        field = lambda t, x: marginals.velocity(path, t, x, jnp.float32(POINTS), WEIGHTS)  # noqa: E731
        x0 = draw_source(jax.random.key(0), (2000, 2))
        x = integrate(field, x0, solver=Solver("midpoint", steps=100)).x
        distance = jnp.linalg.norm(x[:, None] - POINTS, axis=-1)
        self.assertLess(float(jnp.quantile(distance.min(axis=1), 0.99)), 0.02)
        counts = np.bincount(np.argmin(distance, axis=1), minlength=3)
        standard_error = np.sqrt(2000 * WEIGHTS * (1 - WEIGHTS))
        np.testing.assert_array_less(np.abs(counts - 2000 * WEIGHTS), 4 * standard_error)

    def test_likelihood_of_a_mixture_by_its_own_field(self):
        path = marginals.smoothed(PATHS["ot"], 0.3)
        data = jnp.float32(POINTS)
        field = lambda t, x: marginals.velocity(path, t, x, data)  # noqa: E731
        x = data + 0.1
        solver = Solver(rtol=1e-6, atol=1e-6)
        result = likelihood.log_prob(field, x, solver=solver, divergence="exact")
        np.testing.assert_allclose(
            result.log_prob, marginals.log_density(path, 1.0, x, data), atol=1e-3
        )

    def test_images_are_scored_like_any_field(self):
        image = np.random.RandomState(0).randint(0, 17, (3, 2, 2, 1))
        data = dequantise(jax.random.key(0), image, 17)
        path = marginals.smoothed(PATHS["ot"], 0.2)
        field = lambda t, x: marginals.velocity(path, t, x, data)  # noqa: E731
        solver = Solver(rtol=1e-4, atol=1e-4)
        result = likelihood.image_bits_per_dim(
            field, image, jax.random.key(1), solver, levels=17, divergence="exact"
        )
        self.assertTrue(bool((result.bits_per_dim < math.log2(17)).all()))


class TheoremTest(Float64TestCase):
    """Flow matching and conditional flow matching have the same gradients (Eqs. 5, 9)."""

    def losses(self, count, key):
        """Gradients and values of L_FM and L_CFM from the same draws, for a small model."""
        path = PATHS["ot_sigma_min_0.1"]
        parameters = jnp.array([[0.3, -0.2], [0.5, 0.1]])

        def model(params, t, x, **_):
            return jnp.tanh(x @ params) + t[:, None]

        index_key, key = jax.random.split(key)
        x1 = jnp.asarray(POINTS)[jax.random.choice(index_key, 3, (count,), p=jnp.asarray(WEIGHTS))]
        conditional = objectives.matching("flow_matching", path)

        def marginal(params):
            # The same x_t: the objective hands them to the network, which here scores itself.
            def squared_error(params, t, x, **_):
                u = marginals.velocity(path, t, x, jnp.asarray(POINTS), jnp.asarray(WEIGHTS))
                seen["loss"] = jnp.mean((model(params, t, x) - u) ** 2)
                return jnp.zeros_like(x)

            seen = {}
            conditional(squared_error, params, {"x": x1}, key)
            return seen["loss"]

        def conditional_loss(params):
            return conditional(model, params, {"x": x1}, key)[0]

        return (
            jax.value_and_grad(marginal)(parameters),
            jax.value_and_grad(conditional_loss)(parameters),
        )

    def test_gradients_agree_to_monte_carlo_error(self):
        run = jax.jit(self.losses, static_argnums=0)
        errors = {}
        for count in (256, 4096):
            differences = []
            for key in jax.random.split(jax.random.key(0), 40):
                (_, marginal), (_, conditional) = run(count, key)
                differences.append(marginal - conditional)
            differences = jnp.stack(differences)
            standard_error = differences.std(axis=0) / math.sqrt(len(differences))
            self.assertTrue(bool((jnp.abs(differences.mean(axis=0)) < 4 * standard_error).all()))
            errors[count] = float(jnp.sqrt((differences**2).mean()))
        # Sixteen times the draws: a quarter of the error.
        self.assertBetween(errors[256] / errors[4096], 3, 5.3)

    def test_the_losses_differ_by_a_constant(self):
        """E ||u_t(x | x_1) - u_t(x)||^2, whatever the model."""
        path, count = PATHS["ot_sigma_min_0.1"], 100_000
        key, index_key = jax.random.split(jax.random.key(1))
        x1 = jnp.asarray(POINTS)[jax.random.choice(index_key, 3, (count,), p=jnp.asarray(WEIGHTS))]
        objective = objectives.matching("flow_matching", path)

        def difference(model):
            seen = {}

            def apply(params, t, x, **_):
                u = marginals.velocity(path, t, x, jnp.asarray(POINTS), jnp.asarray(WEIGHTS))
                seen["marginal"] = jnp.mean((model(t, x) - u) ** 2)
                return model(t, x)

            loss, _ = objective(apply, None, {"x": x1}, key)
            return float(loss - seen["marginal"])

        constants = [
            difference(lambda t, x: jnp.zeros_like(x)),
            difference(lambda t, x: x),
            difference(lambda t, x: jnp.sin(x) + t[:, None]),
        ]
        self.assertGreater(constants[0], 0.1)
        np.testing.assert_allclose(constants, constants[0], rtol=0.03)


if __name__ == "__main__":
    absltest.main()
