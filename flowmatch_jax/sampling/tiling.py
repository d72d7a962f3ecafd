"""A network on canvases larger than the images it was trained on.

Each call of it cuts the canvas into tiles that overlap, of the training images' side, and takes the
mean of what the network says of them, weighted towards the middle of tiles (as in MultiDiffusion,
Bar-Tal et al. 2023). So the canvas has one vector field, one noise and one solve, and where tiles
agree there is nothing to be seen of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from flowmatch_jax.arrays import Apply, Array, Params


def fitting(length: int, side: int, overlap: int) -> int:
    """The least length that tiles of a side, one overlap shared by neighbours, cover exactly."""
    stride = side - overlap
    return side + stride * max(0, math.ceil((length - side) / stride))


def windows(side: int, overlap: int) -> np.ndarray:
    """How much each pixel of a tile counts, float32 [side, side, 1].

    It rises from the edges over the overlap, so that where two tiles meet they sum to one.
    """
    to_edge = np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5
    rise = np.minimum(1, to_edge / max(overlap, 0.5)).astype(np.float32)
    return (rise[:, None] * rise)[:, :, None]


def places(sides: tuple[int, int], side: int, overlap: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows [N, side, 1] and columns [N, 1, side] of the N tiles of a canvas of fitting sides."""
    starts = [np.arange(0, length - side + 1, side - overlap) for length in sides]
    corners = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, 2)
    pixels = np.arange(side)
    return corners[:, :1, None] + pixels[:, None], corners[:, 1:, None] + pixels


def tiled(apply: Apply, side: int, overlap: int, batch: int) -> Apply:
    """The network as one on canvases: apply(params, t, x, label=None, condition=None).

    The mean is of its outputs. At a pixel a velocity is an affine function of the output, the same
    for all tiles: it is the mean of their velocities, whatever the network predicts.

    Args:
        apply: the network, on images [B, side, side, C].
        overlap: pixels that neighbouring tiles share, at most half a side.
        batch: tiles that go through the network together, at most.

    Returns:
        The same for x [B, H, W, C] and condition [B, H, W, C'], H and W `fitting`.
    """

    def apply_to_canvas(
        params: Params,
        t: Array,
        x: Array,
        label: Array | None = None,
        condition: Array | None = None,
        key: Array | None = None,
    ) -> Array:
        rows, columns = places(x.shape[1:3], side, overlap)
        each = len(rows)

        def cut(canvas: Array) -> Array:
            return canvas[:, rows, columns].reshape(-1, side, side, canvas.shape[-1])

        def repeat(of_canvas: Array) -> Array:
            return jnp.repeat(of_canvas, each, axis=0)

        inputs = {"t": repeat(jnp.broadcast_to(t, x.shape[:1])), "x": cut(x)}
        if label is not None:
            inputs["label"] = repeat(label)
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
    """A function of items [N, ...], of at most ``batch`` of them at a time, one after another."""
    count = len(inputs["x"])
    rounds = math.ceil(count / batch)
    size = math.ceil(count / rounds)

    def split(x: Array) -> Array:
        filled = jnp.concatenate([x, jnp.repeat(x[:1], rounds * size - count, axis=0)])
        return filled.reshape(rounds, size, *x.shape[1:])

    outputs = jax.lax.map(function, jax.tree.map(split, inputs))
    return outputs.reshape(-1, *outputs.shape[2:])[:count]
