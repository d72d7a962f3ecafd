"""Predictions of a network, and their conversion to the vector field.

For a path with mu_t = alpha_t x_1 and a std that does not depend on x_1, a point

    x = alpha_t x_1 + sigma_t x_0

and any one of these predictions determine the others:

    velocity   u = alpha'_t x_1 + sigma'_t x_0
    noise      x_0
    score      S = -x_0 / sigma_t            (the paper's s_t is -S)
    data       x_1

Sampling and likelihoods use the velocity only, so that they share one implementation for all
methods.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from flowmatch_jax.arrays import Apply, Array, AverageVelocity, Field, Params
from flowmatch_jax.paths import Coefficients, GaussianPath, coefficients, starts_without_data
from flowmatch_jax.runtime.errors import UserError, one_of

STEPS = 1000  # of a discrete diffusion


def _from_velocity(c: Coefficients, x: Array, u: Array) -> tuple[Array, Array]:
    determinant = c.alpha * c.sigma_dot - c.alpha_dot * c.sigma
    x1 = (c.sigma_dot * x - c.sigma * u) / determinant
    x0 = (c.alpha * u - c.alpha_dot * x) / determinant
    return x1, x0


def _from_noise(c: Coefficients, x: Array, x0: Array) -> tuple[Array, Array]:
    # Where alpha_t = 0, x does not depend on x_1.
    no_data = c.alpha == 0
    x1 = jnp.where(no_data, 0, (x - c.sigma * x0) / jnp.where(no_data, 1, c.alpha))
    return x1, x0


def _from_score(c: Coefficients, x: Array, score: Array) -> tuple[Array, Array]:
    return _from_noise(c, x, -c.sigma * score)


def _from_data(c: Coefficients, x: Array, x1: Array) -> tuple[Array, Array]:
    return x1, (x - c.alpha * x1) / c.sigma


# prediction -> function (coefficients, x, output) -> (x_1, x_0)
DATA_AND_NOISE_FROM: dict[str, Callable[..., tuple[Array, Array]]] = {
    "velocity": _from_velocity,
    "noise": _from_noise,
    "score": _from_score,
    "data": _from_data,
}

# prediction -> function (coefficients, x_1, x_0) -> output
FROM_DATA_AND_NOISE: dict[str, Callable[[Coefficients, Array, Array], Array]] = {
    "velocity": lambda c, x1, x0: c.alpha_dot * x1 + c.sigma_dot * x0,
    "noise": lambda c, x1, x0: x0,
    "score": lambda c, x1, x0: -x0 / c.sigma,
    "data": lambda c, x1, x0: x1,
}


def convert(
    path: GaussianPath, t: Array | float, x: Array, output: Array, source: str, target: str
) -> Array:
    """Convert one prediction to another; both are "velocity", "noise", "score" or "data".

    Args:
        path: a path with mu_t = alpha_t x_1.
        t: [] or [B].
        x, output: [B, ...].
        source: prediction of ``output``.
        target: prediction of the result.
    """
    if source == target:
        return output
    c = coefficients(path, t, x)
    return FROM_DATA_AND_NOISE[target](c, *DATA_AND_NOISE_FROM[source](c, x, output))


def network_input(path: GaussianPath, t: Array | float, x: Array) -> Array:
    """Scale x [B, ...] to unit variance for the network.

    On paths whose source is not N(0, I), such as VE, x is divided by sqrt(alpha_t^2 + sigma_t^2),
    the marginal standard deviation for data of variance 1.
    """
    if path.source_std == 1:
        return x
    c = coefficients(path, t, x)
    return x / jnp.sqrt(c.alpha**2 + c.sigma**2)


def log_snr_clock(log_snr: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Create a time input in [0, 1] for networks that is linear in the log signal-to-noise ratio.

    It maps t to (lambda_t + 12) / 24 with lambda_t clipped to [-12, 12]. On the VP path, in
    contrast, t changes by only 0.01 while sigma_t falls from 0.045 to 0.001.

    Args:
        log_snr: t -> lambda_t = log(alpha_t / sigma_t), such as `paths.log_snr` of a path.
    """
    return lambda t: (jnp.clip(log_snr(t), -12, 12) + 12) / 24


def level_waves(path: GaussianPath, levels: int, octaves: int, t: Array, x: Array) -> Array:
    """Compute sinusoids of x_t that resolve the grey levels (Kingma et al. 2021, 2107.00630).

    They are the sine and the cosine of omega x_t / alpha_t for omega = pi L 2^-k, k < octaves; the
    period of the first one is the distance of two levels. Each is multiplied by
    exp(-(omega sigma_t / alpha_t)^2 / 2), which is its mean over the noise of x_t: it is 0 as long
    as the noise hides the levels, where the sinusoids would have no information and be steep.

    Args:
        path: a path with the mean alpha_t x_1.
        levels: number of grey levels, L.
        octaves: number of frequencies.
        t: times, [B] or [].
        x: [B, ..., C].

    Returns:
        [B, ..., 2 octaves C], x's dtype.
    """
    c = coefficients(path, t, x)
    hidden = c.alpha < 1e-3  # the factor is 0 there, and x / alpha need not be finite
    alpha = jnp.where(hidden, 1, c.alpha)
    omega = jnp.pi * levels * 0.5 ** jnp.arange(octaves, dtype=x.dtype)
    phase = omega * (x / alpha)[..., None]
    factor = jnp.exp(-((omega * (c.sigma / alpha)[..., None]) ** 2) / 2)
    waves = jnp.stack([jnp.sin(phase), jnp.cos(phase)], axis=-1) * factor[..., None]
    waves = jnp.where(hidden[..., None, None], 0, waves)
    return waves.reshape(*x.shape[:-1], -1)


