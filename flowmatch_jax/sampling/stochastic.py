"""Stochastic sampling: SDEs with the same marginals as the flow, solved by diffrax.

For any noise level g_t >= 0, the SDE

    dx = (v(t, x) + g_t^2 / 2 S(t, x)) dt + g_t dW

has the marginals p_t of the flow dx/dt = v(t, x), where S is the score of p_t (Song et al. 2021;
Ma et al. 2024 for this direction of time). The score adds no call of the network: it follows from
the velocity, as S = -x_0 / sigma_t with the noise x_0 that the velocity predicts. This takes noise
that is Gaussian given the data: with another coupling, E[x_0 | x_t] does not determine the score.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np

from flowmatch_jax.arrays import Array, Field
from flowmatch_jax.paths import GaussianPath, coefficients, squared_diffusion
from flowmatch_jax.predictions import DATA_AND_NOISE_FROM
from flowmatch_jax.runge_kutta import STOCHASTIC, fixed_steps
from flowmatch_jax.solvers import Solution, Solver, Times, all_finite, step_times

# (path, t []) -> g_t [], in units of x per root of t
NoiseLevel = Callable[[GaussianPath, Array], Array]


def root_of_sigma(path: GaussianPath, t: Array) -> Array:
    """g = sqrt(sigma_t): the noise falls to almost 0 at the data (Ma et al. 2024)."""
    return jnp.sqrt(_at(path, t).sigma)


def diffusion(path: GaussianPath, t: Array) -> Array:
    """g = sqrt(beta): the reverse of the path's diffusion process (Song et al. 2021).

    The path must have mu_0 > 0, because beta is infinite where mu_t = 0.
    """
    return jnp.sqrt(squared_diffusion(_at(path, t)))


def sine(path: GaussianPath, t: Array) -> Array:
    """g = sin(pi t / t_end): no noise at either end."""
    return jnp.sin(jnp.pi * t / path.t_end)


def constant(path: GaussianPath, t: Array) -> Array:
    """g = 1."""
    return jnp.ones_like(t)


NOISE_LEVELS: dict[str, NoiseLevel] = {
    "sigma": root_of_sigma,
    "diffusion": diffusion,
    "sine": sine,
    "constant": constant,
}


def solve(
    field: Field,
    x0: Array,
    keys: Array,
    path: GaussianPath,
    solver: Solver,
    save_at: Times | None = None,
) -> Solution:
    """Solve the SDE of a field from t = 0 to the path's t_end.

    Args:
        field: v(t, x), the marginal velocity of the path.
        x0: the source, [B, ...].
        keys: a key for the noise of each sample, [B].
        path: a path with a mean alpha_t x_1 and a std that does not depend on x_1.
        solver: a stochastic method, its steps and its noise level.
        save_at: times at which to save the state; between two steps it is interpolated linearly.

    Returns:
        The solution; its NFE counts calls of the field.
    """
    solver.validate()
    times = jnp.asarray(_grid(solver, path), x0.dtype)
    kept = diffrax.SubSaveAt(t1=True)
    if save_at is not None:
        kept = (kept, diffrax.SubSaveAt(ts=jnp.asarray(save_at, x0.dtype)))
    motions = _BrownianMotions(keys, x0.shape[1:], x0.dtype)
    solution = diffrax.diffeqsolve(
        _equation(field, path, solver.noise or root_of_sigma, motions),
        STOCHASTIC[solver.method].make(),
        t0=times[0],
        t1=times[-1],
        y0=x0,
        saveat=diffrax.SaveAt(subs=kept),
        throw=False,
        **fixed_steps(times, solver.adjoint),
    )
    end, trajectory = (solution.ys, None) if save_at is None else solution.ys
    calls = jnp.int32(len(call_times(solver, path)))
    return Solution(
        x=end[0],
        nfe=calls,
        steps=jnp.int32(len(times) - 1),
        rejected=jnp.int32(0),
        converged=all_finite(end),
        trajectory=trajectory,
    )


def call_times(solver: Solver, path: GaussianPath) -> np.ndarray:
    """Return the times at which a solve calls the field, in order."""
    times = _grid(solver, path)
    within = np.asarray(STOCHASTIC[solver.method].calls)
    return (times[:-1, None] + np.diff(times)[:, None] * within).ravel()


def _grid(solver: Solver, path: GaussianPath) -> np.ndarray:
    return step_times(solver, np.float64(0), np.float64(path.t_end), np)


def _equation(
    field: Field, path: GaussianPath, g: NoiseLevel, motions: _BrownianMotions
) -> diffrax.MultiTerm:
    """Return the drift and the noise of the SDE as terms of diffrax."""

    def drift(t: Array, x: Array, _: Any) -> Array:
        c, v = coefficients(path, t, x), field(t, x)
        _, noise = DATA_AND_NOISE_FROM["velocity"](c, x, v)
        return v - g(path, t) ** 2 / (2 * c.sigma) * noise

    def diffusion(t: Array, x: Array, _: Any) -> lineax.AbstractLinearOperator:
        return lineax.DiagonalLinearOperator(jnp.broadcast_to(g(path, t), x.shape))

    return diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, motions))


class _BrownianMotions(diffrax.AbstractBrownianPath):
    """A Brownian motion per sample, by its key alone.

    An increment is drawn anew from the times between which it is asked for, which suffices for
    steps that are known before the solve.
    """

    keys: Array
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)
    levy_area: type = eqx.field(static=True, default=diffrax.SpaceTimeLevyArea)

    @property
    def t0(self) -> float:
        return -jnp.inf

    @property
    def t1(self) -> float:
        return jnp.inf

    def evaluate(
        self, t0: Array, t1: Array | None = None, left: bool = True, use_levy: bool = False
    ) -> Any:
        def of_sample(key: Array) -> Any:
            like = jax.ShapeDtypeStruct(self.shape, self.dtype)
            motion = diffrax.UnsafeBrownianPath(like, key, self.levy_area)
            return motion.evaluate(t0, t1, left, use_levy)

        increments = jax.vmap(of_sample)(self.keys)
        if not use_levy:
            return increments
        return eqx.tree_at(lambda area: area.dt, increments, increments.dt[0])


def _at(path: GaussianPath, t: Array) -> Any:
    return coefficients(path, t, jnp.ones_like(t))
