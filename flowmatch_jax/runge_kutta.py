"""Runge-Kutta components missing in diffrax: the classical method, and a first step size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


class RK4(diffrax.AbstractERK):
    """The classical fourth-order Runge-Kutta method, with four calls per step."""

    tableau: ClassVar[diffrax.ButcherTableau] = diffrax.ButcherTableau(
        a_lower=(np.array([0.5]), np.array([0.0, 0.5]), np.array([0.0, 0.0, 1.0])),
        b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        # There is no embedded method: this error estimate is Euler's, and is not used.
        b_error=np.array([-5 / 6, 1 / 3, 1 / 3, 1 / 6]),
        c=np.array([0.5, 0.5, 1.0]),
    )
    interpolation_cls: ClassVar[Callable[..., diffrax.AbstractLocalInterpolation]] = (
        diffrax.ThirdOrderHermitePolynomialInterpolation.from_k
    )

    def order(self, terms: Any) -> int:
        return 4


def first_step(
    field: Callable[[Array, Any], Any],
    x: Any,
    t0: Array,
    t1: Array,
    order: int,
    rtol: float,
    atol: float,
    error_norm: Callable[[Any], Array],
) -> tuple[Array, Any]:
    """Choose a signed first step h whose error should be just acceptable; returns (h, v(t0, x)).

    It takes two calls of the field. No derivative is taken through h, because the solution does not
    depend on it. The algorithm is from Hairer, Norsett and Wanner, Solving Ordinary Differential
    Equations I, II.4. diffrax 0.7 starts with 0.01 instead, which costs more than two calls.
    """

    def norm(y: Any) -> Array:
        return error_norm(jax.tree.map(lambda y, x: y / (atol + rtol * jnp.abs(x)), y, x))

    def small_step(v: Any) -> Array:
        h = jnp.where((norm(x) < 1e-5) | (norm(v) < 1e-5), 1e-6, 0.01 * norm(x) / norm(v))
        return jnp.sign(t1 - t0) * jnp.minimum(h, jnp.abs(t1 - t0))

    @jax.checkpoint
    def euler(carry: tuple, _: None) -> tuple[tuple, Any]:
        h, v = carry
        v = field(t0 + h, jax.tree.map(lambda x, v: x + h * v, x, v))
        return jax.lax.stop_gradient((small_step(v), v)), v

    # Both calls are in one scan, so that the network is compiled only once here.
    start = (jnp.zeros_like(t0), jax.tree.map(jnp.zeros_like, x))
    _, velocities = jax.lax.scan(euler, start, length=2)
    v0 = jax.tree.map(lambda v: v[0], velocities)
    h0 = small_step(v0)
    acceleration = norm(jax.tree.map(lambda v: v[1] - v[0], velocities)) / jnp.abs(h0)
    steepest = jnp.maximum(norm(v0), acceleration)
    h1 = jnp.where(
        steepest < 1e-15,
        jnp.maximum(1e-6, 1e-3 * jnp.abs(h0)),
        (0.01 / steepest) ** (1 / order),
    )
    h = jnp.minimum(jnp.minimum(100 * jnp.abs(h0), h1), jnp.abs(t1 - t0))
    # For a field that is not finite any step suffices: the solve will stop.
    h = jnp.where(jnp.isfinite(h), h, 0.01 * jnp.abs(t1 - t0)) * jnp.sign(t1 - t0)
    return jax.lax.stop_gradient(h), v0
