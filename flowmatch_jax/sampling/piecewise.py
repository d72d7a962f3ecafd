"""Solves along vector fields that change at known times.

Each interval between these times is solved separately, so that an adaptive method spends no steps
on the discontinuity, and network calls are counted per field.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowmatch_jax.arrays import Array
from flowmatch_jax.solvers import Solution, Solver, integrate


class Stretch(NamedTuple):
    """A vector field that is followed up to a time.

    Attributes:
        until: this time.
        field: v(t, x).
        calls: network calls per call of the field.
    """

    until: float
    field: Callable[[Array, Any], Any]
    calls: int = 1


def follow(
    stretches: Sequence[Stretch],
    x: Any,
    t0: float = 0.0,
    t1: float = 1.0,
    solver: Solver = Solver(),
    save_at: Sequence[float] | Array | None = None,
) -> Solution:
    """Follow the vector fields one after the other from t0 to t1 > t0.

    A fixed-step method keeps its time grid; each step uses the field of the stretch in which it
    begins.

    Args:
        stretches: the fields in order of time, the last until t1 or later; empty ones are skipped.
        x, solver, save_at: as in `solvers.integrate`.
        t0, t1: start and end time.

    Returns:
        The solution as in `solvers.integrate`; its nfe counts network calls.
    """
    solver.validate()
    grid = solver.grid if solver.steps is None else np.linspace(t0, t1, solver.steps + 1)
    parts: list[Solution] = []
    for stretch in stretches:
        end = min(stretch.until, t1)
        if grid is not None:
            end = grid[np.searchsorted(grid, end - 1e-6)]  # a time may have been rounded
        if end <= t0:
            continue
        part_of_it = replace(solver, steps=None, grid=_within(grid, t0, end))
        # A state at a border is saved by the stretch that ends there.
        kept = _within(save_at, np.nextafter(t0, t1) if parts else t0, end)
        part = integrate(stretch.field, x, t0, end, part_of_it, kept)
        parts.append(part._replace(nfe=stretch.calls * part.nfe))
        x, t0 = part.x, end
    states = [part.trajectory for part in parts if part.trajectory is not None]
    return Solution(
        x=x,
        nfe=sum(part.nfe for part in parts),
        steps=sum(part.steps for part in parts),
        rejected=sum(part.rejected for part in parts),
        converged=jnp.stack([part.converged for part in parts]).all(),
        trajectory=jax.tree.map(lambda *x: jnp.concatenate(x), *states) if states else None,
    )


def _within(times: Any, begin: float, end: float) -> np.ndarray | None:
    """Return the times in [begin, end], or None if there are none."""
    times = np.asarray(() if times is None else times)
    times = times[(begin <= times) & (times <= end)]
    return times if len(times) else None
