import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.networks.attention import CACHED, attend

# [B, T, heads, C]: kept in the cache for the whole batch, and image by image.
SMALL, LARGE = (3, 10, 2, 4), (2, 200, 2, 4)


def reference(q, k, v):
    scores = jnp.einsum("bthc,bshc->bhts", q, k) / math.sqrt(q.shape[-1])
    return jnp.einsum("bhts,bshc->bthc", jax.nn.softmax(scores, axis=-1), v)


def arguments(shape, scale=1.0):
    return tuple(
        scale * jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0), 3)
    )


class AttentionTest(parameterized.TestCase):
    def test_the_shapes_are_of_both_kinds(self):
        self.assertLess(SMALL[2] * SMALL[1] ** 2, CACHED)
        self.assertGreaterEqual(LARGE[2] * LARGE[1] ** 2, CACHED)

    @parameterized.parameters(SMALL, LARGE)
    def test_values_and_derivatives(self, *shape):
        q, k, v = arguments(shape)

        def outcomes(attention):
            loss = lambda *qkv: jnp.sin(attention(*qkv)).sum()  # noqa: E731
            tangents = (v, q, k)
            along = lambda q: jax.jvp(attention, (q, k, v), tangents)[1]  # noqa: E731
            return (
                attention(q, k, v),
                jax.grad(loss, (0, 1, 2))(q, k, v),
                along(q),
                jax.grad(lambda q: (along(q) ** 2).sum())(q),
            )

        ours, theirs = (jax.jit(outcomes, static_argnums=0)(f) for f in (attend, reference))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())

    @parameterized.parameters(SMALL, LARGE)
    def test_scores_beyond_the_range_of_exp(self, *shape):
        q, k, v = arguments(shape, scale=100.0)
        np.testing.assert_allclose(attend(q, k, v), reference(q, k, v), rtol=1e-3, atol=1e-2)

    @parameterized.parameters(SMALL, LARGE)
    def test_low_precision(self, *shape):
        q, k, v = (x.astype(jnp.bfloat16) for x in arguments(shape))
        low = attend(q, k, v)
        self.assertEqual(low.dtype, jnp.bfloat16)
        full = reference(*(x.astype(jnp.float32) for x in (q, k, v)))
        np.testing.assert_allclose(low.astype(np.float32), full, atol=0.03)

    def test_other_devices_have_no_loop(self):
        traced = jax.jit(attend).trace(*arguments(LARGE))
        programs = {
            platform: traced.lower(lowering_platforms=(platform,)).as_text()
            for platform in ("cpu", "tpu", "cuda")
        }
        loops = {platform: "stablehlo.while" in text for platform, text in programs.items()}
        self.assertEqual(loops, {"cpu": True, "tpu": False, "cuda": False})


if __name__ == "__main__":
    absltest.main()
