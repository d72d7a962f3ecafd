"""Attention over all positions of a feature map."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flowmatch_jax.arrays import Array

CACHED = 2**16  # weights of an image, beyond which those of a batch fall out of a core's cache


def attend(q: Array, k: Array, v: Array) -> Array:
    """softmax(q k^T / sqrt(C)) v for each head; q, k, v [B, T, heads, C], so is the result.

    The same numbers by another way on CPUs; docs/performance.md has what it saves.
    """
    return jax.lax.platform_dependent(
        q, k, v, cpu=_attend_image_by_image, default=jax.nn.dot_product_attention
    )


def _attend_image_by_image(q: Array, k: Array, v: Array) -> Array:
    """`attend`, so that an image's weights [heads, T, T] stay in the cache of a core.

    Where they are many, images follow each other in a loop, and the backward pass computes the
    weights again instead of reading them from memory.
    """
    _, positions, heads, _ = q.shape
    if heads * positions**2 < CACHED:
        return jax.vmap(_attend_image)(q, k, v)
    return jax.lax.map(jax.checkpoint(lambda image: _attend_image(*image)), (q, k, v))


def _attend_image(q: Array, k: Array, v: Array) -> Array:
    """`attend` for one image, [T, heads, C], divided by the sum of the weights last."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    q, k, v = (jnp.swapaxes(x, 0, 1) for x in (q, k, v))
    scores = jnp.matmul(q * q.shape[-1] ** -0.5, jnp.swapaxes(k, 1, 2), preferred_element_type=wide)
    # The result does not depend on what is taken from the scores; it keeps exp in range.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    taken = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=wide)
    return jnp.swapaxes(taken / weights.sum(axis=-1, keepdims=True), 0, 1).astype(v.dtype)
