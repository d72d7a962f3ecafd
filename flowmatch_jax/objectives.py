"""Training objectives.

An objective is a function (apply, params, batch, key) -> (loss, metrics): a scalar to minimise and
a dict of scalars to log. ``batch["x"]`` is x_1 [B, ...] in model space; "label" [B] and
"condition" [B, H, W, C'] are handed to the network where present.

Those of OBJECTIVES regress on a point of the path, x_t = sigma_t x_0 + mu_t, and differ in their
target and its weight. Squares are averaged over dimensions, so that losses compare across image
sizes. `maximum_likelihood`, by which continuous normalizing flows were trained before, solves the
flow itself in each step instead. `sr3` and `regression` are what super-resolution is compared with.
Each regression on the path takes

    path: the conditional path;
    predicts: what the network's output means (see `predictions`);
    coupling: draws x_0 for x_1 (see `couplings`);
    time: draws t (see `times`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flowmatch_jax import couplings, predictions, times
from flowmatch_jax.arrays import Apply, Array, Batch, Inputs, Params, expand_time
from flowmatch_jax.likelihood import log_prob
from flowmatch_jax.paths import (
    Coefficients,
    GaussianPath,
    coefficients,
    flow_and_velocity,
    log_snr,
    starts_without_data,
)
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.sampling import ancestral

Objective = Callable[[Apply, Params, Batch, Array], tuple[Array, dict[str, Array]]]
Coupling = Callable[[Array, Array], Array]
Time = Callable[[Array, int, GaussianPath], Array]
# coefficients at (t, x_t) -> the root of a loss's weight, of x_t's shape
RootWeight = Callable[[Coefficients], Array]

# A network that predicts the data is asked for a target in which its error counts 1 / sigma_t or
# more, without bound near t = 1. It counts this much at most: Li & He 2025 (2511.13720), whose
# sigma_t is 0.05 at least on the OT path.
LARGEST_SHARE = 20.0


def flow_matching(
    path: GaussianPath,
    predicts: str = "velocity",
    coupling: Coupling = couplings.independent,
    time: Time = times.uniform,
) -> Objective:
    """Conditional flow matching, E ||v_t(psi_t(x_0)) - d/dt psi_t(x_0)||^2 (Eq. 14)."""
    return _regression(path, "velocity", _one, predicts, coupling, time)


def noise_matching(
    path: GaussianPath,
    predicts: str = "noise",
    coupling: Coupling = couplings.independent,
    time: Time = times.uniform,
) -> Objective:
    """DDPM's, E ||eps_t(x_t) - x_0||^2."""
    return _regression(path, "noise", _one, predicts, coupling, time)


def score_matching(
    path: GaussianPath,
    predicts: str = "noise",
    coupling: Coupling = couplings.independent,
    time: Time = times.uniform,
) -> Objective:
    """Denoising score matching with lambda = sigma_t^2, E sigma_t^2 ||S_t(x_t) + x_0/sigma_t||^2.

    With a network that predicts noise, S = -eps / sigma_t, this is `noise_matching`; one that
    predicts the score itself is another parametrisation of the same loss.
    """
    return _regression(path, "score", lambda c: c.sigma, predicts, coupling, time)


def scoreflow(
    path: GaussianPath,
    predicts: str = "noise",
    coupling: Coupling = couplings.independent,
    time: Time = times.uniform,
) -> Objective:
    """ScoreFlow: score matching with lambda = beta(1 - t), the squared diffusion coefficient.

    For any path that is a diffusion in reverse, beta = 2 (sigma^2 alpha'/alpha - sigma sigma').

    Raises:
        UserError: the path is no diffusion: it starts without data, where beta is infinite.
    """
    _check_diffusion(path)

    def root_of_beta(c: Coefficients) -> Array:
        return jnp.sqrt(2 * c.sigma * (c.sigma * c.alpha_dot / c.alpha - c.sigma_dot))

    return _regression(path, "score", root_of_beta, predicts, coupling, time)


def scoreflow_by_importance(
    path: GaussianPath, predicts: str = "noise", coupling: Coupling = couplings.independent
) -> Objective:
    """`scoreflow` with t drawn by its weight, beta / sigma^2, in place of weighting uniform times.

    The same expectation with less variance, as Song et al. 2021 (2101.09258) train. With
    lambda_t = log(alpha_t / sigma_t), beta / sigma^2 is 2 lambda'_t, so t is uniform in lambda_t
    and the loss of uniform times t in [0, t_end] is

        2 (lambda_t_end - lambda_0) / t_end  E ||eps_t(x_t) - x_0||^2.

    Raises:
        UserError: as `scoreflow`.
    """
    _check_diffusion(path)
    weight = 2 * (log_snr(path, path.t_end) - log_snr(path, 0.0)) / path.t_end
    root_weight = lambda c: jnp.sqrt(weight)  # noqa: E731
    return _regression(path, "noise", root_weight, predicts, coupling, times.uniform_log_snr)


