"""Flow maps: samples in one or a few calls, without a solve.

The flow map X(t, s, x) of a vector field v carries the point x at time t to its place at time s.
With the average velocity u over that time,

    X(t, s, x) = x + (s - t) u(t, s, x),        u(t, t, x) = v(t, x),

so that a network for u gives both a map and a field. Two relations determine u from v:

    X(s, r, X(t, s, x)) = X(t, r, x)                                (composition)
    u = v + (s - t) du/dt,  du/dt = the derivative of u along (dt, ds, dx) = (1, 0, v)

The second is the identity of MeanFlow (Geng et al. 2025, 2505.13447), by which `map_objectives`
trains a network.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flowmatch_jax.arrays import Array, AverageVelocity, FlowMap, expand_time
from flowmatch_jax.solvers import Solution, Times, counted


def from_average_velocity(u: AverageVelocity) -> FlowMap:
    """Create the flow map X(t, s, x) = x + (s - t) u(t, s, x)."""
    return lambda t, s, x: x + expand_time(jnp.asarray(s, x.dtype) - t, x) * u(t, s, x)


def along_flow(u: AverageVelocity, v: Array, t: Array, s: Array, x: Array) -> tuple[Array, Array]:
    """Compute u(t, s, x) and its derivative along the flow, du/dt, by one forward-mode pass.

    Args:
        u: the average velocity.
        v: the velocity at t and x, [B, ...].
        t, s: [B].
        x: [B, ...].
    """
    return jax.jvp(u, (t, s, x), (jnp.ones_like(t), jnp.zeros_like(s), v))


def follow(flow_map: FlowMap, x: Array, times: Times, save_at: Times | None = None) -> Solution:
    """Carry points through the times t_0, ..., t_n, by one call of the map for each step.

    Args:
        flow_map: X(t, s, x).
        x: the points at t_0, [B, ...].
        times: t_0, ..., t_n, increasing.
        save_at: times between t_0 and t_n at which to save the state. Each needs a further call,
            from the start of its step.

    Returns:
        The points at t_n; ``nfe`` counts the calls.
    """
    times = jnp.asarray(times, x.dtype)

    def step(x: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        return flow_map(*ends, x), x

    end, starts = jax.lax.scan(step, x, (times[:-1], times[1:]))
    calls = len(times) - 1
    if save_at is None:
        return counted(end, calls)
    save_at = jnp.asarray(save_at, x.dtype)
    steps = jnp.clip(jnp.searchsorted(times, save_at, side="right") - 1, 0, calls - 1)
    save = lambda of: flow_map(times[of[0]], of[1], starts[of[0]])  # noqa: E731
    trajectory = jax.lax.map(save, (steps, save_at))
    return counted(end, calls + len(save_at))._replace(trajectory=trajectory)
