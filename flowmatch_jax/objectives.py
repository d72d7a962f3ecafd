"""Training objectives.

An objective is a function (apply, params, batch, key) -> (loss, metrics): a scalar to minimise and
a dict of scalars to log. ``batch["x"]`` is x_1 [B, ...] in model space; "label" [B] and
"condition" [B, H, W, C'] are handed to the network where present.

All here regress on a point of the path, x_t = sigma_t x_0 + mu_t, and differ in the residual they
square; it is averaged over dimensions, so that losses compare across image sizes. Each takes

    path: the conditional path;
    predicts: what the network's output means (see `predictions`);
    coupling: draws x_0 for x_1 (see `couplings`);
    time: draws t (see `times`).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from flowmatch_jax import couplings, predictions, times
from flowmatch_jax.arrays import Apply, Array, Params
from flowmatch_jax.errors import UserError
from flowmatch_jax.paths import GaussianPath, coefficients, flow_and_velocity, starts_without_data

Batch = dict[str, Array]
Objective = Callable[[Apply, Params, Batch, Array], tuple[Array, dict[str, Array]]]
Coupling = Callable[[Array, Array], Array]
Time = Callable[[Array, int, float], Array]
# (t, x_t, x_0, u_t, output) -> what is squared, of x_t's shape
Residual = Callable[[Array, Array, Array, Array, Array], Array]


def flow_matching(
    path: GaussianPath,
    predicts: str = "velocity",
    coupling: Coupling = couplings.independent,
    time: Time = times.uniform,
) -> Objective:
    """Conditional flow matching, E ||v_t(psi_t(x_0)) - d/dt psi_t(x_0)||^2 (Eq. 14)."""

    def residual(t: Array, x_t: Array, x0: Array, u_t: Array, output: Array) -> Array:
        return predictions.convert(path, t, x_t, output, predicts, "velocity") - u_t

    return _regression(path, residual, coupling, time)


def noise_matching(
    path: GaussianPath,
    predicts: str = "noise",
    coupling: Coupling = couplings.independent,
    time: Time = times.uniform,
) -> Objective:
    """DDPM's, E ||eps_t(x_t) - x_0||^2."""

    def residual(t: Array, x_t: Array, x0: Array, u_t: Array, output: Array) -> Array:
        return predictions.convert(path, t, x_t, output, predicts, "noise") - x0

    return _regression(path, residual, coupling, time)


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

    def residual(t: Array, x_t: Array, x0: Array, u_t: Array, output: Array) -> Array:
        sigma = coefficients(path, t, x_t).sigma
        return sigma * _score_error(path, predicts, t, x_t, x0, output)

    return _regression(path, residual, coupling, time)


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
    if starts_without_data(path):
        raise UserError("name", "scoreflow", "this path is no diffusion; use path vp or ve")

    def residual(t: Array, x_t: Array, x0: Array, u_t: Array, output: Array) -> Array:
        c = coefficients(path, t, x_t)
        beta = 2 * c.sigma * (c.sigma * c.alpha_dot / c.alpha - c.sigma_dot)
        return jnp.sqrt(beta) * _score_error(path, predicts, t, x_t, x0, output)

    return _regression(path, residual, coupling, time)


def _score_error(
    path: GaussianPath, predicts: str, t: Array, x_t: Array, x0: Array, output: Array
) -> Array:
    """S_t(x_t) - grad log p_t(x_t | x_1), the latter being -x_0 / sigma_t."""
    score = predictions.convert(path, t, x_t, output, predicts, "score")
    return score + x0 / coefficients(path, t, x_t).sigma


def _regression(
    path: GaussianPath, residual: Residual, coupling: Coupling, time: Time
) -> Objective:
    def objective(
        apply: Apply, params: Params, batch: Batch, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        noise_key, time_key, dropout_key = jax.random.split(key, 3)
        x1 = batch["x"]
        x0 = coupling(noise_key, x1)
        t = time(time_key, x1.shape[0], path.t_end)
        x_t, u_t = flow_and_velocity(path, t, x0, x1)
        inputs = {name: batch.get(name) for name in ("label", "condition")}
        x_in = predictions.network_input(path, t, x_t)
        output = apply(params, t, x_in, **inputs, key=dropout_key)
        loss = jnp.mean(residual(t, x_t, x0, u_t, output) ** 2)
        return loss, {"loss": loss}

    return objective


OBJECTIVES = {
    "flow_matching": flow_matching,
    "ddpm": noise_matching,
    "score_matching": score_matching,
    "scoreflow": scoreflow,
}
