"""Marginal path and vector field of a finite dataset in closed form (Eqs. 1-2, 6-8).

This vector field is the minimiser of the flow-matching loss. For data points x_i with weights w_i,

    p_t(x) = sum_i w_i p_t(x | x_i),    u_t(x) = sum_i r_i u_t(x | x_i),
    r_i = w_i p_t(x | x_i) / p_t(x).

The responsibilities r_i are computed by a softmax, which does not overflow as sigma_t -> 0. For a
mixture of Gaussians with standard deviation s, the std of the path becomes
sqrt(sigma_t^2 + alpha_t^2 s^2), see `smoothed`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from flowmatch_jax import paths
from flowmatch_jax.arrays import Array, AverageVelocity, FlowMap, expand_time, sum_dims
from flowmatch_jax.paths import GaussianPath


def smoothed(path: GaussianPath, data_std: float) -> GaussianPath:
    """Create the path for which data points x_i stand for Gaussians N(x_i, data_std^2 I).

    With it, `log_density` and `velocity` are those of a Gaussian mixture. The path must have a mean
    alpha_t x_1 and a std that does not depend on x_1.
    """

    def std(t: Array, x1: Array) -> Array:
        c = paths.coefficients(path, t, x1)
        return jnp.sqrt(c.sigma**2 + (c.alpha * data_std) ** 2)

    return GaussianPath(path.mean, std, path.source_std, path.t_end)


def log_density(
    path: GaussianPath, t: Array | float, x: Array, data: Array, weights: Array | None = None
) -> Array:
    """Compute log p_t(x) in nats, [B].

    Args:
        path: the conditional path.
        t: [] or [B].
        x: [B, ...].
        data: [N, ...], the points x_i.
        weights: [N], the weights w_i, which sum to 1; None: equal weights.
    """
    return jax.nn.logsumexp(_log_joint(path, _per_sample(t, x), x, data, weights), axis=1)


def velocity(
    path: GaussianPath, t: Array | float, x: Array, data: Array, weights: Array | None = None
) -> Array:
    """Compute the marginal vector field u_t(x), [B, ...]; arguments as in `log_density`."""
    t = _per_sample(t, x)
    responsibilities = jax.nn.softmax(_log_joint(path, t, x, data, weights), axis=1)

    def one(t: Array, x: Array, r: Array) -> Array:
        u = paths.velocity(path, t, jnp.broadcast_to(x, data.shape), data)
        return jnp.tensordot(r, u, axes=1)

    return jax.vmap(one)(t, x, responsibilities)


def gaussian_flow_map(path: GaussianPath, mean: float | Array, std: float) -> FlowMap:
    """Create the exact flow map of data N(mean, std^2 I).

        X(t, s, x) = alpha_s mean + sqrt(V_s / V_t) (x - alpha_t mean),
        V_t = sigma_t^2 + alpha_t^2 std^2.

    Args:
        path: a path with mu_t = alpha_t x_1 and a std that does not depend on x_1.
        mean: [] or [D...].
        std: the standard deviation of the data.
    """

    def moments(t: Array, x: Array) -> tuple[Array, Array]:
        c = paths.coefficients(path, t, x)
        return c.alpha * mean, jnp.sqrt(c.sigma**2 + (c.alpha * std) ** 2)

    def flow_map(t: Array, s: Array, x: Array) -> Array:
        (mean_t, std_t), (mean_s, std_s) = moments(t, x), moments(s, x)
        return mean_s + std_s / std_t * (x - mean_t)

    return flow_map


def gaussian_average_velocity(
    path: GaussianPath, mean: float | Array, std: float
) -> AverageVelocity:
    """Create the exact average velocity (X(t, s, x) - x) / (s - t) of data N(mean, std^2 I).

    At s = t it is the velocity, dX/ds there. Derivatives by t and s need s and t that differ.
    Arguments as in `gaussian_flow_map`.
    """
    flow_map = gaussian_flow_map(path, mean, std)

    def average_velocity(t: Array, s: Array, x: Array) -> Array:
        t, s = jnp.asarray(t, x.dtype), jnp.asarray(s, x.dtype)
        _, v = jax.jvp(lambda s: flow_map(t, s, x), (t,), (jnp.ones_like(t),))
        h = expand_time(s - t, x)
        return jnp.where(h == 0, v, (flow_map(t, s, x) - x) / jnp.where(h == 0, 1, h))

    return average_velocity


def _per_sample(t: Array | float, x: Array) -> Array:
    return jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])


def _log_joint(path: GaussianPath, t: Array, x: Array, data: Array, weights: Array | None) -> Array:
    """Compute log w_i + log p_t(x | x_i), [B, N]."""
    dims = math.prod(data.shape[1:])
    log_weights = -math.log(len(data)) if weights is None else jnp.log(weights)

    def one(t: Array, x: Array) -> Array:
        sigma = path.std(t, data)
        z = (x - path.mean(t, data)) / sigma
        log_sigma = sum_dims(jnp.broadcast_to(jnp.log(sigma), data.shape))
        return -0.5 * sum_dims(z**2) - log_sigma - dims * 0.5 * math.log(2 * math.pi)

    return log_weights + jax.vmap(one)(t, x)
