"""How the noise x_0 and the data x_1 of a batch are paired.

A coupling is a function (key, x_1) -> x_0, both [B, ...]: it draws unit Gaussian noise and decides
which sample of it goes with which data point. The noise used is what it returns.
"""

from __future__ import annotations

import jax

from flowmatch_jax.arrays import Array


def independent(key: Array, x1: Array) -> Array:
    """x_0 ~ N(0, I), drawn without regard to x_1: the paper's q(x_0, x_1) = p_0(x_0) q(x_1)."""
    return jax.random.normal(key, x1.shape, x1.dtype)


COUPLINGS = {"independent": independent}
