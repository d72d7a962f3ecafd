"""Times: how t is drawn in training, and where a fixed method's steps lie in a solve.

A time distribution is a function (key, n, t_end) -> t [n], float32, in [0, t_end]; a grid is a
function steps -> times [steps + 1], float64, from 0 to 1.
"""

from __future__ import annotations

import jax
import numpy as np

from flowmatch_jax.arrays import Array


def uniform(key: Array, n: int, t_end: float) -> Array:
    """t ~ U[0, t_end], independent for each sample: the paper's."""
    return jax.random.uniform(key, (n,), maxval=t_end)


def skewed(key: Array, n: int, t_end: float) -> Array:
    """t = t_end / (1 + exp(-1.2 + 1.2 z)), z ~ N(0, 1): more often near the data.

    On the OT path sigma = exp(-1.2 + 1.2 z) is noise over signal, EDM's distribution of noise
    levels. Scaled by t_end, so that no time lies beyond the path.
    """
    z = jax.random.normal(key, (n,))
    return t_end * jax.nn.sigmoid(1.2 - 1.2 * z)


TIMES = {"uniform": uniform, "skewed": skewed}


def uniform_grid(steps: int) -> np.ndarray:
    """Equal steps."""
    return np.linspace(0, 1, steps + 1)


def edm_grid(steps: int) -> np.ndarray:
    """Short steps at both ends: EDM's noise levels (Karras et al. 2022, Eq. 5), t = 1/(1 + sigma).

    sigma_i = (80^(1/7) + i/(steps - 1) (0.002^(1/7) - 80^(1/7)))^7, noise over signal on the OT
    path. sigma = 80 is t = 0.012, but the source is at 0, where the first step starts; the last
    one goes from sigma = 0.002 to the data at 1.
    """
    sigma = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), steps) ** 7
    return np.concatenate([[0.0], 1 / (1 + sigma[1:]), [1.0]])


GRIDS = {"uniform": uniform_grid, "edm": edm_grid}