def linear_steps() -> np.ndarray:
    """Compute lambda of the steps 0 to 999 of DDPM's linear schedule (Ho et al. 2020), float64.

    The noise rates of the steps rise linearly from 1e-4 to 0.02.
    """
    return _log_snr_of_steps(np.linspace(1e-4, 0.02, STEPS))


def cosine_steps() -> np.ndarray:
    """Compute lambda of the steps 0 to 999 of the cosine schedule (Nichol & Dhariwal 2021)."""
    edges = np.cos((np.arange(STEPS + 1) / STEPS + 0.008) / 1.008 * np.pi / 2) ** 2
    return _log_snr_of_steps(np.minimum(1 - edges[1:] / edges[:-1], 0.999))


def _log_snr_of_steps(rates: np.ndarray) -> np.ndarray:
    squared = np.cumprod(1 - rates)
    return np.log(squared / (1 - squared)) / 2


# Time inputs that are the number of a step of a discrete diffusion, by name.
STEP_INPUTS = {"linear_steps": linear_steps, "cosine_steps": cosine_steps}


def step_clock(log_snr: Callable[[Array], Array], steps: np.ndarray) -> Callable[[Array], Array]:
    """Create the time input of a network that was trained on the steps of a discrete diffusion.

    It maps t to the step with the same signal-to-noise ratio, which is all that variance-preserving
    paths differ in, and linearly in lambda_t to numbers between steps.

    Args:
        log_snr: t -> lambda_t = log(alpha_t / sigma_t).
        steps: lambda of each step, decreasing, as `linear_steps` returns it.
    """
    ratios, numbers = jnp.asarray(steps[::-1], jnp.float32), np.arange(len(steps))[::-1]
    return lambda t: jnp.interp(log_snr(t), ratios, jnp.asarray(numbers, jnp.float32))


def validate(predicts: str, path: GaussianPath) -> None:
    """Raise UserError unless this prediction determines the velocity on all of [0, t_end].

    On a path with mu_0 = 0, noise and score do not determine x_1 at t = 0.
    """
    one_of("predicts", predicts, DATA_AND_NOISE_FROM)
    if predicts in ("noise", "score") and starts_without_data(path):
        allowed = (
            "on this path it gives no velocity at t = 0; use velocity or data, or path vp or ve"
        )
        raise UserError("predicts", predicts, allowed)


def vector_field(
    apply: Apply,
    params: Params,
    path: GaussianPath,
    predicts: str = "velocity",
    label: Array | None = None,
    condition: Array | None = None,
) -> Field:
    """Create the vector field v(t, x) of a trained network, without dropout.

    Args:
        apply: the network, apply(params, t, x, label=None, condition=None).
        params: the parameters.
        path: the conditional path.
        predicts: the network's output: "velocity", "noise", "score" or "data".
        label: int32 [B], for a class-conditional network.
        condition: [B, H, W, C'], for a network conditioned on images.
    """

    def field(t: Array, x: Array) -> Array:
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
        output = apply(params, t, network_input(path, t, x), label=label, condition=condition)
        return convert(path, t, x, output, predicts, "velocity")

    return field


def average_velocity(
    apply: Apply, params: Params, path: GaussianPath, **inputs: Array | None
) -> AverageVelocity:
    """Create the average velocity u(t, s, x) of a network with two times; t and s are [] or [B].

    Its field u(t, t, x) is the `vector_field` of the network.

    Args:
        apply: the network, apply(params, t, x, label=None, condition=None, end=None, key=None),
            which predicts the velocity.
        params: the parameters.
        path: the conditional path.
        **inputs: label and condition, as in `vector_field`, and in training the key of dropout.
    """

    def u(t: Array, s: Array, x: Array) -> Array:
        t, s = (jnp.broadcast_to(jnp.asarray(time, x.dtype), x.shape[:1]) for time in (t, s))
        return apply(params, t, network_input(path, t, x), end=s, **inputs)

    return u


def point_estimate(
    apply: Apply, params: Params, shape: tuple[int, ...], key: Array | None = None, **inputs: Array
) -> Array:
    """Compute the output [B, ...] of a network that was trained as a regression on its inputs.

    It is the same network as for the other methods, applied at t = 0 and x = 0.

    Args:
        apply: the network.
        params: the parameters.
        shape: shape of the result.
        key: key of dropout, in training.
        **inputs: label and condition, as in `vector_field`.
    """
    return apply(params, jnp.zeros(shape[0]), jnp.zeros(shape), **inputs, key=key)
