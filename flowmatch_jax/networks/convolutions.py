"""Convolutions of feature maps [B, H, W, C], rearranged into forms that XLA computes fast.

docs/performance.md reports the speedup of each.
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
    """Cross-correlate x [B, H, W, C] with a kernel [h, w, C, D].

    On CPUs the derivative with respect to the kernel is computed window by window. XLA computes
    the gradient of a kernel as a convolution whose kernel is as large as the image, which runs at a
    quarter of the speed of convolutions with small kernels.

    Args:
        padding: rows of zeros (above, below) and columns of zeros (left, right).

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
    """Compute `convolve` separately for each window of the output."""
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
    """Split 0 .. n-1 into parts of about eight; at most four, as each is compiled separately."""
    count = min(4, math.ceil(n / 8))
    ends = [n * i // count for i in range(count + 1)]
    return [range(*part) for part in pairwise(ends)]


def _reach(outputs: range, stride: int, size: int) -> slice:
    """Return the input rows that a kernel with ``size`` rows reads for these output rows."""
    return slice(outputs[0] * stride, outputs[-1] * stride + size)


def repeat(x: Array) -> Array:
    """Double height and width by nearest-neighbour repetition."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def convolve_doubled(x: Array, kernel: Array) -> Array:
    """Convolve `repeat(x)` with a 3 x 3 kernel and a padding of 1.

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
    """Compute `convolve_doubled` with four ninths of the operations.

    The kernel's three rows cover two rows of x: for even output rows the last two fall on the same
    row of x, for odd output rows the first two. The same holds for columns. The outputs of each
    parity are therefore a 2 x 2 convolution of x itself.
    """

    def merged(kernel: Array, axis: int, odd: int) -> Array:
        first, middle, last = jnp.split(kernel, 3, axis)
        return jnp.concatenate((first + middle, last) if odd else (first, middle + last), axis)

    def parity(i: int, j: int) -> Array:
        return convolve(x, merged(merged(kernel, 0, i), 1, j), 1, ((1 - i, i), (1 - j, j)))

    rows = [jnp.stack([parity(i, 0), parity(i, 1)], axis=3) for i in (0, 1)]
    b, h, w, _ = x.shape
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, kernel.shape[-1])
