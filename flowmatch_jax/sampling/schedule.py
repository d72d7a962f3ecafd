"""Fields of a trained model along another path than its own.

Where two paths have the same ratio of signal to noise, their points are multiples of each other, so
that noise and data predicted from them are equal. The field of one path thus gives the field of the
other, and a model can be sampled along a path that its solver takes in fewer steps. This changes
the variables of the flow's equation, which is exact for any coupling of noise and data.
"""

from __future__ import annotations

import jax.numpy as jnp

from flowmatch_jax.arrays import Array, Field
from flowmatch_jax.paths import GaussianPath, coefficients, log_snr, time_at_log_snr
from flowmatch_jax.predictions import DATA_AND_NOISE_FROM, FROM_DATA_AND_NOISE


def along(field: Field, path: GaussianPath, other: GaussianPath) -> Field:
    """Turn the field of a path into the field of another path.

    At time t of the other path, s is the time of the field's path with the same alpha / sigma.
    With alpha_t = c alpha_s and sigma_t = c sigma_s, the field is

        v(t, x) = alpha'_t x_1 + sigma'_t x_0,

    where x_1 and x_0 are the data and noise that field(s, x / c) predicts. No derivative of s is
    needed. Beyond the ratios of the field's path, they are those predicted at its nearer end. The
    error is below the ratio at the noise end, and below its inverse at the data end.

    Args:
        field: v(t, x) of ``path``.
        path, other: paths with a mean alpha_t x_1 and a std that does not depend on x_1. If they
            are the same object, the field is returned as it is.
    """
    if other is path:
        return field

    def field_of_other(t: Array, x: Array) -> Array:
        s = time_at_log_snr(path, log_snr(other, jnp.asarray(t, x.dtype)))
        own, others = coefficients(path, s, x), coefficients(other, t, x)
        c = jnp.hypot(others.alpha, others.sigma) / jnp.hypot(own.alpha, own.sigma)
        x1, x0 = DATA_AND_NOISE_FROM["velocity"](own, x / c, field(s, x / c))
        return FROM_DATA_AND_NOISE["velocity"](others, x1, x0)

    return field_of_other
