"""The divergence of vector fields, exactly or by Hutchinson's estimator.

The estimator is tr A = E z . A z for probes z with mean 0 and covariance I. A probe's variance
comes from the entries A_ij off the diagonal, which z_i z_j multiplies. Rademacher probes have no
variance from the diagonal, and therefore less than Gaussian ones. Orthogonal probes cancel most of
these products among themselves.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from flowmatch_jax.arrays import Array, Field, sum_dims
from flowmatch_jax.runtime.errors import UserError

DIVERGENCES = ("exact", "hutchinson")


def divergence(
    field: Field, t: Array | float, x: Array, probes: Array | None = None
) -> tuple[Array, Array]:
    """Compute v_t(x) and its divergence, sum_i dv_i / dx_i, for each sample.

    Args:
        field: v(t, x), independent between samples.
        t: [] or [B].
        x: [B, ...], any shape.
        probes: [P, B, ...] with mean 0 and covariance I, for Hutchinson's estimate, the mean of
            z . (dv/dx) z over P probes. None: exact, with one derivative per dimension.

    Returns:
        (v [B, ...], div [B]).
    """
    v, estimates = divergence_estimates(field, t, x, probes)
    return v, estimates.mean(axis=0)


def divergence_estimates(
    field: Field, t: Array | float, x: Array, probes: Array | None = None, block: int = 1
) -> tuple[Array, Array]:
    """Compute v [B, ...] and the divergence by each probe, [P, B], or [1, B] if it is exact.

    An exact one computes ``block`` derivatives at once.
    """

    def along(z: Array) -> tuple[Array, Array]:
        v, dv = jax.jvp(lambda x: field(t, x), (x,), (z,))
        return v, sum_dims(z * dv)

    if probes is not None:
        # vmap passes NumPy arrays through, and custom derivatives do not accept them in jit.
        return jax.vmap(along, out_axes=(None, 0))(jnp.asarray(probes))

    v, derivative = jax.linearize(lambda x: field(t, x), x)
    dims = math.prod(x.shape[1:])

    def entry(i: Array) -> Array:
        """Compute dv_i / dx_i, [B]; 0 for i >= dims."""
        direction = jnp.zeros((dims,), x.dtype).at[i].set(1, mode="drop").reshape(x.shape[1:])
        dv = derivative(jnp.broadcast_to(direction, x.shape))
        return dv.reshape(x.shape[0], dims).at[:, i].get(mode="fill", fill_value=0)

    def add(total: Array, indices: Array) -> tuple[Array, None]:
        return total + jax.vmap(entry)(indices).sum(axis=0), None

    indices = jnp.arange(-(-dims // block) * block).reshape(-1, block)
    total, _ = jax.lax.scan(add, jnp.zeros(x.shape[0], x.dtype), indices)
    return v, total[None]


def rademacher(key: Array, count: int, like: Array) -> Array:
    """Draw independent signs, [count, *like.shape]."""
    return jax.random.rademacher(key, (count, *like.shape), like.dtype)


def gaussian(key: Array, count: int, like: Array) -> Array:
    """Draw independent numbers from N(0, 1), [count, *like.shape]."""
    return jax.random.normal(key, (count, *like.shape), like.dtype)


def orthogonal(key: Array, count: int, like: Array) -> Array:
    """Draw Rademacher probes that are orthogonal to each other, [count, *like.shape].

    Each dimension has one of ``count`` colours, so that neighbouring pixels have different ones:
    those of a chessboard for two probes, of 2 x 2 squares for four. Probe p is random signs times
    row p of a Hadamard matrix, by colour. The mean of z_i z_j over the probes is therefore 0 unless
    i and j have the same colour, so that the strong derivatives between neighbours do not enter the
    variance (probing: Tang & Saad 2012). Each probe is unbiased by itself, but they are dependent.

    Args:
        key: key of the signs.
        count: number of probes, a power of two.
        like: [B, ...]; images [B, H, W, C] are coloured by rows and columns, other arrays by index.

    Raises:
        UserError: the number of probes is no power of two.
    """
    validate_orthogonal(count)
    signs = jax.random.rademacher(key, like.shape, like.dtype)
    rows = hadamard(count)[:, colours(count, like.shape[1:])]
    return signs * jnp.asarray(rows, like.dtype)[:, None]


def validate_orthogonal(count: int) -> None:
    """Raise UserError unless the number of probes is a power of two."""
    if count & (count - 1):
        raise UserError("probes", count, "orthogonal probes are 1, 2, 4, 8, ...")


def colours(count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Colour the dimensions of a sample, [*shape], with integers in [0, count), a power of two."""
    if len(shape) != 3:
        return np.arange(np.prod(shape)).reshape(shape) % count
    row, column, _ = np.indices(shape)
    bits = count.bit_length() - 1
    side = 2 ** (bits // 2)  # the colours of a square with this side differ
    within = side * (row % side) + column % side
    if bits % 2 == 0:
        return within
    return 2 * within + (row // side + column // side) % 2


def hadamard(n: int) -> np.ndarray:
    """Return the Hadamard matrix [n, n] of Sylvester, with orthogonal rows of signs."""
    matrix = np.ones((1, 1))
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


PROBES = {"rademacher": rademacher, "gaussian": gaussian, "orthogonal": orthogonal}
