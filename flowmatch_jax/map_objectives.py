"""Objectives that train the average velocity of a flow map (see `flow_maps`).

An objective is a regression of u(t, s, x_t), at points of the path and with 0 <= t <= s, to a
target that uses the network itself and gets no gradient:

    mean_flow     u_t + (s - t) du/dt                      MeanFlow (Geng et al. 2025, 2505.13447)
    alpha_flow    alpha u_t + (1 - alpha) u(r, s, x_r)     alpha-Flow (Zhang et al. 2025)

with r = t + alpha (s - t) and x_r = x_t + (r - t) u_t. At s = t both are flow matching. For alpha =
1 so is the second everywhere, and for alpha -> 0 it tends to the first; it needs no derivative of
the network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from flowmatch_jax import couplings, predictions
from flowmatch_jax.arrays import (
    NO_LABEL,
    Apply,
    Array,
    AverageVelocity,
    Batch,
    Params,
    expand_time,
    sum_dims,
)
from flowmatch_jax.couplings import Coupling, noise_of
from flowmatch_jax.flow_maps import along_flow
from flowmatch_jax.objectives import Objective
from flowmatch_jax.paths import GaussianPath, flow_and_velocity
from flowmatch_jax.runtime.errors import UserError, at_least, one_of, positive
from flowmatch_jax.times import log_normal

TANGENTS = ("conditional", "predicted")
# (u, t, s, x_t, u_t, options, alpha) -> u(t, s, x_t), its target, and the unit of their difference
Target = Callable[..., tuple[Array, Array, Array | float]]


@dataclass(frozen=True)
class MapOptions:
    """What the objectives of flow maps have in common; the class of config.flow_map.

    Attributes:
        tangent: the velocity along which mean_flow differentiates: "conditional" (u_t, MeanFlow) or
            "predicted" (u(t, t, x_t), one network call more; improved MeanFlow).
        alpha: alpha of alpha_flow, at the end of training.
        anneal: the shares of training between which alpha falls from 1 to ``alpha``, geometrically;
            two equal shares: it is constant.
        equal: share of the samples with s = t, which learn the velocity.
        start, end: mean and standard deviation of log(sigma / alpha) at t and at s; where s comes
            out before t, it is t.
        power, eps: the squared error e, summed over dimensions, is divided by (e + eps)^power.
        guidance: scale of the classifier-free guidance that the map learns; 1: none. For samples
            with a label u_t is replaced by scale u_t + (1 - scale) u(t, t, x_t | none).
    """

    tangent: str = "conditional"
    alpha: float = 0.1
    anneal: tuple[float, float] = (0.0, 0.0)
    equal: float = 0.5
    start: tuple[float, float] = (-0.6, 1.6)
    end: tuple[float, float] = (-4.0, 1.6)
    power: float = 0.75
    eps: float = 1e-3
    guidance: float = 1.0

    def validate(self) -> None:
        """Raise UserError unless all values are in their ranges."""
        one_of("tangent", self.tangent, TANGENTS)
        if not 0 < self.alpha <= 1:
            raise UserError("alpha", self.alpha, "it must be in (0, 1]")
        if len(self.anneal) != 2 or not 0 <= self.anneal[0] <= self.anneal[1] <= 1:
            raise UserError("anneal", self.anneal, "it takes two shares, 0 <= from <= to <= 1")
        if not 0 <= self.equal <= 1:
            raise UserError("equal", self.equal, "it must be in [0, 1]")
        for name, value in (("start", self.start), ("end", self.end)):
            if len(value) != 2 or not value[1] > 0:
                raise UserError(name, value, "it takes a mean, and a standard deviation above 0")
        at_least("power", self.power, 0)
        positive("eps", self.eps)
        at_least("guidance", self.guidance, 0)

    def alpha_at(self, progress: Array) -> Array:
        """Return alpha where a share ``progress`` of the training is done."""
        begin, end = self.anneal
        if begin == end:
            return jnp.where(progress < begin, 1.0, self.alpha)
        return self.alpha ** jnp.clip((progress - begin) / (end - begin), 0, 1)


def draw_times(key: Array, n: int, path: GaussianPath, options: MapOptions) -> tuple[Array, Array]:
    """Draw the times t and s, [n] each, with 0 <= t <= s <= path.t_end."""
    t_key, s_key, equal_key = jax.random.split(key, 3)
    t = log_normal(t_key, n, path, *options.start)
    s = jnp.maximum(t, log_normal(s_key, n, path, *options.end))
    return t, jnp.where(jax.random.uniform(equal_key, (n,)) < options.equal, t, s)


def mean_flow(
    u: AverageVelocity, t: Array, s: Array, x_t: Array, u_t: Array, options: MapOptions, _: Array
) -> tuple[Array, Array, float]:
    """Compute u(t, s, x_t) and MeanFlow's target, u_t + (s - t) du/dt; the unit is 1."""
    predicted = options.tangent == "predicted"
    tangent = jax.lax.stop_gradient(u(t, t, x_t)) if predicted else u_t
    value, derivative = along_flow(u, tangent, t, s, x_t)
    return value, u_t + expand_time(s - t, x_t) * derivative, 1.0


