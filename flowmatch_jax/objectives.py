"""Training objectives.

An objective is a function (apply, params, batch, key) -> (loss, metrics): a scalar to minimise and
a dict of scalars to log. ``batch["x"]`` is x_1 [B, ...] in model space; "label" [B] and
"condition" [B, H, W, C'] are passed to the network if they are present. "x0" [B, ...] is the unit
noise that is paired with x_1, where it comes with the batch; otherwise a coupling draws it.

Most objectives are regressions at points of the path, x_t = sigma_t x_0 + mu_t, and differ in the
target and in the weight of its error: these are the rows of `TARGETS`, and `matching` creates an
objective from a row. `maximum_likelihood`, with which continuous normalizing flows were trained
before, solves the flow in each step. `sr3` and `regression` are baselines for super-resolution.
Squared errors are averaged over dimensions, so that losses are comparable across image sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowmatch_jax import couplings, predictions, times
from flowmatch_jax.arrays import Apply, Array, Batch, Inputs, Params, expand_time
from flowmatch_jax.couplings import Coupling, noise_of
from flowmatch_jax.likelihood import log_prob
from flowmatch_jax.paths import (
    Coefficients,
    GaussianPath,
    coefficients,
    flow_and_velocity,
    log_snr,
    squared_diffusion,
    starts_without_data,
)
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.sampling import ancestral
from flowmatch_jax.solvers import Solver

Objective = Callable[[Apply, Params, Batch, Array], tuple[Array, dict[str, Array]]]
Time = Callable[[Array, int, GaussianPath], Array]

# The error of a network that predicts the data enters a target with a factor of 1 / sigma_t or
# more, which is unbounded near t = 1. The factor is clipped to this value, as by Li & He 2025
# (2511.13720), who clip sigma_t at 0.05 on the OT path.
LARGEST_SHARE = 20.0


def one(c: Coefficients) -> Array:
    """1: all times have the same weight."""
    return jnp.ones_like(c.sigma)


def sigma(c: Coefficients) -> Array:
    """sigma_t: with this root of the weight, errors of the score count as errors of the noise."""
    return c.sigma


def root_of_beta(c: Coefficients) -> Array:
    """The root of the squared diffusion coefficient beta(1 - t), whatever the path."""
    return jnp.sqrt(squared_diffusion(c))


class Target(NamedTuple):
    """The regression target of an objective, and the weight of its squared error.

    Attributes:
        of: the target: "velocity", "noise" or "score" (see `predictions`).
        root_weight: the root of the weight, (the path's coefficients at t) -> [B, ...]; the error
            is multiplied by it before it is squared.
        predicts: default prediction of the network (see `predictions`).
    """

    of: str
    root_weight: Callable[[Coefficients], Array]
    predicts: str


TARGETS = {
    "flow_matching": Target("velocity", one, predicts="velocity"),
    "ddpm": Target("noise", one, predicts="noise"),
    "score_matching": Target("score", sigma, predicts="noise"),
    "scoreflow": Target("score", root_of_beta, predicts="noise"),
}


def matching(
    name: str,
    path: GaussianPath,
    predicts: str | None = None,
    coupling: Coupling = couplings.independent,
    time: Time = times.uniform,
) -> Objective:
    """Create E weight ||prediction - target||^2 over t, x_1 and x_0, for a row of TARGETS.

        flow_matching     E ||v_t(x_t) - u_t||^2                            (Eq. 14)
        ddpm              E ||eps_t(x_t) - x_0||^2
        score_matching    E sigma_t^2 ||S_t(x_t) + x_0 / sigma_t||^2
        scoreflow         E beta(1 - t) ||S_t(x_t) + x_0 / sigma_t||^2

    If the network predicts the noise, S = -eps / sigma_t, and score matching equals DDPM's loss.

    Args:
        name: name of the row.
        path: the conditional path.
        predicts: the network's prediction (see `predictions`); None: the row's default.
        coupling: draws x_0 for x_1 (see `couplings`).
        time: draws t (see `times`).

    Raises:
        UserError: scoreflow on a path with mu_0 = 0, which is not a diffusion: beta is infinite.
    """
    if name == "scoreflow":
        _check_diffusion(path)
    target = TARGETS[name]
    return path_regression(target, path, predicts or target.predicts, coupling, time)


def scoreflow_by_importance(
    path: GaussianPath,
    predicts: str = "noise",
    coupling: Coupling = couplings.independent,
    stratified: bool = False,
) -> Objective:
    """Create ScoreFlow's objective with importance sampling of t by its weight, beta / sigma^2.

    It has the same expectation as weighted uniform times, with less variance (Song et al. 2021,
    2101.09258). With lambda_t = log(alpha_t / sigma_t), beta / sigma^2 is 2 lambda'_t, so t is
    uniform in lambda_t, and the loss for uniform times t in [0, t_end] equals

        2 (lambda_t_end - lambda_0) / t_end  E ||eps_t(x_t) - x_0||^2.

    Args:
        path, predicts, coupling: as in `matching`.
        stratified: spread the lambda_t evenly over the batch, as in `times.between`.

    Raises:
        UserError: as in `matching` for scoreflow.
    """
    _check_diffusion(path)
    weight = 2 * (log_snr(path, path.t_end) - log_snr(path, 0.0)) / path.t_end
    target = Target("noise", lambda c: jnp.sqrt(weight), predicts)
    time = partial(times.uniform_log_snr, stratified=stratified)
    return path_regression(target, path, predicts, coupling, time)


def _check_diffusion(path: GaussianPath) -> None:
    if starts_without_data(path):
        raise UserError("name", "scoreflow", "this path is no diffusion; use path vp or ve")


def path_regression(
    target: Target, path: GaussianPath, predicts: str, coupling: Coupling, time: Time
) -> Objective:
    """Create E weight ||prediction of the target - target||^2 at points x_t of the path."""

    def objective(
        apply: Apply, params: Params, batch: Batch, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        noise_key, time_key, dropout_key = jax.random.split(key, 3)
        x1 = batch["x"]
        x0 = noise_of(coupling, noise_key, batch)
        t = time(time_key, x1.shape[0], path)
        x_t, u_t = flow_and_velocity(path, t, x0, x1)
        x_in = predictions.network_input(path, t, x_t)
        output = apply(params, t, x_in, **conditions(batch), key=dropout_key)

        c = coefficients(path, t, x_t)
        root = target.root_weight(c)
        predicted = partial(predictions.convert, path, t, source=predicts, target=target.of)
        if predicts == "data":
            share = jnp.abs(root * predicted(jnp.zeros_like(x_t), jnp.ones_like(x_t)))
            error = jnp.minimum(share, LARGEST_SHARE) * (output - x1)
        else:
            truth = {"velocity": u_t, "noise": x0, "score": -x0 / c.sigma}[target.of]
            error = root * (predicted(x_t, output) - truth)
        loss = jnp.mean(error**2)
        return loss, {"loss": loss}

    return objective


def maximum_likelihood(
    path: GaussianPath,
    predicts: str = "velocity",
    solver: Solver = Solver(),
    divergence: str = "hutchinson",
    probes: int = 1,
) -> Objective:
    """Create -E log p_1(x_1) in nats/dim, through the solve of `likelihood.log_prob` (Appendix C).

    It uses only the source and t_end of the path; the flow between them is unconstrained. Dropout
    is off, because it would change the field at each call.

    Args:
        path, predicts: as in `matching`.
        solver: the solver; its adjoint and max_steps determine how the gradient is computed.
        divergence, probes: as in `likelihood.log_prob`.

    Returns:
        An objective with the metrics "loss", "nfe" (evaluations of the field with its divergence
        in the forward solve) and "converged" (0 or 1).
    """

    def objective(
        apply: Apply, params: Params, batch: Batch, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        x1 = batch["x"]
        field = predictions.vector_field(apply, params, path, predicts, **conditions(batch))
        result = log_prob(
            field,
            x1,
            key,
            solver,
            source_std=path.source_std,
            t1=path.t_end,
            divergence=divergence,
            probes=probes,
        )
        loss = -jnp.mean(result.log_prob) / math.prod(x1.shape[1:])
        cost = {"nfe": result.nfe, "converged": result.converged}
        return loss, {"loss": loss} | {name: n.astype(x1.dtype) for name, n in cost.items()}

    return objective


def sr3(levels: Array) -> Objective:
    """Create SR3's objective, E ||eps(x_a, a) - x_0||^2 with x_a = a x_1 + sqrt(1 - a^2) x_0.

    The network is conditioned on the noise level a instead of t (Saharia et al. 2021, Eq. 6,
    squared).

    Args:
        levels: noise schedule for `ancestral.draw_levels`.
    """

    def objective(
        apply: Apply, params: Params, batch: Batch, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        noise_key, level_key, dropout_key = jax.random.split(key, 3)
        x1 = batch["x"]
        x0 = jax.random.normal(noise_key, x1.shape, x1.dtype)
        a = ancestral.draw_levels(level_key, x1.shape[0], levels)
        signal, noise = (expand_time(c, x1) for c in (a, jnp.sqrt(1 - a**2)))
        output = apply(params, a, signal * x1 + noise * x0, **conditions(batch), key=dropout_key)
        loss = jnp.mean((output - x0) ** 2)
        return loss, {"loss": loss}

    return objective


def regression(
    apply: Apply, params: Params, batch: Batch, key: Array
) -> tuple[Array, dict[str, Array]]:
    """The objective E ||f(condition) - x_1||^2; f learns the conditional mean of x_1."""
    x1 = batch["x"]
    output = predictions.point_estimate(apply, params, x1.shape, key, **conditions(batch))
    loss = jnp.mean((output - x1) ** 2)
    return loss, {"loss": loss}


def conditions(batch: Batch) -> Inputs:
    """Return the conditioning inputs of a batch; None for those that it lacks."""
    return {name: batch.get(name) for name in ("label", "condition")}


# The objectives without a vector field, name -> prediction of the network.
WITHOUT_FIELD = {"regression": "data", "sr3": "noise"}
# The objectives that pair no noise with data on a path.
WITHOUT_COUPLING = (*WITHOUT_FIELD, "maximum_likelihood")

# The objectives of a path, name -> function (path, predicts, coupling, time) -> Objective.
OBJECTIVES = {name: partial(matching, name) for name in TARGETS}
