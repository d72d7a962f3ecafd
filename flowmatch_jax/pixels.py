"""Conversions between grey levels 0 .. levels - 1 and model space [-1, 1].

The map is the paper's phi for any number of levels: level k covers the bin
[2k/levels - 1, 2(k+1)/levels - 1).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flowmatch_jax.arrays import Array


def as_bytes(image: Array, levels: int) -> Array:
    """Scale integers in [0, levels) to [0, 255] and round them to uint8."""
    return jnp.round(image * (255 / (levels - 1))).astype(jnp.uint8)


def from_bytes(image: Array, levels: int) -> Array:
    """Map values in [0, 255] to the nearest of ``levels`` evenly spaced levels; int32."""
    return jnp.round(image * ((levels - 1) / 255)).astype(jnp.int32)


def random_flip(key: Array, image: Array) -> Array:
    """Mirror each image of [B, H, W, C] left to right independently with probability 1/2."""
    flip = jax.random.bernoulli(key, shape=(image.shape[0], 1, 1, 1))
    return jnp.where(flip, image[:, :, ::-1], image)


def dequantise(key: Array, image: Array, levels: int) -> Array:
    """Dequantise uniformly: 2 (image + u) / levels - 1 with u ~ U[0, 1) for each value.

    Args:
        key: key of the noise u.
        image: integers in [0, levels), any shape.
        levels: grey levels of the image.

    Returns:
        float32 in [-1, 1], of image's shape.
    """
    u = jax.random.uniform(key, image.shape)
    return 2 * (image + u) / levels - 1


def centres(image: Array, levels: int) -> Array:
    """Map levels to the centres of their bins in model space, (2 image + 1) / levels - 1."""
    return (2 * image.astype(jnp.float32) + 1) / levels - 1


def quantise(x: Array, levels: int) -> Array:
    """Map x to the level of its bin: floor((x + 1) levels / 2), clipped to [0, levels); int32."""
    return jnp.clip(jnp.floor((x + 1) * (levels / 2)), 0, levels - 1).astype(jnp.int32)
