"""Ancestral sampling of diffusion models conditioned on the noise level: SR3 (Saharia et al. 2021).

A point x_a = a x_1 + sqrt(1 - a^2) x_0 has the level a, the square root of the papers' gamma: 0 is
noise, 1 is data. A network eps(a, x_a) that was trained on a continuum of levels can be sampled
with fewer steps than its training schedule has.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from flowmatch_jax import solvers
from flowmatch_jax.arrays import Array
from flowmatch_jax.paths import GaussianPath


def noise_levels(path: GaussianPath, steps: int) -> Array:
    """Create a schedule [steps + 1] from noise to data: alpha_t at equal steps of t (VP path)."""
    times = jnp.linspace(0, path.t_end, steps + 1)
    return path.mean(times, jnp.ones(steps + 1))


def draw_levels(key: Array, n: int, levels: Array) -> Array:
    """Draw levels a [n] for training as SR3 does.

    An interval between two neighbours of the schedule is drawn first, then gamma = a^2 uniformly in
    it. WaveGrad (Chen et al. 2020) draws a instead of gamma uniformly.
    """
    place_key, between_key = jax.random.split(key)
    i = jax.random.randint(place_key, (n,), 0, len(levels) - 1)
    gamma = levels**2
    return jnp.sqrt(jax.random.uniform(between_key, (n,), minval=gamma[i], maxval=gamma[i + 1]))


def log_snr(a: Array) -> Array:
    """Compute log(a / sqrt(1 - a^2)), half the log signal-to-noise ratio of a level; a's shape."""
    return jnp.log(a) - jnp.log1p(-(a**2)) / 2


def sample(
    predict: Callable[[Array, Array], Array], key: Array, x: Array, levels: Array
) -> solvers.Solution:
    """Sample from noise x [B, ...] along a schedule, with one network call per step.

    The step from level a to level b is, with alpha = (a / b)^2,

        x_b = (x_a - (1 - alpha) / sqrt(1 - a^2) eps) / sqrt(alpha) + sqrt(1 - alpha) z,

    where z ~ N(0, I), but z = 0 in the last step (SR3's Algorithm 2).

    Args:
        predict: (a [], x) -> the noise in x, x's shape.
        key: key of the noise z, [], or of that of each sample, [B].
        x: the initial noise.
        levels: schedule, such as the result of `noise_levels`.
    """
    steps = len(levels) - 1

    def step(x: Array, at: tuple[Array, Array, Array]) -> tuple[Array, None]:
        i, a, b = at
        alpha = (a / b) ** 2
        mean = (x - (1 - alpha) / jnp.sqrt(1 - a**2) * predict(a, x)) / jnp.sqrt(alpha)
        z = (jax.vmap(_noise, (0, None, 0)) if key.ndim else _noise)(key, i, x)
        return mean + jnp.where(i < steps - 1, jnp.sqrt(1 - alpha), 0) * z, None

    x, _ = jax.lax.scan(step, x, (jnp.arange(steps), levels[:-1], levels[1:]))
    return solvers.counted(x, steps)


def _noise(key: Array, i: Array, x: Array) -> Array:
    """Draw the noise of step i, like x."""
    return jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
