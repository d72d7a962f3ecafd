"""Solvers with fitted coefficients: bespoke non-stationary solvers (Shaul et al. 2024, 2403.01329).

A solver of n calls has times t_0 < ... < t_{n-1} and coefficients a_i and b_ij:

    v_i = v(t_i, x_i),    x_{i+1} = a_i x_0 + sum_{j <= i} b_ij v_j,    i = 0 .. n - 1

Euler's method, the midpoint method and the Adams-Bashforth methods are special cases, and `fit`
begins with one of them. It then minimises the error to accurate solutions of a model.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowmatch_jax.arrays import Array, Field
from flowmatch_jax.solvers import Solution, all_finite


class Coefficients(NamedTuple):
    """The coefficients of a solver with n calls of the field.

    Attributes:
        t: times of the calls, [n], increasing.
        a: weights of the start x_0, [n].
        b: weights of the velocities, [n, n]; only b_ij with j <= i are used.
    """

    t: Array
    a: Array
    b: Array


def euler(grid: np.ndarray) -> Coefficients:
    """Return Euler's method with one call per step of the grid [n + 1]."""
    h = np.diff(grid)
    return Coefficients(np.asarray(grid[:-1]), np.ones(len(h)), np.tril(np.tile(h, (len(h), 1))))


def ab2(grid: np.ndarray) -> Coefficients:
    """Return the Adams-Bashforth method of order 2, x += h ((1 + w/2) v_i - w/2 v_{i-1}).

    w is the ratio of a step to the one before; the first step is Euler's.
    """
    h = np.diff(grid)
    w = np.concatenate([[0.0], h[1:] / h[:-1]])
    steps = np.diag(h * (1 + w / 2)) - np.diag((h * w / 2)[1:], -1)
    return Coefficients(np.asarray(grid[:-1]), np.ones(len(h)), np.cumsum(steps, axis=0))


def midpoint(grid: np.ndarray) -> Coefficients:
    """Return the midpoint method, which makes two calls in each step of the grid [n / 2 + 1]."""
    h, n = np.diff(grid), 2 * (len(grid) - 1)
    t, b = np.empty(n), np.zeros((n, n))
    t[::2], t[1::2] = grid[:-1], grid[:-1] + h / 2
    for step in range(len(h)):
        b[2 * step, 1 : 2 * step : 2] = h[:step]  # to the start of the step
        b[2 * step, 2 * step] = h[step] / 2  # and by Euler's half step to its midpoint
        b[2 * step + 1, 1 : 2 * step + 2 : 2] = h[: step + 1]  # to its end
    return Coefficients(t, np.ones(n), b)


def solve(field: Field, x0: Array, coefficients: Coefficients) -> Solution:
    """Integrate a vector field by a solver with these coefficients.

    Args:
        field: v(t, x).
        x0: start, [B, ...].
        coefficients: the solver.
    """
    t, a, b = (jnp.asarray(c, x0.dtype) for c in coefficients)
    n = len(t)

    def step(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
        x, v = carry
        v = v.at[i].set(field(t[i], x))
        return (a[i] * x0 + jnp.tensordot(jnp.tril(b)[i], v, axes=1), v), None

    (x, _), _ = jax.lax.scan(step, (x0, jnp.zeros((n, *x0.shape), x0.dtype)), jnp.arange(n))
    calls = jnp.int32(n)
    return Solution(x, nfe=calls, steps=calls, rejected=jnp.int32(0), converged=all_finite(x))
