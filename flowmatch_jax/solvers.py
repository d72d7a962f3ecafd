"""Integrate a vector field: dx/dt = v(t, x), by diffrax.

Fixed methods take ``steps`` or a ``grid``; adaptive ones take ``rtol`` and ``atol``. One step size
serves the whole batch, so the function evaluations of an adaptive method depend on the batch.
``nfe`` is the number of times the field was called, those for choosing the first step included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix

from flowmatch_jax.arrays import Array
from flowmatch_jax.runtime.errors import UserError, at_least, one_of, positive


class RK4(diffrax.AbstractERK):
    """The classical fourth-order Runge-Kutta method: four calls a step."""

    tableau: ClassVar[diffrax.ButcherTableau] = diffrax.ButcherTableau(
        a_lower=(np.array([0.5]), np.array([0.0, 0.5]), np.array([0.0, 0.0, 1.0])),
        b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        # No embedded method: the error estimate is that of Euler's, and is not used.
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
# name -> function of the step control on the way back
ADJOINTS = {
    "checkpointed": lambda control: diffrax.RecursiveCheckpointAdjoint(),
    "backsolve": lambda control: diffrax.BacksolveAdjoint(stepsize_controller=control),
}


@dataclass(frozen=True)
class Solver:
    """How a vector field is integrated.

    Attributes:
        method: euler, midpoint, heun, rk4 (fixed) or dopri5, tsit5, dopri8, bosh3 (adaptive).
        rtol, atol: tolerances of an adaptive method; not used by a fixed one.
        steps: number of equal steps of a fixed method.
        grid: the times of a fixed method instead, from t0 to t1, strictly monotonic; it makes
            len(grid) - 1 steps.
        adjoint: how derivatives are taken in reverse. "checkpointed": through the steps taken,
            exactly, states between checkpoints computed again. "backsolve": by the adjoint
            equation, solved back in time with the same method, in constant memory.
        max_steps: an adaptive solve that needs more gives up (converged = False); "checkpointed"
            derivatives of one need this bound.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int | None = None
    grid: Sequence[float] | Array | None = None
    adjoint: str = "checkpointed"
    max_steps: int | None = None

    def validate(self) -> None:
        """Raise UserError unless these go together."""
        validate(self.method, self.rtol, self.atol, self.steps, self.grid)


class Solution(NamedTuple):
    """Where the flow arrived, and what it cost.

    Attributes:
        x: the state at t1, of the start's shape and dtype.
        nfe: int32 [], calls of the field.
        steps: int32 [], steps tried; rejected ones included.
        rejected: int32 [], steps whose error was too large.
        converged: bool [], False when x is not finite, or an adaptive step fell below what the
            dtype can resolve (a field that is not finite does that); x is then not a solution.
        trajectory: the state at ``save_at``, [len(save_at), ...]; None without it.
    """

    x: Any
    nfe: Array
    steps: Array
    rejected: Array
    converged: Array
    trajectory: Any = None


def counted(x: Array, calls: int) -> Solution:
    """What was made of so many calls without a solver, one a step."""
    n = jnp.int32(calls)
    return Solution(x, nfe=n, steps=n, rejected=jnp.int32(0), converged=all_finite(x))


def validate(
    method: str,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    steps: int | None = None,
    grid: Sequence[float] | Array | None = None,
) -> None:
    """Raise UserError unless these go together (see `integrate`)."""
    one_of("method", method, FIXED | ADAPTIVE)
    if method in ADAPTIVE:
        for field, value in (("steps", steps), ("grid", grid)):
            if value is not None:
                raise UserError(
                    field,
                    value,
                    f"the adaptive method {method!r} takes rtol and atol only; "
                    f"leave {field} unset or choose one of: {', '.join(sorted(FIXED))}",
                )
        positive("rtol", rtol)
        positive("atol", atol)
    elif (steps is None) == (grid is None):
        raise UserError(
            "steps",
            steps,
            f"the fixed method {method!r} takes either steps (an integer of 1 or more) or a grid; "
            f"set one, or choose an adaptive method: {', '.join(sorted(ADAPTIVE))}",
        )
    elif steps is not None:
        at_least("steps", steps, 1)


