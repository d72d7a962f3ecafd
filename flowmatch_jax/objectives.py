"""Training objectives.

An objective is a function (apply, params, batch, key) -> (loss, metrics): a scalar to minimise and
a dict of scalars to log. ``batch["x"]`` is x_1 [B, ...] in model space; "label" [B] and
"condition" [B, H, W, C'] are handed to the network where present.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from flowmatch_jax import couplings, times
from flowmatch_jax.arrays import Apply, Array, Params
from flowmatch_jax.paths import GaussianPath, flow_and_velocity

Batch = dict[str, Array]
Objective = Callable[[Apply, Params, Batch, Array], tuple[Array, dict[str, Array]]]


def flow_matching(
    path: GaussianPath,
    coupling: Callable[[Array, Array], Array] = couplings.independent,
    time: Callable[[Array, int, float], Array] = times.uniform,
) -> Objective:
    """Conditional flow matching, E ||v_t(psi_t(x_0)) - d/dt psi_t(x_0)||^2 (Eq. 14).

    The squared norm is averaged over dimensions, so that losses compare across image sizes.

    Args:
        path: the conditional path.
        coupling: draws x_0 for x_1 (see `couplings`).
        time: draws t (see `times`).
    """

    def objective(
        apply: Apply, params: Params, batch: Batch, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        noise_key, time_key, dropout_key = jax.random.split(key, 3)
        x1 = batch["x"]
        x0 = coupling(noise_key, x1)
        t = time(time_key, x1.shape[0], path.t_end)
        x_t, u_t = flow_and_velocity(path, t, x0, x1)
        inputs = {name: batch.get(name) for name in ("label", "condition")}
        v_t = apply(params, t, x_t, **inputs, key=dropout_key)
        loss = jnp.mean((v_t - u_t) ** 2)
        return loss, {"loss": loss}

    return objective


OBJECTIVES = {"flow_matching": flow_matching}
