"""Fixed-step solvers as their coefficients.

The states of a fixed-step solver are linear combinations of the start and of the velocities at the
states before. A solver of n calls is therefore n times t_i and the coefficients a_i and b_ij of

    v_i = v(t_i, x_i),    x_{i+1} = a_i x_0 + sum_{j <= i} b_ij v_j,    i = 0 .. n - 1

where x_n is the result. One compiled program runs all solvers of n calls, and the coefficients can
be fitted to a model (`fit`).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowmatch_jax.arrays import Array, Field, module_of
from flowmatch_jax.multistep import MULTISTEP
from flowmatch_jax.paths import GaussianPath
from flowmatch_jax.predictions import convert
from flowmatch_jax.runge_kutta import FIXED, tableau
from flowmatch_jax.solvers import Solution, all_finite

METHODS = (*FIXED, *MULTISTEP)
OF_VELOCITY = tuple(m for m in METHODS if m in FIXED or not MULTISTEP[m].predicts_data)


class Coefficients(NamedTuple):
    """The coefficients of a solver with n calls of the field.

    Attributes:
        t: times of the calls, [n].
        a: weights of the start x_0, [n].
        b: weights of the velocities, [n, n]; only b_ij with j <= i are used.
    """

    t: Array
    a: Array
    b: Array


def calls_per_step(method: str) -> int:
    """Return the number of calls in a step of a method, if the step is given."""
    return 1 if method in MULTISTEP else len(tableau(method).times)


def of_method(
    method: str, grid: np.ndarray | Array, path: GaussianPath | None = None
) -> Coefficients:
    """Return a method's coefficients on a time grid [steps + 1].

    Args:
        method: a Runge-Kutta or multistep method.
        grid: the times. If they are a JAX array, the result is differentiable by them; dpmpp2m
            takes a NumPy array.
        path: the path of the field, for dpmpp2m.
    """
    if method in MULTISTEP:
        return _multistep(method, grid, path)
    return _runge_kutta(method, grid)


def _runge_kutta(method: str, grid: np.ndarray | Array) -> Coefficients:
    xp, (lower, last, within) = module_of(grid), tableau(method)
    h, stages = xp.diff(grid), len(within)
    n = stages * len(h)
    x, rows = xp.zeros(n), []  # the start of the step, and all states after a call
    for k in range(len(h)):
        of_step = np.eye(n)[stages * k : stages * (k + 1)]
        for weights in (*lower, last):
            rows.append(x + h[k] * (np.asarray(weights) @ of_step[: len(weights)]))
        x = rows[-1]
    times = (grid[:-1, None] + h[:, None] * np.asarray(within)).ravel()
    return Coefficients(times, xp.ones(n), xp.stack(rows))


def _multistep(method: str, grid: np.ndarray | Array, path: GaussianPath | None) -> Coefficients:
    xp, n, of = module_of(grid), len(grid) - 1, MULTISTEP[method]
    keep, weights = of.weights(grid, np.arange(n), grid[1:], path)
    x, f, rows = np.eye(n + 1)[0], [], []  # in terms of x_0, v_0, .., v_{n-1}
    for i in range(n):
        v = np.eye(n + 1)[i + 1]
        f.append(_data(path, grid[i], x, v) if of.predicts_data else v)
        past = min(weights.shape[1], i + 1)
        x = keep[i] * x + sum(weights[i, j] * f[i - j] for j in range(past))
        rows.append(x)
    states = xp.stack(rows)
    return Coefficients(grid[:-1], states[:, 0], states[:, 1:])


def _data(path: GaussianPath, t: float, x: np.ndarray, v: np.ndarray) -> np.ndarray:
    with jax.ensure_compile_time_eval():
        return np.asarray(convert(path, t, jnp.asarray(x), jnp.asarray(v), "velocity", "data"))


def solve(field: Field, x0: Array, coefficients: Coefficients) -> Solution:
    """Integrate a vector field by a solver with these coefficients.

    Args:
        field: v(t, x).
        x0: start, [B, ...].
        coefficients: the solver.
    """
    t, a, b = (jnp.asarray(c, x0.dtype) for c in coefficients)
    n, b = len(t), jnp.tril(b)

    def call(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        x, v = state
        v = v.at[i].set(field(t[i], x))
        return a[i] * x0 + jnp.tensordot(b[i], v, axes=1), v

    x, _ = jax.lax.fori_loop(0, n, call, (x0, jnp.zeros((n, *x0.shape), x0.dtype)))
    calls = jnp.int32(n)
    return Solution(x, nfe=calls, steps=calls, rejected=jnp.int32(0), converged=all_finite(x))
