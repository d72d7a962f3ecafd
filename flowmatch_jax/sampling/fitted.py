"""Solvers with fitted coefficients: bespoke non-stationary solvers (Shaul et al. 2024, 2403.01329).

A solver of n calls has times t_0 < ... < t_{n-1} and coefficients a_i and b_ij:

    v_i = v(t_i, x_i),    x_{i+1} = a_i x_0 + sum_{j <= i} b_ij v_j,    i = 0 .. n - 1

Euler's method, the midpoint method and the Adams-Bashforth methods are special cases, and `fit`
begins with one of them. It then minimises the error to accurate solutions of a model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowmatch_jax.arrays import Array, Field
from flowmatch_jax.multistep import MULTISTEP
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.files import Unreadable, read_json, write_atomically
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


def adams(name: str, grid: np.ndarray) -> Coefficients:
    """Return a multistep method of the velocity, ab2, ab3 or abm2, on the grid [n + 1]."""
    i = np.arange(len(grid) - 1)
    _, weights = MULTISTEP[name].weights(grid, i, grid[1:], None)
    steps = sum(np.diag(weights[j:, j], -j) for j in range(weights.shape[1]))
    return Coefficients(np.asarray(grid[:-1]), np.ones(len(i)), np.cumsum(steps, axis=0))


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


def solve(field: Field, x0: Array, coefficients: Coefficients, unroll: bool = False) -> Solution:
    """Integrate a vector field by a solver with these coefficients.

    Args:
        field: v(t, x).
        x0: start, [B, ...].
        coefficients: the solver.
        unroll: compile each call by itself instead of a loop. XLA on CPU computes the derivatives
            of convolutions some ten times faster so.
    """
    t, a, b = (jnp.asarray(c, x0.dtype) for c in coefficients)
    n = len(t)

    def step(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
        x, v = carry
        v = v.at[i].set(field(t[i], x))
        return (a[i] * x0 + jnp.tensordot(jnp.tril(b)[i], v, axes=1), v), None

    start = (x0, jnp.zeros((n, *x0.shape), x0.dtype))
    (x, _), _ = jax.lax.scan(step, start, jnp.arange(n), unroll=unroll)
    calls = jnp.int32(n)
    return Solution(x, nfe=calls, steps=calls, rejected=jnp.int32(0), converged=all_finite(x))


def write(path: Path, coefficients: Coefficients, facts: dict[str, Any]) -> None:
    """Write a solver as JSON: "t", "a", the lower triangle of "b", and facts about its fit."""
    t, a, b = (np.asarray(c, np.float64) for c in coefficients)
    rows = [row[: i + 1].tolist() for i, row in enumerate(b)]
    record = facts | {"calls": len(t), "t": t.tolist(), "a": a.tolist(), "b": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, indent=1) + "\n")


def read(path: Path) -> tuple[Coefficients, dict[str, Any]]:
    """Read a solver that `write` wrote; returns the coefficients and the facts.

    Raises:
        UserError: the file is missing or is no fitted solver; its field is "file".
    """
    try:
        facts = read_json(path)
        t, a, rows = (facts.pop(name) for name in ("t", "a", "b"))
        n = facts.pop("calls")
        b = np.array([[*row, *[0.0] * (n - len(row))] for row in rows], np.float64)
        found = Coefficients(np.array(t, np.float64), np.array(a, np.float64), b)
        if (found.t.shape, found.a.shape, found.b.shape) != ((n,), (n,), (n, n)):
            raise ValueError("its coefficients have other shapes")
        return found, facts
    except OSError as error:
        allowed = f"it cannot be read ({error.strerror}); --mode=fit_solver writes it"
        raise UserError("file", str(path), allowed) from error
    except (Unreadable, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError("file", str(path), f"it is no fitted solver: {error}") from error
