"""The source p_0, and couplings of noise x_0 with the data x_1 of a batch.

A coupling is a function (key, x_1) -> x_0, both [B, ...]. It draws unit Gaussian noise and pairs
each noise sample with a data point. Pairs that a model made (reflow) bring their x_0 along.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import jax

from flowmatch_jax.arrays import Array, Batch

Coupling = Callable[[Array, Array], Array]
PAIRED = "paired"


def draw_source(key: Array, shape: tuple[int, ...], source_std: float = 1.0) -> Array:
    """Draw starting points of samples from p_0 = N(0, source_std^2 I); float32 [B, ...]."""
    return source_std * jax.random.normal(key, shape)


def independent(key: Array, x1: Array) -> Array:
    """Draw x_0 ~ N(0, I) independently of x_1: the paper's q(x_0, x_1) = p_0(x_0) q(x_1)."""
    return jax.random.normal(key, x1.shape, x1.dtype)


def paired(key: Array, x1: Array) -> NoReturn:
    """Raise ValueError: the coupling is that of given pairs, whose batches have x_0."""
    raise ValueError("the batch has no x0, which the coupling 'paired' takes from pairs")


def noise_of(coupling: Coupling, key: Array, batch: Batch) -> Array:
    """Return x_0 of a batch: its own "x0" if it has pairs, otherwise what the coupling draws."""
    return batch["x0"] if "x0" in batch else coupling(key, batch["x"])


COUPLINGS: dict[str, Coupling] = {"independent": independent, PAIRED: paired}
