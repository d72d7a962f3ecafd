"""Runge-Kutta solves by diffrax, and what it lacks: the classical method, a first step size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

TreeField = Callable[[Array, Any], Any]  # v(t, x), where x may be a pytree of arrays
Norm = Callable[[Any], Array]


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


FIXED = {"euler": diffrax.Euler, "midpoint": diffrax.Midpoint, "heun": diffrax.Heun, "rk4": RK4}
ADAPTIVE = {
    "dopri5": diffrax.Dopri5,
    "tsit5": diffrax.Tsit5,
    "dopri8": diffrax.Dopri8,
    "bosh3": diffrax.Bosh3,
}


class Tableau(NamedTuple):
    """Coefficients of an explicit Runge-Kutta method with s calls per step.

    Attributes:
        lower: weights of the velocities in the states of calls 2 to s, of lengths 1 to s - 1.
        last: weights in the end of the step, of length s.
        times: times of the calls within a step, in units of the step.
    """

    lower: tuple[np.ndarray, ...]
    last: np.ndarray
    times: tuple[float, ...]


def tableau(method: str) -> Tableau:
    """Return the tableau of a method, without the last call of one that begins the next step."""
    if method == "euler":  # diffrax's has none
        return Tableau((), np.ones(1), (0.0,))
    known = (FIXED | ADAPTIVE)[method].tableau
    times = (0.0, *known.c)
    if known.fsal:
        return Tableau(known.a_lower[:-1], known.a_lower[-1], times[:-1])
    return Tableau(known.a_lower, known.b_sol, times)


class Stochastic(NamedTuple):
    """A method for SDEs with additive noise.

    Attributes:
        make: creates diffrax's solver.
        calls: times of the calls of the field within a step, in units of the step.
    """

    make: Callable[[], diffrax.AbstractSolver]
    calls: tuple[float, ...]


STOCHASTIC = {
    "euler_maruyama": Stochastic(diffrax.Euler, (0,)),
    "sea": Stochastic(diffrax.SEA, (0,)),
    "shark": Stochastic(diffrax.ShARK, (0, 5 / 6)),
}
# name -> function from the step size control of the backward solve to the adjoint
ADJOINTS = {
    "checkpointed": lambda control: diffrax.RecursiveCheckpointAdjoint(),
    "backsolve": lambda control: diffrax.BacksolveAdjoint(stepsize_controller=control),
}


def count_calls(method: str, steps: Array | int) -> Array | int:
    """Count the calls of the field in a number of steps, accepted and rejected, of a method.

    A method whose last stage is the next step's first (FSAL) saves one call per step. Choosing the
    first step of an adaptive method takes two calls (Hairer et al., II.4); FSAL reuses one of them.
    """
    if method == "euler":
        return steps
    tableau = (FIXED | ADAPTIVE)[method].tableau
    return steps * (tableau.num_stages - tableau.fsal) + 2 * (method in ADAPTIVE)


def fixed_steps(times: Array, adjoint: str) -> dict[str, Any]:
    """Return `solve`'s arguments for steps between these times, [N + 1]."""
    # diffrax reverses time, so that it increases, before it calls the adjoint.
    turned = diffrax.StepTo(times[::-1] * jnp.sign(times[-1] - times[0]))
    return dict(
        dt0=None,
        stepsize_controller=diffrax.StepTo(times),
        adjoint=ADJOINTS[adjoint](turned),
        max_steps=len(times) - 1,
    )


def adaptive_steps(
    field: TreeField,
    x: Any,
    t0: Array,
    t1: Array,
    method: str,
    tolerances: tuple[float, float],
    norm: Norm,
    adjoint: str,
) -> dict[str, Any]:
    """Return `solve`'s arguments for steps by the tolerances (rtol, atol) of an error norm."""
    stepper = ADAPTIVE[method]()
    order = stepper.order(diffrax.ODETerm(field))
    dt0, v0 = first_step(field, x, t0, t1, order, *tolerances, norm)
    if adjoint == "backsolve":
        v0 = jax.lax.stop_gradient(v0)  # the adjoint equation includes its derivatives
    # A step near the resolution of t means that the field is not finite: stop the solve. Below five
    # units in the last place, a step that is shortened by a tenth may be rounded back to itself.
    smallest = 3 * jnp.finfo(t0.dtype).eps * jnp.maximum(jnp.abs(t0), jnp.abs(t1))
    control = partial(diffrax.PIDController, *tolerances, dtmin=smallest, force_dtmin=False)
    return dict(
        dt0=dt0,
        # State of an FSAL method: whether the first stage is missing, and its value.
        solver_state=(jnp.array(False), v0) if stepper.tableau.fsal else None,
        stepsize_controller=control(norm=norm),
        adjoint=ADJOINTS[adjoint](control(norm=diffrax.adjoint_rms_seminorm)),
    )


def solve(
    field: TreeField,
    x: Any,
    t0: Array,
    t1: Array,
    method: str,
    save_at: Array | None,
    **steps: Any,
) -> diffrax.Solution:
    """Solve dx/dt = field(t, x) by diffrax; its ys are x(t1) [1, ...], with the states at save_at.

    Args:
        field: v(t, x).
        x: state at t0.
        t0, t1: start and end time.
        method: name of a fixed or adaptive method.
        save_at: times at which to save the state.
        **steps: result of `fixed_steps` or `adaptive_steps`, and max_steps.
    """
    # Backsolve needs the arrays that the field closes over as arguments, for their derivatives.
    field, closed_over = jax.closure_convert(field, t0, x)
    kept = diffrax.SubSaveAt(t1=True)
    if save_at is not None:
        kept = (kept, diffrax.SubSaveAt(ts=save_at))
    return diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, x, arrays: field(t, x, *arrays)),
        (FIXED | ADAPTIVE)[method](),
        t0=t0,
        t1=t1,
        y0=x,
        args=closed_over,
        saveat=diffrax.SaveAt(subs=kept),
        throw=False,
        **steps,
    )


def first_step(
    field: TreeField,
    x: Any,
    t0: Array,
    t1: Array,
    order: int,
    rtol: float,
    atol: float,
    error_norm: Norm,
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
