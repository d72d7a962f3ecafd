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


def in_batches(
    function: Callable[[np.ndarray, Array, Inputs], tuple[Array, Array]],
    x: Array,
    labels: Array | None,
    key: Array,
    size: int,
) -> tuple[np.ndarray, bool]:
    """Apply a function to batches of equal size; fewer items are filled up to a power of two.

    Args:
        function: (x [B, ...], key, inputs) -> (a result for each x, whether its solve converged).
        x: the items, [N, ...].
        labels: the "label" of each among the inputs, [N]; None: without inputs.
        key: key, which the number of a batch is folded into.
        size: largest size of a batch.

    Returns:
        The results [N, ...], and whether all solves converged.

    Raises:
        UserError: there are no items.
    """
    if len(x) == 0:
        raise UserError("x", f"an array of shape {x.shape}", "give one item or more")
    size = min(size, 1 << (len(x) - 1).bit_length())  # each size is compiled once
    results, all_converged = [], True
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        inputs = {} if labels is None else {"label": filled(labels[part], size)}
        batch_key = jax.random.fold_in(key, start // size)
        result, converged = function(filled(x[part], size), batch_key, inputs)
        results.append(np.asarray(result)[: len(x[part])])
        all_converged &= bool(converged)
    return np.concatenate(results), all_converged
