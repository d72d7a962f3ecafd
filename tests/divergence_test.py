import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.divergence import (
    PROBES,
    colours,
    divergence,
    divergence_estimates,
    hadamard,
    orthogonal,
)
from flowmatch_jax.networks.convolutions import convolve
from flowmatch_jax.runtime.errors import UserError
from tests.cases import Float64TestCase


def wavy(t, x):
    """A field with a dense Jacobian, for any shape of x."""
    flat = x.reshape(x.shape[0], -1)
    mixing = jnp.sin(jnp.arange(flat.shape[1] ** 2)).reshape(flat.shape[1], -1)
    return jnp.tanh(flat @ mixing + t).reshape(x.shape)


class DivergenceTest(Float64TestCase):
    @parameterized.parameters((), (3,), (2, 3), (4, 4, 3))
    def test_exact_is_the_trace_of_the_jacobian_for_any_shape(self, *shape):
        x = jax.random.normal(jax.random.key(0), (5, *shape))
        v, div = divergence(wavy, 0.3, x)
        np.testing.assert_allclose(v, wavy(0.3, x))
        dims = math.prod(shape)
        jacobians = jax.vmap(jax.jacrev(lambda x: wavy(0.3, x[None])[0]))(x)
        traces = np.trace(jacobians.reshape(5, dims, dims), axis1=1, axis2=2)
        np.testing.assert_allclose(div, traces, rtol=1e-10)

    @parameterized.parameters(2, 5, 100)
    def test_blocks_of_derivatives(self, block):
        x = jax.random.normal(jax.random.key(0), (5, 4, 3))
        _, one_by_one = divergence(wavy, 0.3, x)
        _, estimates = divergence_estimates(wavy, 0.3, x, block=block)
        np.testing.assert_allclose(estimates[0], one_by_one, rtol=1e-12)

    def test_hutchinson_is_unbiased(self):
        x = jax.random.normal(jax.random.key(0), (4, 2, 3))
        probes = jax.random.rademacher(jax.random.key(1), (4000, *x.shape), x.dtype)
        v, estimate = divergence(wavy, 0.3, x, probes)
        one = lambda z: divergence(wavy, 0.3, x, z[None])[1]  # noqa: E731
        each = jax.vmap(one)(probes[:200])
        standard_error = each.std(axis=0) / math.sqrt(len(probes))
        _, exact = divergence(wavy, 0.3, x)
        np.testing.assert_allclose(v, wavy(0.3, x))
        self.assertTrue(bool((jnp.abs(estimate - exact) < 4 * standard_error).all()))

    def test_several_probes_average_one_by_one(self):
        x = jax.random.normal(jax.random.key(0), (4, 2, 3))
        probes = jax.random.rademacher(jax.random.key(1), (3, *x.shape), x.dtype)
        each = [divergence(wavy, 0.3, x, z[None])[1] for z in probes]
        np.testing.assert_allclose(divergence(wavy, 0.3, x, probes)[1], np.mean(each, axis=0))

    def test_probes_of_numpy(self):
        """Inside jit, through a derivative of our own."""
        draw = np.random.default_rng(0)
        x, kernel = draw.normal(size=(2, 5, 5, 1)), draw.normal(size=(3, 3, 1, 1))
        probes = draw.choice([-1.0, 1.0], size=(3, *x.shape))

        def field(t, x):
            return convolve(x, kernel, 1, ((1, 1), (1, 1)))

        _, got = jax.jit(lambda x: divergence(field, 0.5, x, probes))(x)
        # A linear field: z . A z, with A z the field itself.
        want = np.mean([(z * field(0.5, z)).sum(axis=(1, 2, 3)) for z in probes], axis=0)
        np.testing.assert_allclose(got, want, rtol=1e-10)


class ProbesTest(Float64TestCase):
    @parameterized.product(kind=sorted(PROBES), shape=[(4,), (4, 4, 1)])
    def test_mean_and_covariance(self, kind, shape):
        """Of each of four probes: 0 and I, within five standard errors."""
        like, n = jnp.zeros((5_000, *shape)), 5_000
        z = PROBES[kind](jax.random.key(0), 4, like).reshape(4, n, -1)
        self.assertLess(float(jnp.abs(z.mean(axis=1)).max()), 5 / math.sqrt(n))
        covariance = jnp.einsum("pni,pnj->pij", z, z) / n
        spread = 5 * math.sqrt(2 / n)
        np.testing.assert_allclose(covariance, np.stack([np.eye(z.shape[-1])] * 4), atol=spread)

    @parameterized.parameters(1, 2, 4, 8)
    def test_orthogonal_ones_multiply_equal_colours_alone(self, count):
        """The mean of z_i z_j over the probes is 1 or -1 for them, and 0 for others."""
        z = orthogonal(jax.random.key(0), count, jnp.zeros((3, 8, 8, 2))).reshape(count, 3, -1)
        of = colours(count, (8, 8, 2)).ravel()
        products = jnp.einsum("pni,pnj->nij", z, z) / count
        same = np.broadcast_to(of[:, None] == of, products.shape)
        np.testing.assert_array_equal(jnp.abs(products), same)
        np.testing.assert_array_equal(
            jnp.einsum("pni,qni->npq", z, z), 128 * np.stack([np.eye(count)] * 3)
        )

    def test_neighbours_have_other_colours(self):
        for count, apart in ((2, [(0, 1), (1, 0)]), (4, [(0, 1), (1, 0), (1, 1)])):
            of = colours(count, (6, 6, 1))[..., 0]
            self.assertLen(np.unique(of), count)
            for down, right in apart:
                self.assertTrue((of[down:, right:] != of[: 6 - down, : 6 - right]).all())

    def test_orthogonal_ones_are_exact_for_a_field_of_neighbours(self):
        """v = a convolution by 3 x 3: four colours separate all pixels that it connects."""
        kernel = np.random.default_rng(0).normal(size=(3, 3, 1, 1))
        field = lambda t, x: jnp.tanh(convolve(x, kernel, 1, ((1, 1), (1, 1))))  # noqa: E731
        x = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
        _, exact = divergence(field, 0.5, x)
        _, estimate = divergence(field, 0.5, x, orthogonal(jax.random.key(2), 4, x))
        np.testing.assert_allclose(estimate, exact, rtol=1e-10)

    def test_hadamard(self):
        for n in (1, 2, 8):
            np.testing.assert_array_equal(hadamard(n) @ hadamard(n).T, n * np.eye(n))

    def test_no_power_of_two(self):
        with self.assertRaisesRegex(UserError, "probes: got 3; orthogonal probes are 1, 2, 4, 8"):
            orthogonal(jax.random.key(0), 3, jnp.zeros((1, 2)))


if __name__ == "__main__":
    absltest.main()
