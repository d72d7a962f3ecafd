"""Application of a network to canvases larger than its training images.

Each call cuts the canvas into overlapping tiles of the training images' side and averages the
outputs, weighted towards the centres of the tiles (as in MultiDiffusion, Bar-Tal et al. 2023). The
canvas thus has one vector field, one noise sample and one solve, without seams between tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from flowmatch_jax.arrays import Apply, Array, Params


def fitting(length: int, side: int, overlap: int) -> int:
    """Return the smallest length >= ``length`` that tiles with this side and overlap cover."""
    stride = side - overlap
    return side + stride * max(0, math.ceil((length - side) / stride))


def windows(side: int, overlap: int) -> np.ndarray:
    """Return the weight of each pixel of a tile, float32 [side, side, 1].

    Weights rise linearly from the edges over the overlap, and those of two adjacent tiles sum to
    one.
    """
    to_edge = np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5
    rise = np.minimum(1, to_edge / max(overlap, 0.5)).astype(np.float32)
    return (rise[:, None] * rise)[:, :, None]


def places(sides: tuple[int, int], side: int, overlap: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows [N, side, 1] and columns [N, 1, side] of a canvas's N tiles; sides `fitting`."""
    starts = [np.arange(0, length - side + 1, side - overlap) for length in sides]
    corners = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, 2)
    pixels = np.arange(side)
    return corners[:, :1, None] + pixels[:, None], corners[:, 1:, None] + pixels


def tiled(apply: Apply, side: int, overlap: int, batch: int) -> Apply:
    """Turn a network for tiles into one for canvases.

    At a pixel the velocity is the same affine function of the output for all tiles, so the mean
    output is also the mean of their velocities, for every kind of prediction.

    Args:
        apply: the network for images [B, side, side, C].
        side: side of a tile.
        overlap: pixels shared by neighbouring tiles, at most half a side.
        batch: maximum number of tiles per network call.

    Returns:
        The network for x [B, H, W, C] and condition [B, H, W, C'] with `fitting` H and W.
    """

    def apply_to_canvas(
        params: Params,
        t: Array,
        x: Array,
        label: Array | None = None,
        condition: Array | None = None,
        key: Array | None = None,
        end: Array | None = None,
    ) -> Array:
        rows, columns = places(x.shape[1:3], side, overlap)
        each = len(rows)

        def cut(canvas: Array) -> Array:
            return canvas[:, rows, columns].reshape(-1, side, side, canvas.shape[-1])

        def repeat(of_canvas: Array) -> Array:
            return jnp.repeat(of_canvas, each, axis=0)

        inputs = {"t": repeat(jnp.broadcast_to(t, x.shape[:1])), "x": cut(x)}
        for name, value in (("end", end), ("label", label)):
            if value is not None:
                inputs[name] = repeat(jnp.broadcast_to(value, x.shape[:1]))
        if condition is not None:
            inputs["condition"] = cut(condition)
        output = in_batches(lambda part: apply(params, **part), inputs, batch)

        weights = windows(side, overlap)
        output = weights * output.reshape(-1, each, side, side, output.shape[-1])
        total = jnp.zeros((*x.shape[1:3], 1)).at[rows, columns].add(weights)
        canvas = jnp.zeros((*x.shape[:3], output.shape[-1]), output.dtype)
        return canvas.at[:, rows, columns].add(output) / total

    return apply_to_canvas


def in_batches(
    function: Callable[[dict[str, Array]], Array], inputs: dict[str, Array], batch: int
) -> Array:
    """Apply a function to items [N, ...] sequentially in batches of at most ``batch`` items."""
    count = len(inputs["x"])
    rounds = math.ceil(count / batch)
    size = math.ceil(count / rounds)

    def split(x: Array) -> Array:
        filled = jnp.concatenate([x, jnp.repeat(x[:1], rounds * size - count, axis=0)])
        return filled.reshape(rounds, size, *x.shape[1:])

    outputs = jax.lax.map(function, jax.tree.map(split, inputs))
    return outputs.reshape(-1, *outputs.shape[2:])[:count]
