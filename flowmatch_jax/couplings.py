"""The source p_0, and how its noise x_0 is paired with the data x_1 of a batch.

A coupling is a function (key, x_1) -> x_0, both [B, ...]: it draws unit Gaussian noise and decides
which sample of it goes with which data point. The noise used is what it returns.
"""

from __future__ import annotations

import jax

from flowmatch_jax.arrays import Array


def draw_source(key: Array, shape: tuple[int, ...], source_std: float = 1.0) -> Array:
    """x(0) ~ p_0 = N(0, source_std^2 I), where samples start; float32 of the shape [B, ...]."""
    return source_std * jax.random.normal(key, shape)


def independent(key: Array, x1: Array) -> Array:
    """x_0 ~ N(0, I), drawn without regard to x_1: the paper's q(x_0, x_1) = p_0(x_0) q(x_1)."""
    return jax.random.normal(key, x1.shape, x1.dtype)


COUPLINGS = {"independent": independent}
