"""Samples of a flow: the solver, the path, and the guidance that they are drawn with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from flowmatch_jax.arrays import Array, FlowMap, Inputs
from flowmatch_jax.flow_maps import follow
from flowmatch_jax.paths import GaussianPath
from flowmatch_jax.runge_kutta import STOCHASTIC
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.sampling import linear, piecewise, stochastic
from flowmatch_jax.sampling.guidance import Fields, Guidance, network_calls, stretches, whole_field
from flowmatch_jax.sampling.linear import Coefficients
from flowmatch_jax.sampling.schedule import along
from flowmatch_jax.solvers import Solution, Solver, integrate, step_times


def sample(
    fields: Fields,
    x0: Array,
    key: Array,
    inputs: Inputs,
    path: GaussianPath,
    solver: Solver | Coefficients,
    guidance: Guidance,
    save_at: Sequence[float] | Array | None = None,
) -> Solution:
    """Draw samples of a flow from source noise.

    Args:
        fields: the vector fields of the model.
        x0: the source noise of the path, [B, ...].
        key: key of a stochastic method's noise, [], or of each sample, [B].
        inputs: conditioning inputs of the samples.
        path: the path of the model.
        solver: the solver. If it has a path, samples are drawn along that.
        guidance: guidance settings.
        save_at: times of the trajectory, as in `solvers.integrate`, on the path of the samples.

    Returns:
        The solution; its NFE counts network calls.

    Raises:
        UserError: a trajectory is asked for with a fitted solver.
    """
    if isinstance(solver, Coefficients):
        if save_at is not None:
            allowed = "it has no states between its ends: choose another method"
            raise UserError("config.solver.method", "fitted", allowed)
        solution = linear.solve(whole_field(fields, inputs, guidance), x0, solver)
        return solution._replace(nfe=network_calls(jnp.asarray(solver.t), guidance))
    other = solver.path or path
    fields = fields.map(lambda field: along(field, path, other))
    x0 = x0 * (other.source_std / path.source_std)
    if solver.method in STOCHASTIC:
        keys = key if key.ndim else jax.random.split(key, len(x0))
        field = whole_field(fields, inputs, guidance)
        solution = stochastic.solve(field, x0, keys, other, solver, save_at)
        times = jnp.asarray(stochastic.call_times(solver, other))
        return solution._replace(nfe=network_calls(times, guidance))
    how = (0.0, other.t_end, replace(solver, path=other), save_at)
    if guidance:
        return piecewise.follow(stretches(fields, inputs, guidance), x0, *how)
    return integrate(fields.of(**inputs), x0, *how)


def by_map(
    flow_map: FlowMap,
    x0: Array,
    path: GaussianPath,
    solver: Solver,
    save_at: Sequence[float] | Array | None = None,
) -> Solution:
    """Draw samples by calls of a flow map instead of a solve, one for each step of the solver.

    Args:
        flow_map: the flow map of the model.
        x0, path, save_at: as in `sample`.
        solver: its steps or its grid are those of the map.

    Raises:
        UserError: the solver has another path.
    """
    if solver.path not in (None, path):
        allowed = "a flow map follows the path of training: leave it unset"
        raise UserError("config.solver.path", solver.path, allowed)
    solver.validate()
    times = step_times(solver, np.float64(0), np.float64(path.t_end), np)
    return follow(flow_map, x0, times, save_at)
