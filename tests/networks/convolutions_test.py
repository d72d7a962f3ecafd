import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.networks.convolutions import convolve, convolve_doubled, repeat

SAME = ((1, 1), (1, 1))


def reference(x, kernel, stride=1, padding=SAME):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def reference_doubled(x, kernel):
    return reference(x.repeat(2, axis=1).repeat(2, axis=2), kernel)


def arguments(height, width, size=3):
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, height, width, 3))
    return x, jax.random.normal(keys[1], (size, size, 3, 4))


def derivatives(function, x, kernel):
    """Those that the package takes of its networks, and what users may."""

    def loss(x, kernel):
        return jnp.sin(function(x, kernel)).sum()

    def along(z):
        return jax.jvp(lambda x: function(x, kernel), (x,), (z,))

    def through_divergence(kernel):
        _, dy = jax.jvp(lambda x: jnp.sin(function(x, kernel)), (x,), (x**2,))
        return (dy**2).sum()

    return {
        "value": function(x, kernel),
        "reverse": jax.grad(loss, (0, 1))(x, kernel),
        "forward": jax.jvp(function, (x, kernel), (x + 1, kernel + 1)),
        "probes": jax.vmap(along)(jnp.stack([x, 1 - x])),
        "recomputed": jax.grad(jax.checkpoint(loss), (0, 1))(x, kernel),
        "reverse over forward": jax.grad(through_divergence)(kernel),
        "reverse over reverse": jax.grad(lambda k: (jax.grad(loss)(x, k) ** 2).sum())(kernel),
        "a gradient a sample": jax.vmap(
            lambda x: jax.grad(lambda k: jnp.sin(function(x[None], k)).sum())(kernel)
        )(x),
    }


class ConvolutionsTest(parameterized.TestCase):
    def assert_same(self, function, reference, x, kernel):
        ours, theirs = (
            jax.jit(lambda x, kernel, f=f: derivatives(f, x, kernel))(x, kernel)
            for f in (function, reference)
        )
        for name, expected in theirs.items():
            for a, b in zip(jax.tree.leaves(ours[name]), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max(), err_msg=name)

    @parameterized.parameters(
        (4, 4), (19, 33), (28, 9), (12, 12, 3, 2), (17, 40, 3, 2), (20, 9, 2, 1, ((1, 0), (0, 1)))
    )
    def test_convolution(self, height, width, size=3, stride=1, padding=SAME):
        """Sides of one window, of several, and of windows that are not equal."""
        self.assert_same(
            lambda x, kernel: convolve(x, kernel, stride, padding),
            lambda x, kernel: reference(x, kernel, stride, padding),
            *arguments(height, width, size),
        )

    @parameterized.parameters((1, 1), (2, 5), (12, 9))
    def test_doubled_convolution(self, height, width):
        self.assert_same(convolve_doubled, reference_doubled, *arguments(height, width))

    def test_the_doubled_convolution_of_accelerators(self):
        """As it is traced for them, evaluated here."""
        x, kernel = arguments(4, 6)
        np.testing.assert_allclose(
            convolve(repeat(x), kernel, 1, SAME), reference_doubled(x, kernel), atol=1e-5
        )

    def test_repeat(self):
        x, _ = arguments(2, 3)
        np.testing.assert_array_equal(repeat(x), x.repeat(2, axis=1).repeat(2, axis=2))

    def test_double_precision_is_kept(self):
        with jax.enable_x64(True):
            x, kernel = (a.astype(jnp.float64) for a in arguments(10, 10))
            gradient = jax.grad(lambda k: (convolve_doubled(x, k) ** 2).sum())(kernel)
            expected = jax.grad(lambda k: (reference_doubled(x, k) ** 2).sum())(kernel)
            self.assertEqual(gradient.dtype, jnp.float64)
            np.testing.assert_allclose(gradient, expected, rtol=1e-10)

    def test_windows_only_where_they_are_faster(self):
        """The program for other devices takes the kernel's gradient in one convolution."""
        x, kernel = arguments(32, 32)
        gradient = jax.jit(jax.grad(lambda k: convolve(x, k, 1, SAME).sum()))
        traced = gradient.trace(kernel)
        counts = {
            platform: traced.lower(lowering_platforms=(platform,))
            .as_text()
            .count("stablehlo.convolution")
            for platform in ("cpu", "tpu", "cuda")
        }
        self.assertEqual(counts["tpu"], counts["cuda"])
        self.assertEqual(counts["cpu"] - counts["tpu"], 4 * 4 - 1)


if __name__ == "__main__":
    absltest.main()
