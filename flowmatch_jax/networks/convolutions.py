"""Convolutions of feature maps [B, H, W, C], the same sums in the order that XLA is fast at.

What each saves is in docs/performance.md.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from flowmatch_jax.arrays import Array

Padding = tuple[tuple[int, int], tuple[int, int]]

LAYOUT = ("NHWC", "HWIO", "NHWC")


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def convolve(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    """The cross-correlation of x [B, H, W, C] with a kernel [h, w, C, D].

    Its derivative by the kernel is taken by windows on CPUs. XLA computes the gradient of a kernel
    as a convolution whose kernel is as large as the image, at a quarter of the speed that it has
    for small ones.

    Args:
        padding: zeros above and below, left and right.

    Returns:
        [B, H', W', D], x's dtype.
    """
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT
    )


@partial(convolve.defjvp, symbolic_zeros=True)
def _convolve_jvp(
    stride: int, padding: Padding, primals: tuple[Array, Array], tangents: tuple
) -> tuple[Array, Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    y = convolve(x, kernel, stride, padding)
    dy = jnp.zeros_like(y)
    if not isinstance(dx, SymbolicZero):
        dy += convolve(dx, kernel, stride, padding)
    if not isinstance(dkernel, SymbolicZero):
        dy += jax.lax.platform_dependent(
            x,
            dkernel,
            cpu=partial(_convolve_by_windows, stride=stride, padding=padding),
            default=lambda x, dkernel: convolve(x, dkernel, stride, padding),
        )
    return y, dy


def _convolve_by_windows(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    """`convolve`, each window of the output by itself."""
    height, width = kernel.shape[:2]
    rows = _parts((x.shape[1] + sum(padding[0]) - height) // stride + 1)
    columns = _parts((x.shape[2] + sum(padding[1]) - width) // stride + 1)
    if len(rows) == len(columns) == 1:
        return convolve(x, kernel, stride, padding)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))

    def window(r: range, c: range) -> Array:
        seen = x[:, _reach(r, stride, height), _reach(c, stride, width)]
        return convolve(seen, kernel, stride, ((0, 0), (0, 0)))

    strips = [jnp.concatenate([window(r, c) for c in columns], axis=2) for r in rows]
    return jnp.concatenate(strips, axis=1)


def _parts(n: int) -> list[range]:
    """0 .. n-1 in parts of at most eight, but four parts at most: each is compiled by itself."""
    count = min(4, math.ceil(n / 8))
    ends = [n * i // count for i in range(count + 1)]
    return [range(*part) for part in pairwise(ends)]


def _reach(outputs: range, stride: int, size: int) -> slice:
    """The rows that a kernel of so many rows reads for these."""
    return slice(outputs[0] * stride, outputs[-1] * stride + size)


def repeat(x: Array) -> Array:
    """Double the side: each value becomes a 2 x 2 square."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def convolve_doubled(x: Array, kernel: Array) -> Array:
    """A 3 x 3 convolution, padded by 1, of `repeat(x)`.

    Args:
        x: [B, H, W, C].
        kernel: [3, 3, C, D].

    Returns:
        [B, 2 H, 2 W, D].
    """
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=_convolve_by_parity,
        default=lambda x, kernel: convolve(repeat(x), kernel, 1, ((1, 1), (1, 1))),
    )


def _convolve_by_parity(x: Array, kernel: Array) -> Array:
    """`convolve_doubled` in four ninths of the operations.

    A kernel's three rows fall on two rows of x: at even rows of the output the last two on the
    same one, at odd rows the first two; columns likewise. So the outputs of each parity are a
    2 x 2 convolution of x itself.
    """

    def merged(kernel: Array, axis: int, odd: int) -> Array:
        first, middle, last = jnp.split(kernel, 3, axis)
        return jnp.concatenate((first + middle, last) if odd else (first, middle + last), axis)

    def parity(i: int, j: int) -> Array:
        return convolve(x, merged(merged(kernel, 0, i), 1, j), 1, ((1 - i, i), (1 - j, j)))

    rows = [jnp.stack([parity(i, 0), parity(i, 1)], axis=3) for i in (0, 1)]
    b, h, w, _ = x.shape
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, kernel.shape[-1])
