"""Attention over all positions of a feature map."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flowmatch_jax.arrays import Array

# Attention weights per image from which a whole batch no longer fits a CPU core's cache.
CACHED = 2**16


def attend(q: Array, k: Array, v: Array) -> Array:
    """Compute softmax(q k^T / sqrt(C)) v for each head; q, k, v and the result: [B, T, heads, C].

    CPUs use a different algorithm with equal results; docs/performance.md reports the speedup.
    """
    return jax.lax.platform_dependent(
        q, k, v, cpu=_attend_image_by_image, default=jax.nn.dot_product_attention
    )


def _attend_image_by_image(q: Array, k: Array, v: Array) -> Array:
    """Compute `attend` so that the weights [heads, T, T] of an image stay in a core's cache.

    From `CACHED` weights per image on, a loop processes one image at a time, and the backward pass
    recomputes the weights instead of reading them from memory.
    """
    _, positions, heads, _ = q.shape
    if heads * positions**2 < CACHED:
        return jax.vmap(_attend_image)(q, k, v)
    return jax.lax.map(jax.checkpoint(lambda image: _attend_image(*image)), (q, k, v))


def _attend_image(q: Array, k: Array, v: Array) -> Array:
    """Compute `attend` for one image [T, heads, C]; the softmax is normalised at the end."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    q, k, v = (jnp.swapaxes(x, 0, 1) for x in (q, k, v))
    scores = jnp.matmul(q * q.shape[-1] ** -0.5, jnp.swapaxes(k, 1, 2), preferred_element_type=wide)
    # Subtracting the maximum does not change the result; it keeps exp in range.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    taken = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=wide)
    return jnp.swapaxes(taken / weights.sum(axis=-1, keepdims=True), 0, 1).astype(v.dtype)