def alpha_flow(
    u: AverageVelocity, t: Array, s: Array, x_t: Array, u_t: Array, _: MapOptions, alpha: Array
) -> tuple[Array, Array, Array]:
    """Compute u(t, s, x_t) and alpha-Flow's target, alpha u_t + (1 - alpha) u(r, s, x_r).

    Their difference is alpha times MeanFlow's, but for terms of order alpha^2: the unit is alpha.
    """
    step = alpha * (s - t)
    x_r = x_t + expand_time(step, x_t) * u_t
    return u(t, s, x_t), alpha * u_t + (1 - alpha) * u(t + step, s, x_r), alpha


def map_regression(
    target: Target,
    path: GaussianPath,
    options: MapOptions = MapOptions(),
    coupling: Coupling = couplings.independent,
    steps: int | None = None,
) -> Objective:
    """Create E weight ||u(t, s, x_t) - target||^2 over t, s, x_1 and x_0.

    The squared error e is summed over dimensions, in the unit of the target, and has the weight
    unit / (e + eps)^power, without a gradient. For power = 1 this is the weight of alpha-Flow, and
    for all powers the gradient of alpha_flow tends to that of mean_flow for alpha -> 0.

    Args:
        target: `mean_flow` or `alpha_flow`.
        path: the conditional path.
        options: the other settings.
        coupling: draws x_0 for x_1 (see `couplings`).
        steps: steps of the whole training, for options.anneal; batch["step"] [B] is the present
            one. Without either, alpha is that of the end.

    Returns:
        An objective for networks with two times that predict the velocity. Its metrics are "loss",
        which the weight makes nearly constant, and "squared_error", the error per dimension.
    """

    def objective(
        apply: Apply, params: Params, batch: Batch, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        noise_key, time_key, dropout_key = jax.random.split(key, 3)
        x1 = batch["x"]
        x0 = noise_of(coupling, noise_key, batch)
        t, s = draw_times(time_key, x1.shape[0], path, options)
        x_t, u_t = flow_and_velocity(path, t, x0, x1)
        given = lambda **inputs: predictions.average_velocity(  # noqa: E731
            apply, params, path, **inputs, key=dropout_key
        )
        inputs = {name: batch.get(name) for name in ("label", "condition")}
        if options.guidance != 1:
            u_t = guided_velocity(given, inputs, t, x_t, u_t, options.guidance)
        done = batch["step"][0] / steps if steps and "step" in batch else 1.0
        alpha = options.alpha_at(done)
        value, wanted, unit = target(given(**inputs), t, s, x_t, u_t, options, alpha)
        error = sum_dims((value - jax.lax.stop_gradient(wanted)) ** 2) / unit**2
        weight = (jax.lax.stop_gradient(error) + options.eps) ** -options.power
        loss = jnp.mean(unit * weight * error)
        return loss, {"loss": loss, "squared_error": error.sum() / x1.size}

    return objective


def guided_velocity(
    given: Callable[..., AverageVelocity],
    inputs: Batch,
    t: Array,
    x_t: Array,
    u_t: Array,
    scale: float,
) -> Array:
    """Compute scale u_t + (1 - scale) u(t, t, x_t | none) for samples with a label, u_t for others.

    Args:
        given: (**inputs) -> average velocity with these conditioning inputs.
        inputs: conditioning inputs with "label" [B].
        t, x_t, u_t: times, points and conditional velocities.
        scale: guidance scale.
    """
    label = inputs["label"]
    without = given(**inputs | {"label": jnp.full_like(label, NO_LABEL)})
    guided = scale * u_t + (1 - scale) * jax.lax.stop_gradient(without(t, t, x_t))
    return jnp.where(expand_time(label, x_t) == NO_LABEL, u_t, guided)


# name -> function (path, options, coupling, steps) -> Objective
MAP_OBJECTIVES = {
    "mean_flow": partial(map_regression, mean_flow),
    "alpha_flow": partial(map_regression, alpha_flow),
}
