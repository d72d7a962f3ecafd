"""Distributions of the time t in training.

A time distribution is a function (key, n, t_end) -> t [n], float32, in [0, t_end].
"""

from __future__ import annotations

import jax

from flowmatch_jax.arrays import Array


def uniform(key: Array, n: int, t_end: float) -> Array:
    """t ~ U[0, t_end], independent for each sample: the paper's."""
    return jax.random.uniform(key, (n,), maxval=t_end)


TIMES = {"uniform": uniform}
