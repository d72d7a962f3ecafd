"""Distributions of the time t in training.

A time distribution is a function (key, n, t_end) -> t [n], float32, in [0, t_end].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flowmatch_jax.arrays import Array


def uniform(key: Array, n: int, t_end: float) -> Array:
    """t ~ U[0, t_end], independent for each sample: the paper's."""
    return jax.random.uniform(key, (n,), maxval=t_end)


def stratified(key: Array, n: int, t_end: float) -> Array:
    """One t in each of n equal slices of [0, t_end], in random order.

    Each t is still U[0, t_end], so the loss keeps its expectation; its variance over t falls.
    The low-discrepancy sampler of Kingma et al. 2021 (VDM) is the same with one shared offset.
    """
    offset_key, order_key = jax.random.split(key)
    slices = (jnp.arange(n) + jax.random.uniform(offset_key, (n,))) / n
    return t_end * jax.random.permutation(order_key, slices)


TIMES = {"uniform": uniform, "stratified": stratified}
