"""Samples of a vector field: the source, carried to t_end."""

from __future__ import annotations

from typing import Any

import jax

from flowmatch_jax import solvers
from flowmatch_jax.arrays import Array, Field


def draw_source(key: Array, shape: tuple[int, ...], source_std: float = 1.0) -> Array:
    """x(0) ~ N(0, source_std^2 I), float32 of the given shape [B, ...]."""
    return source_std * jax.random.normal(key, shape)


def sample(
    field: Field,
    key: Array,
    shape: tuple[int, ...],
    source_std: float = 1.0,
    t_end: float = 1.0,
    **solve: Any,
) -> solvers.Solution:
    """Draw samples [B, ...] in model space.

    Args:
        field: v(t, x).
        key: draws the noise.
        shape: of the samples, the batch first.
        source_std, t_end: the path's.
        **solve: method, rtol, atol, steps, grid, save_at of `solvers.integrate`.
    """
    return solvers.integrate(field, draw_source(key, shape, source_std), 0.0, t_end, **solve)