def maximum_likelihood(path: GaussianPath, predicts: str = "velocity", **solve: Any) -> Objective:
    """-E log p_1(x_1) in nats a dimension, through the solve of `likelihood.log_prob` (Appendix C).

    Of the path it knows the source and the end of time alone: the flow finds its own way. Dropout
    is off, since it would be a new field at each call.

    Args:
        path, predicts: as for the regressions.
        **solve: the options of `likelihood.log_prob`; adjoint and max_steps say how the
            gradient is taken.

    Returns:
        An objective whose metrics are "loss", "nfe" (calls of the field with its divergence,
        forward alone) and "converged" (0 or 1).
    """

    def objective(
        apply: Apply, params: Params, batch: Batch, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        x1 = batch["x"]
        field = predictions.vector_field(apply, params, path, predicts, **_inputs(batch))
        result = log_prob(field, x1, key, source_std=path.source_std, t1=path.t_end, **solve)
        loss = -jnp.mean(result.log_prob) / math.prod(x1.shape[1:])
        cost = {"nfe": result.nfe, "converged": result.converged}
        return loss, {"loss": loss} | {name: n.astype(x1.dtype) for name, n in cost.items()}

    return objective


def sr3(levels: Array) -> Objective:
    """SR3's, E ||eps(x_a, a) - x_0||^2 of x_a = a x_1 + sqrt(1 - a^2) x_0.

    The network is told the noise level a in the place of t (Saharia et al. 2021, Eq. 6, squared).

    Args:
        levels: the schedule between whose neighbours a is drawn, see `ancestral`.
    """

    def objective(
        apply: Apply, params: Params, batch: Batch, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        noise_key, level_key, dropout_key = jax.random.split(key, 3)
        x1 = batch["x"]
        x0 = jax.random.normal(noise_key, x1.shape, x1.dtype)
        a = ancestral.draw_levels(level_key, x1.shape[0], levels)
        signal, noise = (expand_time(c, x1) for c in (a, jnp.sqrt(1 - a**2)))
        output = apply(params, a, signal * x1 + noise * x0, **_inputs(batch), key=dropout_key)
        loss = jnp.mean((output - x0) ** 2)
        return loss, {"loss": loss}

    return objective


def regression(
    apply: Apply, params: Params, batch: Batch, key: Array
) -> tuple[Array, dict[str, Array]]:
    """E ||f(condition) - x_1||^2, an objective as it is: f learns the mean of all x_1 that fit."""
    x1 = batch["x"]
    output = predictions.point_estimate(apply, params, x1.shape, key, **_inputs(batch))
    loss = jnp.mean((output - x1) ** 2)
    return loss, {"loss": loss}


def _inputs(batch: Batch) -> Inputs:
    return {name: batch.get(name) for name in ("label", "condition")}


def _check_diffusion(path: GaussianPath) -> None:
    if starts_without_data(path):
        raise UserError("name", "scoreflow", "this path is no diffusion; use path vp or ve")


def _one(c: Coefficients) -> Array:
    return jnp.ones_like(c.sigma)


def _regression(
    path: GaussianPath,
    target: str,
    root_weight: RootWeight,
    predicts: str,
    coupling: Coupling,
    time: Time,
) -> Objective:
    """E weight ||prediction of the target - target||^2, target "velocity", "noise" or "score"."""

    def objective(
        apply: Apply, params: Params, batch: Batch, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        noise_key, time_key, dropout_key = jax.random.split(key, 3)
        x1 = batch["x"]
        x0 = coupling(noise_key, x1)
        t = time(time_key, x1.shape[0], path)
        x_t, u_t = flow_and_velocity(path, t, x0, x1)
        x_in = predictions.network_input(path, t, x_t)
        output = apply(params, t, x_in, **_inputs(batch), key=dropout_key)

        c = coefficients(path, t, x_t)
        predicted = lambda x, output: predictions.convert(path, t, x, output, predicts, target)  # noqa: E731
        if predicts == "data":
            share = jnp.abs(root_weight(c) * predicted(jnp.zeros_like(x_t), jnp.ones_like(x_t)))
            error = jnp.minimum(share, LARGEST_SHARE) * (output - x1)
        else:
            truth = {"velocity": u_t, "noise": x0, "score": -x0 / c.sigma}[target]
            error = root_weight(c) * (predicted(x_t, output) - truth)
        loss = jnp.mean(error**2)
        return loss, {"loss": loss}

    return objective


# The regressions on the path, name -> function (path, predicts, coupling, time).
OBJECTIVES = {
    "flow_matching": flow_matching,
    "ddpm": noise_matching,
    "score_matching": score_matching,
    "scoreflow": scoreflow,
}
