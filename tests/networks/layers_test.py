import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.networks import layers
from flowmatch_jax.networks.convolutions import repeat


def apply(module, variables, *inputs):
    """Compiled as one program, sooner than operation by operation."""
    return jax.jit(module.apply)(variables, *inputs)


class LayersTest(parameterized.TestCase):
    @parameterized.parameters((64, 32), (12, 4), (5, 1))
    def test_group_norm_is_flax_group_norm(self, channels, groups):
        x = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 4, 6, channels))
        params = {
            "scale": jax.random.normal(jax.random.key(1), (channels,)),
            "bias": jax.random.normal(jax.random.key(2), (channels,)),
        }
        reference = apply(nn.GroupNorm(groups, epsilon=1e-5), {"params": params}, x)
        ours = apply(layers.GroupNorm(), {"params": params}, x)
        np.testing.assert_allclose(ours, reference, atol=1e-4)
        scale, shift = jax.random.normal(jax.random.key(3), (2, 2, channels))
        np.testing.assert_allclose(
            apply(layers.GroupNorm(), {"params": params}, x, scale, shift),
            reference * (1 + scale[:, None, None]) + shift[:, None, None],
            atol=1e-3,
        )

    def test_group_norm_of_low_precision_uses_float32_moments(self):
        x = (100 + jax.random.normal(jax.random.key(0), (2, 8, 8, 32))).astype(jnp.bfloat16)
        norm = layers.GroupNorm()
        variables = norm.init(jax.random.key(0), x)
        low = apply(norm, variables, x)
        self.assertEqual(low.dtype, jnp.bfloat16)
        full = apply(norm, variables, x.astype(jnp.float32))
        np.testing.assert_allclose(low.astype(np.float32), full, atol=0.02)

    def test_time_embedding(self):
        t = jnp.array([0.0, 0.5])
        embedding = layers.time_embedding(t, 7, max_period=100.0)
        self.assertEqual(embedding.shape, (2, 7))
        np.testing.assert_allclose(embedding[0], [1, 1, 1, 0, 0, 0, 0])
        angles = 0.5 * 100.0 ** (-np.arange(3) / 3)
        np.testing.assert_allclose(embedding[1], [*np.cos(angles), *np.sin(angles), 0], rtol=1e-5)

    def test_time_embedding_that_reaches_the_longest_period(self):
        embedding = layers.time_embedding(jnp.array([0.5]), 8, max_period=100.0, reaches_end=True)
        np.testing.assert_allclose(embedding[0, [0, 3]], np.cos([0.5, 0.005]), rtol=1e-6)
        np.testing.assert_allclose(embedding[0, 5], np.sin(0.5 * 100 ** (-1 / 3)), rtol=1e-6)

    def test_halving_of_each_convention(self):
        """PyTorch's padding of 1, and TensorFlow's "SAME"."""
        x = jax.random.normal(jax.random.key(0), (2, 6, 8, 3))
        for name, padding in (("adm", 1), ("ddpm", "SAME")):
            flax = nn.Conv(3, (3, 3), strides=2, padding=padding)
            params = flax.init(jax.random.key(1), x)["params"]
            ours = layers.Downsample(True, padding=layers.CONVENTIONS[name].halving)
            halved = ours.apply({"params": {"conv": params}}, x)
            np.testing.assert_allclose(halved, flax.apply({"params": params}, x), atol=1e-5)

    def test_resampling(self):
        x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
        pooled = layers.average_pool(x)
        np.testing.assert_allclose(pooled[1, 1, 2], x[1, 2:4, 4:6].mean(axis=(0, 1)), rtol=1e-5)
        np.testing.assert_allclose(layers.average_pool(repeat(x)), x, rtol=1e-6)

    @parameterized.parameters(
        {"size": 1}, {"size": 3}, {"size": 3, "stride": 2}, {"size": 3, "zero": True}
    )
    def test_convolution_is_flax_convolution(self, size, stride=1, zero=False):
        x = jax.random.normal(jax.random.key(0), (2, 6, 8, 3))
        init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
        flax = nn.Conv(5, (size, size), strides=stride, padding=size // 2, kernel_init=init)
        ours = layers.Convolution(5, size, stride, zero=zero)
        params = flax.init(jax.random.key(1), x)
        jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(1), x), params)
        params = jax.tree.map(lambda p: p + 0.1, params)
        np.testing.assert_allclose(apply(ours, params, x), apply(flax, params, x), atol=1e-5)

    def test_convolution_in_low_precision(self):
        x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
        for doubled in (False, True):
            layer = layers.Convolution(5, 3, doubled=doubled, dtype=jnp.bfloat16)
            variables = layer.init(jax.random.key(1), x)
            self.assertEqual(variables["params"]["kernel"].dtype, jnp.float32)
            y = apply(layer, variables, x)
            self.assertEqual(y.dtype, jnp.bfloat16)
            full = apply(layer.clone(dtype=None), variables, x)
            np.testing.assert_allclose(y.astype(np.float32), full, atol=0.05)

    @parameterized.parameters((2, None), (1, 4))
    def test_attention_is_softmax_of_scaled_products(self, heads, head_channels):
        x = jax.random.normal(jax.random.key(0), (2, 3, 3, 8))
        block = layers.AttentionBlock(heads, head_channels)
        params = block.init(jax.random.key(1), x)["params"]
        np.testing.assert_array_equal(apply(block, {"params": params}, x), x)  # proj is zero

        params["proj"]["kernel"] = jnp.eye(8)
        flat = apply(layers.GroupNorm(), {"params": params["norm"]}, x).reshape(2, 9, 8)
        qkv = flat @ params["qkv"]["kernel"] + params["qkv"]["bias"]
        q, k, v = jnp.split(qkv.reshape(2, 9, 2, 12), 3, axis=-1)
        weights = jax.nn.softmax(jnp.einsum("bqhc,bkhc->bhqk", q, k) / math.sqrt(4), axis=-1)
        expected = x + jnp.einsum("bhqk,bkhc->bqhc", weights, v).reshape(x.shape)
        np.testing.assert_allclose(apply(block, {"params": params}, x), expected, atol=1e-5)


if __name__ == "__main__":
    absltest.main()
