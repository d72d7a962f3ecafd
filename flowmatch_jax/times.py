"""Distributions of t in training, and time grids of fixed-step solvers.

A time distribution is a function (key, n, path, **options) -> t [n], float32, in [0, path.t_end]; a
grid is a function (steps, path, **options) -> times [steps + 1], float64, from 0 to path.t_end.

Definitions by noise level use sigma_t / alpha_t, the noise-to-signal ratio, so that they apply to
every path.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from flowmatch_jax.arrays import Array
from flowmatch_jax.paths import Coefficients, GaussianPath, coefficients, log_snr, time_at_log_snr
from flowmatch_jax.runtime.errors import UserError, positive


def between(
    key: Array, n: int, low: Array | float, high: Array | float, stratified: bool = False
) -> Array:
    """Draw n numbers from U[low, high), independent or stratified.

    Stratified numbers are low + (high - low) ((u_0 + i/n) mod 1) with one u_0 ~ U[0, 1) (Kingma et
    al. 2021, VDM). Each is uniform, but they are spread evenly over the whole batch on all devices,
    which reduces the variance of the loss. If a batch is accumulated from micro-batches, each of
    them is stratified.
    """
    if not stratified:
        return jax.random.uniform(key, (n,), minval=low, maxval=high)
    u = (jax.random.uniform(key) + jnp.arange(n) / n) % 1
    return low + (high - low) * u


def normal(key: Array, n: int, stratified: bool = False) -> Array:
    """Draw z ~ N(0, 1), [n], by the quantiles of stratified numbers if asked for."""
    if not stratified:
        return jax.random.normal(key, (n,))
    tiny = jnp.finfo(jnp.float32).eps / 2
    return jax.scipy.special.ndtri(between(key, n, tiny, 1 - tiny, stratified=True))


def uniform(key: Array, n: int, path: GaussianPath, stratified: bool = False) -> Array:
    """Draw t ~ U[0, t_end] for each sample, as in the paper; stratified as in `between`."""
    return between(key, n, 0.0, path.t_end, stratified)


def skewed(key: Array, n: int, path: GaussianPath, stratified: bool = False) -> Array:
    """Draw t with sigma_t / alpha_t = exp(-1.2 + 1.2 z), z ~ N(0, 1), which favours the data end.

    This is EDM's distribution of noise levels (Karras et al. 2022). On the OT path it equals
    t = 1 / (1 + exp(-1.2 + 1.2 z)), the distribution in facebookresearch/flow_matching.
    """
    return time_at_log_snr(path, 1.2 - 1.2 * normal(key, n, stratified))


def log_normal(key: Array, n: int, path: GaussianPath, mean: float, std: float) -> Array:
    """Draw t with sigma_t / alpha_t = exp(mean + std z), z ~ N(0, 1).

    On the OT path it equals 1 - t = 1 / (1 + exp(-mean - std z)).
    """
    return time_at_log_snr(path, -mean - std * jax.random.normal(key, (n,)))


def logit_normal(
    key: Array,
    n: int,
    path: GaussianPath,
    stratified: bool = False,
    mean: float = 0.0,
    std: float = 1.0,
) -> Array:
    """Draw t = t_end / (1 + exp(-mean - std z)), z ~ N(0, 1) (Esser et al. 2024).

    Args:
        key, n, path: as for all distributions.
        stratified: as in `between`.
        mean: above 0 the data end is favoured, below 0 the noise end.
        std: spread of the logit of t.
    """
    positive("std", std)
    return path.t_end * jax.nn.sigmoid(mean + std * normal(key, n, stratified))


def uniform_log_snr(key: Array, n: int, path: GaussianPath, stratified: bool = False) -> Array:
    """Draw t with lambda_t = log(alpha_t / sigma_t) uniform between its values at the path's ends.

    The density of t is lambda'_t / (lambda_t_end - lambda_0). The path must have alpha_0 > 0, since
    lambda_0 is -inf otherwise.
    """
    low, high = log_snr(path, 0.0), log_snr(path, path.t_end)
    return time_at_log_snr(path, between(key, n, low, high, stratified))


def likelihood_weight(path: GaussianPath, t: Array) -> Array:
    """Compute 1 / (sigma_t^2 lambda'_t), the weight of the velocity's squared error, t's shape.

    With it the loss bounds the negative log-likelihood of the path's diffusion up to a constant
    (Song et al. 2021, 2101.09258; Zheng et al. 2023, 2305.03935): beta / 2 times the squared error
    of the score. On the OT path with sigma_min = 0 it is t / (1 - t).
    """
    return velocity_weight(coefficients(path, t, jnp.ones_like(t)))


def velocity_weight(c: Coefficients) -> Array:
    """Compute `likelihood_weight` from the path's coefficients."""
    return c.alpha / (c.sigma * (c.alpha_dot * c.sigma - c.alpha * c.sigma_dot))


def likelihood(key: Array, n: int, path: GaussianPath, stratified: bool = False) -> Array:
    """Draw t with a density proportional to `likelihood_weight`, by its quantiles.

    The loss at these times, without a weight, is the weighted loss at uniform times up to a
    constant factor, with less variance.
    """
    quantiles, times = _likelihood_quantiles(path)
    return jnp.interp(between(key, n, 0.0, 1.0, stratified), quantiles, times)


def _likelihood_quantiles(path: GaussianPath) -> tuple[Array, Array]:
    """Tabulate the distribution function of `likelihood` on a fine grid of times."""
    with jax.ensure_compile_time_eval():
        # Equal steps of log(sigma_t / alpha_t) resolve the weight at the data; equal steps of t
        # resolve it at the noise.
        fine = time_at_log_snr(path, jnp.linspace(-5, log_snr(path, path.t_end), 4096))
        times = jnp.unique(jnp.concatenate([fine, jnp.linspace(0, path.t_end, 1024)]))
        t = np.asarray(times, np.float64)
        w = np.asarray(likelihood_weight(path, times), np.float64)
    total = np.concatenate([[0.0], np.cumsum(np.diff(t) * (w[1:] + w[:-1]) / 2)])
    return jnp.asarray(total / total[-1], jnp.float32), jnp.asarray(t, jnp.float32)


TIMES = {
    "uniform": uniform,
    "skewed": skewed,
    "logit_normal": logit_normal,
    "likelihood": likelihood,
}


def uniform_grid(steps: int, path: GaussianPath) -> np.ndarray:
    """Create a grid of equal steps."""
    return np.linspace(0, path.t_end, steps + 1)


def edm_grid(steps: int, path: GaussianPath) -> np.ndarray:
    """Create EDM's grid of noise levels (Karras et al. 2022, Eq. 5), with short steps at both ends.

    sigma_i = (80^(1/7) + i/(steps - 1) (0.002^(1/7) - 80^(1/7)))^7 is the noise-to-signal ratio at
    the start of step i; the last step goes from 0.002 to the end of the path, and the first starts
    at t = 0. If the path's largest ratio is below 80, the levels begin there; if its smallest is
    above 0.002, they end there.
    """
    with jax.ensure_compile_time_eval():  # a solve inside jit needs a concrete grid
        first, last = (float(np.exp(-log_snr(path, t))) for t in (0.0, path.t_end))
        ends_above = last >= 0.002
        high, low = min(80.0, first) ** (1 / 7), max(0.002, last) ** (1 / 7)
        levels = np.linspace(high, low, steps + ends_above) ** 7
        times = np.asarray(time_at_log_snr(path, -np.log(levels[1:steps])), np.float64)
    return np.concatenate([[0.0], times, [path.t_end]])


def cosine_grid(steps: int, path: GaussianPath) -> np.ndarray:
    """Create the grid t_end (1 - cos(pi u)) / 2 for equal steps of u: short steps at both ends.

    The longest step is pi/2 times as long as an equal one.
    """
    return path.t_end * (1 - np.cos(np.pi * np.linspace(0, 1, steps + 1))) / 2


def shift_grid(steps: int, path: GaussianPath, k: float = 3.0) -> np.ndarray:
    """Create the grid t_end u / (u + k (1 - u)) for equal steps of u.

    On the OT path it multiplies the noise-to-signal ratio of equal steps by k (Esser et al. 2024,
    where k is the square root of a ratio of numbers of pixels).

    Args:
        steps: number of steps.
        path: the path.
        k: above 1 steps are short at the noise end, below 1 at the data end.
    """
    positive("k", k)
    u = np.linspace(0, 1, steps + 1)
    return path.t_end * u / (u + k * (1 - u))


def sway_grid(steps: int, path: GaussianPath, s: float = -1.0) -> np.ndarray:
    """Create F5-TTS's grid t_end (u + s (cos(pi u / 2) - 1 + u)) for equal steps of u.

    It is called sway sampling there (Chen et al. 2024).

    Args:
        steps: number of steps.
        path: the path.
        s: in [-1, 2 / (pi - 2)], where the times increase; below 0 steps are short at the noise
            end, above 0 at the data end.
    """
    if not -1 <= s <= 2 / (np.pi - 2):
        raise UserError("s", s, "it must be in [-1, 2 / (pi - 2)], where the times increase")
    u = np.linspace(0, 1, steps + 1)
    swayed = u + s * (np.cos(np.pi / 2 * u) - 1 + u)
    return path.t_end * swayed / swayed[-1]  # which is 1 but for rounding


GRIDS = {
    "uniform": uniform_grid,
    "edm": edm_grid,
    "cosine": cosine_grid,
    "shift": shift_grid,
    "sway": sway_grid,
}
