"""Gaussian conditional probability paths (section 4 of the paper).

A path consists of two functions, the mean and the standard deviation of

    p_t(x | x_1) = N(x | mean(t, x_1), std(t, x_1)^2 I)          (Eq. 10)

with noise at t = 0 and data at t = 1. The flow, its velocity and the score are derived from these
two functions by differentiation. A custom path is a `GaussianPath` with two functions.

Shapes throughout: t is [] or [B]; x, x_0, x_1 are [B, ...]; results have x_1's shape and dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowmatch_jax.arrays import Array, expand_time
from flowmatch_jax.runtime.errors import UserError, at_least, fraction


@dataclass(frozen=True)
class GaussianPath:
    """A conditional path N(mean(t, x_1), std(t, x_1)^2 I).

    Attributes:
        mean: mu_t(x_1); (t, x_1) -> x_1's shape.
        std: sigma_t(x_1) > 0 on [0, t_end]; (t, x_1) -> a shape that broadcasts against x_1.
        source_std: standard deviation of the source p_0.
        t_end: last time at which velocity and score are finite; training, sampling and likelihood
            use times in [0, t_end].
    """

    mean: Callable[[Array, Array], Array]
    std: Callable[[Array, Array], Array]
    source_std: float = 1.0
    t_end: float = 1.0


def flow(path: GaussianPath, t: Array | float, x0: Array, x1: Array) -> Array:
    """Compute psi_t(x_0) = sigma_t(x_1) x_0 + mu_t(x_1) for x_0 ~ N(0, I) (Eq. 11)."""
    return path.std(t, x1) * x0 + path.mean(t, x1)


def flow_and_velocity(
    path: GaussianPath, t: Array | float, x0: Array, x1: Array
) -> tuple[Array, Array]:
    """Compute x_t = psi_t(x_0) and u_t = d/dt psi_t(x_0), the regression target (Eq. 14).

    Differentiating the flow avoids a division by sigma_t, and with it cancellation as sigma_t -> 0.
    """
    t = jnp.asarray(t, x1.dtype)
    return jax.jvp(lambda t: flow(path, t, x0, x1), (t,), (jnp.ones_like(t),))


def velocity(path: GaussianPath, t: Array | float, x: Array, x1: Array) -> Array:
    """Compute u_t(x | x_1) = sigma'_t / sigma_t (x - mu_t) + mu'_t (Eq. 15)."""
    t = jnp.asarray(t, x1.dtype)
    dt = jnp.ones_like(t)
    mu, mu_dot = jax.jvp(lambda t: path.mean(t, x1), (t,), (dt,))
    sigma, sigma_dot = jax.jvp(lambda t: path.std(t, x1), (t,), (dt,))
    return sigma_dot / sigma * (x - mu) + mu_dot


def score(path: GaussianPath, t: Array | float, x: Array, x1: Array) -> Array:
    """Compute the score grad_x log p_t(x | x_1) = -(x - mu_t) / sigma_t^2.

    The paper's appendix denotes the negative score by s_t.
    """
    return -(x - path.mean(t, x1)) / path.std(t, x1) ** 2


class Coefficients(NamedTuple):
    """alpha_t and sigma_t of a path with mu_t = alpha_t x_1, and their time derivatives."""

    alpha: Array
    sigma: Array
    alpha_dot: Array
    sigma_dot: Array


def coefficients(path: GaussianPath, t: Array | float, x: Array) -> Coefficients:
    """Compute the path's coefficients at t ([] or [B]), each broadcast to x [B, ...].

    The path must have a mean alpha_t x_1 and a std that does not depend on x_1, as all paths in
    this module do.
    """
    one = jnp.ones_like(x)
    t = jnp.asarray(t, x.dtype)
    alpha_and_sigma = lambda t: (path.mean(t, one), path.std(t, one) * one)  # noqa: E731
    values, rates = jax.jvp(alpha_and_sigma, (t,), (jnp.ones_like(t),))
    return Coefficients(*values, *rates)


def squared_diffusion(c: Coefficients) -> Array:
    """Compute beta_t = 2 (sigma^2 alpha'/alpha - sigma sigma').

    It is the squared diffusion coefficient of the process that noises the data with the marginals
    of a path, beta(1 - t) of the VP path. It is infinite where alpha_t = 0.
    """
    return 2 * c.sigma * (c.sigma * c.alpha_dot / c.alpha - c.sigma_dot)


def log_snr(path: GaussianPath, t: Array | float) -> Array:
    """Compute lambda_t = log(alpha_t / sigma_t), half the log signal-to-noise ratio; t's shape.

    It is -inf where alpha_t = 0. The path must have a mean alpha_t x_1 and a std that does not
    depend on x_1.
    """
    t = jnp.asarray(t)
    one = jnp.ones_like(t)
    ratio = path.mean(t, one) / path.std(t, one)
    # The derivative of log at 0 is infinite and would turn gradients through this value into NaN.
    some = jnp.where(ratio > 0, ratio, 1)
    return jnp.where(ratio > 0, jnp.log(some), -jnp.inf)


def time_at_log_snr(path: GaussianPath, value: Array | float) -> Array:
    """Find the time t in [0, t_end] at which `log_snr` is ``value`` by bisection; value's shape.

    Values beyond the path's range give the nearer end of the path. lambda_t must increase with t,
    as it does on every path from noise to data.
    """
    value = jnp.asarray(value)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        early, late = ends
        middle = (early + late) / 2
        before = log_snr(path, middle) < value
        return jnp.where(before, middle, early), jnp.where(before, late, middle)

    ends = (jnp.zeros_like(value), jnp.full_like(value, path.t_end))
    early, _ = jax.lax.fori_loop(0, jnp.finfo(value.dtype).nmant + 8, halve, ends)
    # Bisection never returns the ends of the path, which are the results for values beyond them.
    early = jnp.where(log_snr(path, path.t_end) <= value, path.t_end, early)
    return jnp.where(log_snr(path, 0.0) >= value, 0.0, early)


def starts_without_data(path: GaussianPath) -> bool:
    """Test whether mu_0 = 0, as on the OT path: x_t is independent of x_1 at t = 0."""
    return not path.mean(jnp.zeros(()), jnp.ones((1, 1))).any()


def optimal_transport(sigma_min: float = 1e-5) -> GaussianPath:
    """Create the OT path, mu_t = t x_1, sigma_t = 1 - (1 - sigma_min) t (Eq. 20).

    Its flow moves along straight lines at constant speed.

    Args:
        sigma_min: standard deviation around each data point at t = 1 (not stated in the paper).
            With 0 the path ends at t_end = 1 - 1e-5, so that Eq. 15 is finite.
    """
    fraction("sigma_min", sigma_min)
    return GaussianPath(
        mean=lambda t, x1: expand_time(t, x1) * x1,
        # 1 - (1 - sigma_min) t, written without cancellation at t = 1.
        std=lambda t, x1: (1 - expand_time(t, x1)) + sigma_min * expand_time(t, x1),
        t_end=1.0 if sigma_min > 0 else 1.0 - 1e-5,
    )


def variance_preserving(
    beta_min: float = 0.1, beta_max: float = 20.0, eps: float = 1e-5
) -> GaussianPath:
    """Create the VP path, mu_t = alpha_{1-t} x_1, sigma_t = sqrt(1 - alpha_{1-t}^2) (Eq. 18).

    alpha_s = exp(-T(s)/2), T(s) = s beta_min + s^2 (beta_max - beta_min) / 2. It is "Diffusion" in
    the paper's tables.

    Args:
        beta_min, beta_max: noise rates at the data end and at the noise end.
        eps: the path ends at t_end = 1 - eps, because sigma'_t is infinite at t = 1.
    """
    at_least("beta_min", beta_min, 0.0)
    at_least("beta_max", beta_max, beta_min)
    if not 0 < eps < 1:
        raise UserError("eps", eps, "it must be in (0, 1)")

    def accumulated_beta(t: Array, x1: Array) -> Array:
        s = 1 - expand_time(t, x1)
        return s * beta_min + s**2 * (beta_max - beta_min) / 2

    return GaussianPath(
        mean=lambda t, x1: jnp.exp(-accumulated_beta(t, x1) / 2) * x1,
        # expm1 avoids the cancellation of 1 - alpha^2 near the data.
        std=lambda t, x1: jnp.sqrt(-jnp.expm1(-accumulated_beta(t, x1))),
        t_end=1.0 - eps,
    )


def variance_exploding(sigma_min: float = 0.01, sigma_max: float = 50.0) -> GaussianPath:
    """Create the VE path, mu_t = x_1, sigma_t = sigma_min (sigma_max / sigma_min)^(1-t) (Eq. 16).

    The source is N(0, sigma_max^2 I), which is much wider than the data. The paper does not state
    sigma_min and sigma_max; the defaults are score_sde's.
    """
    if not 0 < sigma_min < sigma_max:
        raise UserError("sigma_min", sigma_min, f"it must be in (0, sigma_max = {sigma_max})")
    log_ratio = math.log(sigma_max / sigma_min)
    return GaussianPath(
        mean=lambda t, x1: x1,
        std=lambda t, x1: sigma_min * jnp.exp(log_ratio * (1 - expand_time(t, x1))),
        source_std=sigma_max,
    )


def cosine(eps: float = 1e-5) -> GaussianPath:
    """Create the cosine path, mu_t = sin(pi t / 2) x_1, sigma_t = cos(pi t / 2).

    It is variance preserving, and x_t turns from noise to data at constant angular velocity
    (Albergo & Vanden-Eijnden 2023; the cosine schedule of Nichol & Dhariwal 2021 in continuous
    time).

    Args:
        eps: the path ends at t_end = 1 - eps, because sigma_t is 0 at t = 1.
    """
    if not 0 < eps < 1:
        raise UserError("eps", eps, "it must be in (0, 1)")
    return GaussianPath(
        mean=lambda t, x1: jnp.sin(jnp.pi / 2 * expand_time(t, x1)) * x1,
        # The sine of 1 - t avoids the cancellation of the cosine near the data.
        std=lambda t, x1: jnp.sin(jnp.pi / 2 * (1 - expand_time(t, x1))),
        t_end=1.0 - eps,
    )


PATHS = {
    "ot": optimal_transport,
    "vp": variance_preserving,
    "ve": variance_exploding,
    "cosine": cosine,
}
