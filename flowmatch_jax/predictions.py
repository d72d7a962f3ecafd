"""From what a network predicts to the vector field.

A conversion is a function (path, t, x, output) -> v_t(x), shapes [B, ...]. Everything after
training asks for the field alone, so that all methods are sampled and scored by the same code.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from flowmatch_jax.arrays import Apply, Array, Field, Params
from flowmatch_jax.paths import GaussianPath

Conversion = Callable[[GaussianPath, Array, Array, Array], Array]


def velocity_from_velocity(path: GaussianPath, t: Array, x: Array, output: Array) -> Array:
    """v_t itself: the prediction of flow matching."""
    return output


VELOCITY_FROM: dict[str, Conversion] = {"velocity": velocity_from_velocity}


def vector_field(
    apply: Apply,
    params: Params,
    path: GaussianPath,
    predicts: str = "velocity",
    label: Array | None = None,
    condition: Array | None = None,
) -> Field:
    """The vector field v(t, x) of a trained network, dropout off.

    Args:
        apply: the network, apply(params, t, x, label=None, condition=None).
        predicts: what its output means, a key of `VELOCITY_FROM`.
        label: int32 [B], for a class-conditional network.
        condition: [B, H, W, C'], for a network conditioned on images.
    """

    def field(t: Array, x: Array) -> Array:
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
        output = apply(params, t, x, label=label, condition=condition)
        return VELOCITY_FROM[predicts](path, t, x, output)

    return field
