"""Resize images with Pillow's resampling.

Each new pixel is a weighted mean of old pixels around its centre. The filter is scaled to the width
of a new pixel when downscaling, which prevents aliasing, and to the width of an old pixel when
upscaling. Weights outside the image are dropped, and the others are renormalised.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from flowmatch_jax.arrays import Array
from flowmatch_jax.runtime.errors import one_of


def _box(d: np.ndarray) -> np.ndarray:
    return ((d > -0.5) & (d <= 0.5)).astype(float)


def _bilinear(d: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(d), 0)


def _bicubic(d: np.ndarray) -> np.ndarray:
    """Keys 1981, Eq. 4, with a = -1/2, for which it is third-order accurate."""
    a, d = -0.5, np.abs(d)
    near = ((a + 2) * d - (a + 3)) * d**2 + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return np.where(d < 1, near, np.where(d < 2, far, 0))


# name -> weight as a function of the distance in pixels
FILTERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "bicubic": _bicubic,
    "bilinear": _bilinear,
    "box": _box,
}


@functools.cache
def weights(old: int, new: int, filter: str) -> np.ndarray:
    """Compute the resampling matrix [new, old] for a row of pixels; float64, rows sum to 1.

    Raises:
        UserError: the filter is unknown.
    """
    one_of("filter", filter, FILTERS)
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale
    distances = np.arange(old) + 0.5 - centres[:, None]
    matrix = FILTERS[filter](distances / max(scale, 1))
    return matrix / matrix.sum(axis=1, keepdims=True)


# Compiled, because evaluation also calls it on its own; inlined where it is part of a program.
@functools.partial(jax.jit, static_argnames=("sides", "filter", "levels"), inline=True)
def resize(
    image: Array, sides: tuple[int, int], filter: str = "bicubic", levels: int | None = None
) -> Array:
    """Resize images to other sides.

    Args:
        image: [..., H, W, C], any dtype.
        sides: the new H and W.
        filter: a key of FILTERS.
        levels: round and clip the result, and the intermediate result after the horizontal pass, to
            integers in [0, levels). These are Pillow's steps where both sides change by the same
            factor (otherwise Pillow 13 resamples vertically first). None: no rounding.

    Returns:
        [..., H', W', C]: int32 with levels, else float32.

    Raises:
        UserError: the filter is unknown.
    """
    across = weights(image.shape[-2], sides[1], filter)
    down = weights(image.shape[-3], sides[0], filter)
    x = _resample("...wc,vw->...vc", image.astype(jnp.float32), across, levels)
    return _resample("...hwc,gh->...gwc", x, down, levels).astype(levels and jnp.int32)


def _resample(sums: str, x: Array, matrix: np.ndarray, levels: int | None) -> Array:
    matrix = jnp.asarray(matrix, jnp.float32)
    # By default TPUs and some GPUs would multiply with fewer bits.
    x = jnp.einsum(sums, x, matrix, precision=jax.lax.Precision.HIGHEST)
    return x if levels is None else jnp.clip(jnp.floor(x + 0.5), 0, levels - 1)
