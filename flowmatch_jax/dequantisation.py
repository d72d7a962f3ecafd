"""Dequantisation: densities of continuous images as bounds on probabilities of integer images.

A density p in model space bounds the probability of an integer image c with any density q(x | c),

    log P(c) >= E_q [log p(x) - log q(x | c)],

where the probability that p gives to c is int p(x) 1[x belongs to c] dx. A `Dequantisation` draws x
for the likelihood, and x_1 for the training that makes this bound tight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from flowmatch_jax import pixels
from flowmatch_jax.arrays import Array, sum_dims
from flowmatch_jax.paths import GaussianPath, coefficients, time_at_log_snr

# The path ends where a bin reaches to so many standard deviations of its noise. With 256 levels
# that is sigma / alpha = 1.3e-3, as in i-DODE (Zheng et al. 2023).
DEVIATIONS = 3.0


@dataclass(frozen=True)
class Dequantisation:
    """A dequantisation of images with a number of levels, for the ends of a path.

    Attributes:
        path: the path, which may end earlier than the one it was made for.
        training: (key, image, levels) -> x_1 in model space.
        likelihood: (key, image [B, ...]) -> (x at the path's end, log q(x | image) in nats, [B]).
        scale: path -> factor on x at its end that turns a sample into an image in [-1, 1].
    """

    path: GaussianPath
    training: Callable[[Array, Array, int], Array]
    likelihood: Callable[[Array, Array], tuple[Array, Array]]
    scale: Callable[[GaussianPath], float] = lambda path: 1.0


def uniform(path: GaussianPath, levels: int) -> Dequantisation:
    """Add uniform noise in the bin of each pixel, in training and for the likelihood (Appendix E).

    The noise is part of the data that the model learns. q = (levels / 2)^dims.
    """

    return Dequantisation(path, pixels.dequantise, partial(uniform_noise, levels=levels))


def uniform_noise(key: Array, image: Array, levels: int) -> tuple[Array, Array]:
    """Draw x by uniform noise; returns x and log q(x | image), [B]."""
    dims = math.prod(image.shape[1:])
    log_q = jnp.full(image.shape[0], dims * math.log(levels / 2))
    return pixels.dequantise(key, image, levels), log_q


def truncated_normal(path: GaussianPath, levels: int) -> Dequantisation:
    """Use the noise of the path itself, truncated to the bins (Zheng et al. 2023, 2305.03935).

    The model is trained on the centres c of the bins. The path ends at the time at which its noise
    fits the bins: alpha / (levels sigma) = tau = `DEVIATIONS`, where the bin around alpha c reaches
    to tau sigma. The likelihood takes

        x = alpha c + sigma eps,    eps ~ N(0, I) truncated to [-tau, tau],
        log q = -sum (eps^2 / 2 + log(sigma Z) + log(2 pi) / 2),    Z = erf(tau / sqrt 2).

    The model only needs to learn the noise of the path, and not the edges of the bins.
    """
    path = replace(path, t_end=float(_end(path, levels)))
    alpha, sigma = _at_end(path)
    tau = alpha / (levels * sigma)
    log_normaliser = math.log(sigma * math.erf(tau / math.sqrt(2))) + math.log(2 * math.pi) / 2

    def likelihood(key: Array, image: Array) -> tuple[Array, Array]:
        eps = jax.random.truncated_normal(key, -tau, tau, image.shape)
        x = alpha * pixels.centres(image, levels) + sigma * eps
        dims = math.prod(image.shape[1:])
        return x, -sum_dims(eps**2) / 2 - dims * log_normaliser

    return Dequantisation(path, _centres, likelihood, scale=lambda path: 1 / _at_end(path)[0])


def _centres(key: Array, image: Array, levels: int) -> Array:
    return pixels.centres(image, levels)


def _at_end(path: GaussianPath) -> tuple[float, float]:
    """Return alpha and sigma at the end of a path."""
    with jax.ensure_compile_time_eval():
        c = coefficients(path, path.t_end, jnp.ones(()))
        return float(c.alpha), float(c.sigma)


def _end(path: GaussianPath, levels: int) -> Array:
    with jax.ensure_compile_time_eval():
        return time_at_log_snr(path, math.log(DEVIATIONS * levels))


DEQUANTISATIONS = {"uniform": uniform, "truncated_normal": truncated_normal}
