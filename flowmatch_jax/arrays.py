"""Types and array helpers that all modules share.

A *vector field* is a function ``v(t, x)`` of times ``t`` ([] or [B]) and points ``x`` ([B, ...])
that returns velocities of x's shape, independently for each sample. A trained network, a
closed-form marginal field and ``lambda t, x: x @ A.T`` are all vector fields.

A *flow map* is a function ``X(t, s, x)`` that carries points at time t along the flow to time s,
and an *average velocity* is a function ``u(t, s, x)`` of the same arguments; see `flow_maps`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowmatch_jax.runtime.errors import UserError

Array = jax.Array
Params = Any
Field = Callable[[Array, Array], Array]
FlowMap = Callable[[Array, Array, Array], Array]
AverageVelocity = Callable[[Array, Array, Array], Array]
# apply(params, t, x, label=None, condition=None, key=None, end=None) -> output of x's shape.
# Passing a key turns on training mode (dropout); end is the second time of networks with two times.
Apply = Callable[..., Array]
# Items of the data by name: "x" [B, ...], and "label" int32 [B] where there are labels. In training
# "step" int32 [B] is the number of the training step.
Batch = dict[str, Array]
NO_LABEL = -1  # label of a sample without a label
# Conditioning inputs of a network by name: "label" int32 [B], "condition" [B, H, W, C'].
Inputs = dict[str, Array]


def expand_time(t: Array | float, x: Array) -> Array:
    """Reshape t ([] or [B]) so that it broadcasts against x [B, ...], in x's dtype.

    Raises:
        UserError: t has another shape, which could broadcast incorrectly.
    """
    t = jnp.asarray(t, x.dtype)
    if t.shape not in ((), x.shape[:1]):
        raise UserError("t", t.shape, f"for x of shape {x.shape} it is [] or {list(x.shape[:1])}")
    return t if t.ndim == 0 else t.reshape(t.shape + (1,) * (x.ndim - 1))


def module_of(x: Array | np.ndarray) -> ModuleType:
    """Return jax.numpy for a JAX array, and NumPy for other arrays."""
    return jnp if isinstance(x, jax.Array) else np


def sum_dims(x: Array) -> Array:
    """Sum over all axes but the batch axis: [B, ...] -> [B]."""
    return x.reshape(x.shape[0], -1).sum(axis=-1)


def filled(x: Array | np.ndarray, size: int) -> np.ndarray:
    """Pad a short batch to this size with its first item, so that all batches have one shape."""
    return np.concatenate([x, np.repeat(x[:1], size - len(x), axis=0)])
