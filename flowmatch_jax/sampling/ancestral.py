"""Diffusion that is told its noise level instead of the time: SR3's (Saharia et al. 2021).

A point x_a = a x_1 + sqrt(1 - a^2) x_0 has the level a, the papers' square root of gamma: 0 is
noise, 1 is data. A network eps(a, x_a) that was trained on all levels in between may be sampled by
fewer steps than the schedule it was trained with.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from flowmatch_jax import solvers
from flowmatch_jax.arrays import Array
from flowmatch_jax.paths import GaussianPath


def noise_levels(path: GaussianPath, steps: int) -> Array:
    """A schedule [steps + 1], from the noise up: alpha_t at equal steps of t on a VP path."""
    times = jnp.linspace(0, path.t_end, steps + 1)
    return path.mean(times, jnp.ones(steps + 1))


def draw_levels(key: Array, n: int, levels: Array) -> Array:
    """a [n], whose square gamma is uniform between two neighbours of a schedule, drawn first.

    SR3's distribution. WaveGrad's (Chen et al. 2020), otherwise the same, has a itself uniform.
    """
    place_key, between_key = jax.random.split(key)
    i = jax.random.randint(place_key, (n,), 0, len(levels) - 1)
    gamma = levels**2
    return jnp.sqrt(jax.random.uniform(between_key, (n,), minval=gamma[i], maxval=gamma[i + 1]))


def log_snr(a: Array) -> Array:
    """log(a / sqrt(1 - a^2)), half the log signal-to-noise ratio of a level; of its shape."""
    return jnp.log(a) - jnp.log1p(-(a**2)) / 2


def sample(
    predict: Callable[[Array, Array], Array], key: Array, x: Array, levels: Array
) -> solvers.Solution:
    """From noise x [B, ...] along a schedule to data, by as many calls as it has steps.

    One from level a to b takes the share alpha = (a / b)^2 of the signal for what it was:

        x_b = (x_a - (1 - alpha) / sqrt(1 - a^2) eps) / sqrt(alpha) + sqrt(1 - alpha) z,

    z ~ N(0, I), but z = 0 in the last step (SR3's Algorithm 2).

    Args:
        predict: (a [], x) -> the noise in x, of x's shape.
        key: draws the noise z.
        levels: of `noise_levels`.
    """
    steps = len(levels) - 1

    def step(x: Array, at: tuple[Array, Array, Array]) -> tuple[Array, None]:
        i, a, b = at
        alpha = (a / b) ** 2
        mean = (x - (1 - alpha) / jnp.sqrt(1 - a**2) * predict(a, x)) / jnp.sqrt(alpha)
        z = jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
        return mean + jnp.where(i < steps - 1, jnp.sqrt(1 - alpha), 0) * z, None

    x, _ = jax.lax.scan(step, x, (jnp.arange(steps), levels[:-1], levels[1:]))
    return solvers.counted(x, steps)
