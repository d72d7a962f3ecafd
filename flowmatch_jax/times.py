"""Times: how t is drawn in training, and where the steps of a fixed method lie in a solve.

A time distribution is a function (key, n, path) -> t [n], float32, in [0, path.t_end]; a grid is a
function (steps, path) -> times [steps + 1], float64, from 0 to path.t_end.

What is defined by a noise level is defined by sigma_t / alpha_t, noise over signal, so that it is
the same on every path.
"""

from __future__ import annotations

import jax
import numpy as np

from flowmatch_jax.arrays import Array
from flowmatch_jax.paths import GaussianPath, log_snr, time_at_log_snr


def uniform(key: Array, n: int, path: GaussianPath) -> Array:
    """t ~ U[0, t_end], independent for each sample: the paper's."""
    return jax.random.uniform(key, (n,), maxval=path.t_end)


def skewed(key: Array, n: int, path: GaussianPath) -> Array:
    """sigma_t / alpha_t = exp(-1.2 + 1.2 z), z ~ N(0, 1): more often near the data.

    EDM's distribution of noise levels (Karras et al. 2022). On the OT path it is
    t = 1 / (1 + exp(-1.2 + 1.2 z)), that of facebookresearch/flow_matching.
    """
    z = jax.random.normal(key, (n,))
    return time_at_log_snr(path, 1.2 - 1.2 * z)


def uniform_log_snr(key: Array, n: int, path: GaussianPath) -> Array:
    """lambda_t = log(alpha_t / sigma_t) uniform between its values at both ends of the path.

    t has the density lambda'_t / (lambda_t_end - lambda_0). The path must start with some data in
    its points, or lambda_0 is -inf.
    """
    low, high = log_snr(path, 0.0), log_snr(path, path.t_end)
    return time_at_log_snr(path, jax.random.uniform(key, (n,), minval=low, maxval=high))


TIMES = {"uniform": uniform, "skewed": skewed}


def uniform_grid(steps: int, path: GaussianPath) -> np.ndarray:
    """Equal steps."""
    return np.linspace(0, path.t_end, steps + 1)


def edm_grid(steps: int, path: GaussianPath) -> np.ndarray:
    """Short steps at both ends: EDM's noise levels (Karras et al. 2022, Eq. 5).

    sigma_i = (80^(1/7) + i/(steps - 1) (0.002^(1/7) - 80^(1/7)))^7 is noise over signal at the
    start of step i, and the last step goes from 0.002 to the end of the path. The first one starts
    at t = 0, the source. A path that is never as noisy as 80 begins with its own noisiest level,
    and one that ends above 0.002 with its own last level.
    """
    with jax.ensure_compile_time_eval():  # the same inside of jit, where a solve needs its grid
        first, last = (float(np.exp(-log_snr(path, t))) for t in (0.0, path.t_end))
        ends_above = last >= 0.002
        high, low = min(80.0, first) ** (1 / 7), max(0.002, last) ** (1 / 7)
        levels = np.linspace(high, low, steps + ends_above) ** 7
        times = np.asarray(time_at_log_snr(path, -np.log(levels[1:steps])), np.float64)
    return np.concatenate([[0.0], times, [path.t_end]])


GRIDS = {"uniform": uniform_grid, "edm": edm_grid}
