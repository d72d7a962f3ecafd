"""Flow matching between two datasets with noise in between (stochastic interpolants).

Albergo et al. 2023 (2303.08797) add noise to the line between the two ends of a pair,

    x_t = sigma_t x_0 + mu_t(x_1) + gamma_t z,  z ~ N(0, I),  gamma_0 = gamma_1 = 0,

so that the marginals between two sets of separate points are smooth. The ends stay as they are.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from flowmatch_jax import times
from flowmatch_jax.arrays import Apply, Array, Batch, Params, expand_time
from flowmatch_jax.couplings import Coupling, noise_of
from flowmatch_jax.objectives import Objective, Time, conditions
from flowmatch_jax.paths import GaussianPath, flow_and_velocity


def gamma(t: Array, t_end: float) -> Array:
    """Compute sin^2(pi t / t_end), the standard deviation of z's share: 0 at both ends, at most 1.

    Its derivative is 0 at both ends too, so that the velocity is finite there.
    """
    return jnp.sin(math.pi * t / t_end) ** 2


def stochastic_interpolant(
    path: GaussianPath, noise: float, coupling: Coupling, time: Time = times.uniform
) -> Objective:
    """Create E ||v_t(x_t) - u_t||^2 with u_t = sigma'_t x_0 + mu'_t(x_1) + noise gamma'_t z.

    Args:
        path: the path between x_0 and x_1.
        noise: largest standard deviation of the noise in between, in model space.
        coupling, time: as in `objectives.matching`.
    """

    def objective(
        apply: Apply, params: Params, batch: Batch, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        x0_key, time_key, dropout_key, z_key = jax.random.split(key, 4)
        x1 = batch["x"]
        x0 = noise_of(coupling, x0_key, batch)
        t = time(time_key, x1.shape[0], path)
        z = noise * jax.random.normal(z_key, x1.shape, x1.dtype)

        def point(t: Array) -> Array:
            return expand_time(gamma(t, path.t_end), x1) * z

        x_t, u_t = flow_and_velocity(path, t, x0, x1)
        added, velocity = jax.jvp(point, (t,), (jnp.ones_like(t),))
        output = apply(params, t, x_t + added, **conditions(batch), key=dropout_key)
        loss = jnp.mean((output - u_t - velocity) ** 2)
        return loss, {"loss": loss}

    return objective