def validate_save_at(save_at: Sequence[float] | Array, t0: float, t1: float) -> None:
    """Raise UserError unless these times are in order from t0 to t1."""
    times = np.asarray(save_at, np.float64)
    direction = np.sign(t1 - t0)
    between = (direction * (times - t0) >= -1e-6) & (direction * (t1 - times) >= -1e-6)
    if times.ndim != 1 or not len(times) or not between.all():
        raise UserError("save_at", save_at, f"it takes one time or more between {t0} and {t1}")
    if (direction * np.diff(times) < 0).any():
        raise UserError("save_at", save_at, f"its times must be in order from {t0} to {t1}")


def validate_grid(grid: Sequence[float] | Array, t0: float, t1: float) -> None:
    """Raise UserError unless the grid goes from t0 to t1 in one direction."""
    times = np.asarray(grid, np.float64)
    if times.ndim != 1 or len(times) < 2 or not np.allclose(times[[0, -1]], [t0, t1], 1e-6, 1e-6):
        raise UserError("grid", grid, f"it takes two times or more, from {t0} to {t1}")
    if not (np.diff(times) * np.sign(t1 - t0) > 0).all():
        raise UserError("grid", grid, f"its times must go strictly from {t0} to {t1}")


def count_calls(method: str, steps: Array | int) -> Array | int:
    """Calls of the field in so many steps (accepted and rejected) of a method.

    A method whose last stage is the next step's first (FSAL) saves one call a step. Choosing an
    adaptive method's first step takes two (Hairer et al., II.4), of which FSAL takes over one.
    """
    if method == "euler":
        return steps
    tableau = (FIXED | ADAPTIVE)[method].tableau
    return steps * (tableau.num_stages - tableau.fsal) + 2 * (method in ADAPTIVE)


def all_finite(x: Any) -> Array:
    """Whether every number of a pytree is finite, bool []."""
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(x)]))


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
    """(h, v(t0, x)): a signed first step whose error should just pass, from two calls of the field.

    h has no derivatives, as the solution does not depend on it.

    The algorithm of Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, II.4.
    diffrax 0.7 takes 0.01 instead, which costs more steps than these two calls.
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

    # Both calls in one scan, so that a network is compiled once here.
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
    # A field that is not finite says nothing: any step will do to find that out and stop.
    h = jnp.where(jnp.isfinite(h), h, 0.01 * jnp.abs(t1 - t0)) * jnp.sign(t1 - t0)
    return jax.lax.stop_gradient(h), v0


def integrate(
    field: Callable[[Array, Any], Any],
    x: Any,
    t0: float = 0.0,
    t1: float = 1.0,
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    steps: int | None = None,
    grid: Sequence[float] | Array | None = None,
    save_at: Sequence[float] | Array | None = None,
    error_norm: Callable[[Any], Array] = optimistix.rms_norm,
    adjoint: str = "checkpointed",
    max_steps: int | None = None,
) -> Solution:
    """Follow dx/dt = field(t, x) from x at t0 to t1; backwards in time when t1 < t0.

    Call it inside ``jax.jit`` with a network's parameters as arguments: a closure over arrays
    would compile anew for each checkpoint.

    Args:
        field: v(t, x) of x's shape; t is a scalar.
        x: state at t0, [B, ...], or a pytree of arrays of one float dtype. The solve is in float32
            at least, whatever the field's dtype; the result has x's.
        t0, t1: the first and the last time.
        method: euler, midpoint, heun, rk4 (fixed) or dopri5, tsit5, dopri8, bosh3 (adaptive).
        rtol, atol: tolerances of an adaptive method; not used by a fixed one.
        steps: number of equal steps of a fixed method.
        grid: the times of a fixed method, from t0 to t1, strictly monotonic; len(grid) - 1 steps.
        save_at: times in order from t0 to t1 at which to keep the state, by the method's own
            interpolation: no further calls of the field.
        error_norm: of the scaled error, which an adaptive step must keep below 1; by default the
            root mean square over all numbers of all samples, as in torchdiffeq.
        adjoint: how derivatives are taken in reverse. "checkpointed": through the steps taken,
            exactly, states between checkpoints computed again. "backsolve": by the adjoint
            equation, solved back in time with the same method, in constant memory.
        max_steps: an adaptive solve that needs more gives up (converged = False); "checkpointed"
            derivatives of one need this bound.

    Raises:
        UserError: steps or a grid for an adaptive method, none or both for a fixed one, a grid
            that does not lead from t0 to t1, an unknown adjoint, or backsolve with save_at.
    """
    validate(method, rtol, atol, steps, grid)
    one_of("adjoint", adjoint, ADJOINTS)
    if adjoint == "backsolve" and save_at is not None:
        raise UserError("save_at", save_at, "backsolve keeps the end alone; take 'checkpointed'")
    if grid is not None:
        validate_grid(grid, t0, t1)
    if save_at is not None:
        validate_save_at(save_at, t0, t1)
    given = jnp.result_type(*jax.tree.leaves(x))
    dtype = jnp.promote_types(given, jnp.float32)
    if dtype != given:
        # In fewer digits steps stand still: the state has float32's, and the field sees its own.
        field, x = _in_lower_precision(field, given, dtype), _cast(x, dtype)
    t0, t1 = jnp.asarray(t0, dtype), jnp.asarray(t1, dtype)
    ends_are_finite = jnp.isfinite(t0) & jnp.isfinite(t1)
    solver = (FIXED | ADAPTIVE)[method]()
    if method in FIXED:
        times = jnp.linspace(t0, t1, steps + 1) if grid is None else jnp.asarray(grid, dtype)
        # The ends exactly, whatever the rounding of linspace or of the caller's grid.
        times = times.at[0].set(t0).at[-1].set(t1)
        controller = diffrax.StepTo(times)
        # diffrax turns time about, so that it grows, before it hands it to the adjoint.
        backward = diffrax.StepTo(times[::-1] * jnp.sign(t1 - t0))
        dt0, solver_state, max_steps = None, None, len(times) - 1
    else:
        # From a start that is not finite no step passes: take none.
        t1 = jnp.where(all_finite(x), t1, t0)
        # A step that the dtype cannot add to t means a field that is not finite: stop, do not spin.
        smallest = jnp.finfo(dtype).eps * jnp.abs(t1 - t0)
        control = partial(
            diffrax.PIDController, rtol=rtol, atol=atol, dtmin=smallest, force_dtmin=False
        )
        controller = control(norm=error_norm)
        backward = control(norm=diffrax.adjoint_rms_seminorm)
        order = solver.order(diffrax.ODETerm(field))
        dt0, v0 = first_step(field, x, t0, t1, order, rtol, atol, error_norm)
        if adjoint == "backsolve":
            v0 = jax.lax.stop_gradient(v0)  # the adjoint equation has its derivatives
        # diffrax's state of an FSAL method: whether the first stage is missing, and what it is.
        solver_state = (jnp.array(False), v0) if solver.tableau.fsal else None
    # Derivatives by arrays that the field closes over: backsolve wants them as arguments.
    field, closed_over = jax.closure_convert(field, t0, x)
    kept = diffrax.SubSaveAt(t1=True)
    if save_at is not None:
        kept = (kept, diffrax.SubSaveAt(ts=jnp.asarray(save_at, dtype)))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, x, arrays: field(t, x, *arrays)),
        solver,
        t0=t0,
        t1=t1,
        dt0=dt0,
        solver_state=solver_state,
        y0=x,
        args=closed_over,
        stepsize_controller=controller,
        saveat=diffrax.SaveAt(subs=kept),
        adjoint=ADJOINTS[adjoint](backward),
        max_steps=max_steps,
        throw=False,
    )
    end, trajectory = (solution.ys, None) if save_at is None else solution.ys
    x1 = jax.tree.map(lambda y: y[0], end)
    return Solution(
        x=_cast(x1, given),
        nfe=count_calls(method, solution.stats["num_steps"]),
        steps=solution.stats["num_steps"],
        rejected=solution.stats["num_rejected_steps"],
        converged=(solution.result == diffrax.RESULTS.successful)
        & all_finite(x1)
        & ends_are_finite,
        trajectory=_cast(trajectory, given),
    )


def _cast(x: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), x)


def _in_lower_precision(field: Callable[[Array, Any], Any], low: Any, high: Any) -> Any:
    """A field of states of dtype ``low``, for a solve in ``high``."""
    return lambda t, x: _cast(field(t.astype(low), _cast(x, low)), high)
