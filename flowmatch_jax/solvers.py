"""Integration of vector fields, dx/dt = v(t, x), built on diffrax.

`Solver` describes the method, and `integrate` solves the equation. The step size is shared by the
whole batch, so the NFE of an adaptive method depends on the batch. ``nfe`` is the number of calls
of the field, including those that choose the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix

from flowmatch_jax import multistep, runge_kutta
from flowmatch_jax.arrays import Array
from flowmatch_jax.multistep import MULTISTEP
from flowmatch_jax.paths import GaussianPath
from flowmatch_jax.predictions import convert
from flowmatch_jax.runge_kutta import ADAPTIVE, ADJOINTS, FIXED, STOCHASTIC, Norm, TreeField
from flowmatch_jax.runtime.errors import UserError, at_least, one_of, positive

Times = Sequence[float] | Array
FLOW_MAP = "flow_map"  # calls of a flow map instead of a solve, see `flow_maps`
NO_DENSITIES = "it solves for samples, not for log-densities: choose another method, such as ab2"


@dataclass(frozen=True)
class Solver:
    """The method and the steps with which a vector field is integrated.

    Attributes:
        method: euler, midpoint, heun, rk4 (fixed), ab2, ab3, abm2, dpmpp2m (fixed, one call per
            step; see `multistep`), dopri5, tsit5, dopri8, bosh3 (adaptive), or euler_maruyama, sea,
            shark (fixed; see `sampling.stochastic`, which solves them). flow_map stands for one
            call of a model's flow map per step (see `flow_maps`).
        rtol, atol: tolerances of an adaptive method; fixed methods ignore them.
        steps: number of equal steps of a fixed method.
        grid: alternative to ``steps``: the len(grid) - 1 steps of a fixed method as strictly
            monotonic times from t0 to t1.
        adjoint: reverse-mode differentiation. "checkpointed" differentiates through the steps
            exactly and recomputes states between checkpoints. "backsolve" solves the adjoint
            equation backwards in time with the same method, in constant memory; a multistep method
            does not take it.
        max_steps: an adaptive solve that needs more steps fails (converged = False); required for
            "checkpointed" derivatives of an adaptive solve.
        path: the path whose field is solved, for dpmpp2m. In `Experiment.generate` it may be
            another path than the model's: the model's field is then turned into that path's.
        noise: noise level (path, t) -> g_t of a stochastic method; None: the root of sigma_t.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int | None = None
    grid: Times | None = None
    adjoint: str = "checkpointed"
    max_steps: int | None = None
    path: GaussianPath | None = None
    noise: Callable[[GaussianPath, Array], Array] | None = None

    @property
    def is_adaptive(self) -> bool:
        """Whether the method chooses its steps adaptively."""
        return self.method in ADAPTIVE

    @property
    def is_for_samples(self) -> bool:
        """Whether the method solves for samples along a path, and not for log-densities."""
        return self.method in (*STOCHASTIC, FLOW_MAP) or self._predicts_data

    @property
    def _predicts_data(self) -> bool:
        return self.method in MULTISTEP and MULTISTEP[self.method].predicts_data

    def validate(self) -> None:
        """Raise UserError unless the method is known and the settings are consistent."""
        methods = FIXED | MULTISTEP | STOCHASTIC | ADAPTIVE
        one_of("method", self.method, [*methods, FLOW_MAP])
        one_of("adjoint", self.adjoint, ADJOINTS)
        if self.method in MULTISTEP and self.adjoint == "backsolve":
            allowed = f"the multistep method {self.method!r} takes 'checkpointed'"
            raise UserError("adjoint", self.adjoint, allowed)
        if self.is_adaptive:
            self._validate_adaptive()
        elif (self.steps is None) == (self.grid is None):
            allowed = (
                f"the fixed method {self.method!r} takes either steps (an integer of 1 or more) or "
                f"a grid; set one, or choose an adaptive method: {', '.join(sorted(ADAPTIVE))}"
            )
            raise UserError("steps", self.steps, allowed)
        elif self.steps is not None:
            at_least("steps", self.steps, 1)

    def _validate_adaptive(self) -> None:
        for field, value in (("steps", self.steps), ("grid", self.grid)):
            if value is not None:
                allowed = (
                    f"the adaptive method {self.method!r} takes rtol and atol only; "
                    f"leave {field} unset or choose one of: {', '.join(sorted(FIXED | MULTISTEP))}"
                )
                raise UserError(field, value, allowed)
        positive("rtol", self.rtol)
        positive("atol", self.atol)


class Solution(NamedTuple):
    """The result of a solve and its cost.

    Attributes:
        x: the state at t1, with the initial state's shape and dtype.
        nfe: int32 [], number of calls of the field.
        steps: int32 [], number of steps, including rejected ones.
        rejected: int32 [], number of steps that were rejected for their error.
        converged: bool [], False if x is not finite, or if an adaptive step fell below the
            resolution of the dtype (as with a field that is not finite); x is then invalid.
        trajectory: the states at ``save_at``, [len(save_at), ...]; None without it.
    """

    x: Any
    nfe: Array
    steps: Array
    rejected: Array
    converged: Array
    trajectory: Any = None


def counted(x: Array, calls: int) -> Solution:
    """Return a `Solution` for an output that needed ``calls`` network calls and no solver."""
    n = jnp.int32(calls)
    return Solution(x, nfe=n, steps=n, rejected=jnp.int32(0), converged=all_finite(x))


def count_calls(method: str, steps: Array | int) -> Array | int:
    """Count the calls of the field in a number of steps, accepted and rejected, of a method."""
    return steps if method in (*MULTISTEP, FLOW_MAP) else runge_kutta.count_calls(method, steps)


def all_finite(x: Any) -> Array:
    """Test whether all numbers in a pytree are finite, bool []."""
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(x)]))


def integrate(
    field: TreeField,
    x: Any,
    t0: float = 0.0,
    t1: float = 1.0,
    solver: Solver = Solver(),
    save_at: Times | None = None,
    error_norm: Norm = optimistix.rms_norm,
) -> Solution:
    """Solve dx/dt = field(t, x) from t0 to t1, backwards in time if t1 < t0.

    Call it inside ``jax.jit`` with a network's parameters as arguments: a closure over arrays
    would recompile for each checkpoint.

    Args:
        field: v(t, x) of x's shape; t is a scalar.
        x: state at t0, [B, ...], or a pytree of arrays of one float dtype. The solve uses float32
            or wider for any dtype of the field; the result has x's dtype.
        t0, t1: start and end time; different numbers, and not traced, for a multistep method.
        solver: the method and its steps.
        save_at: times in order from t0 to t1 at which to save the state. The method interpolates
            them without further calls of the field.
        error_norm: norm of the scaled error, which must be below 1 in an adaptive step; by default
            the root mean square over all elements of the batch, as in torchdiffeq.

    Raises:
        UserError: the solver is invalid, its grid does not go from t0 to t1, ``save_at`` is not in
            order between t0 and t1 or is combined with backsolve, or dpmpp2m has no path or a state
            that is a pytree.
    """
    _validate(solver, x, t0, t1, save_at)
    given = jnp.result_type(*jax.tree.leaves(x))
    dtype = jnp.promote_types(given, jnp.float32)
    if dtype != given:
        # Small steps would vanish in rounding: the state is float32, the field gets its own dtype.
        field, x = _in_lower_precision(field, given, dtype), _cast(x, dtype)
    if solver.method in MULTISTEP:
        solution = _by_multistep(field, x, t0, t1, solver, save_at)
    else:
        solution = _by_runge_kutta(field, x, t0, t1, solver, save_at, error_norm)
    return solution._replace(
        x=_cast(solution.x, given), trajectory=_cast(solution.trajectory, given)
    )


def _validate(solver: Solver, x: Any, t0: float, t1: float, save_at: Times | None) -> None:
    solver.validate()
    if solver.method == FLOW_MAP:
        allowed = "a vector field is no flow map: choose another method, such as ab2"
        raise UserError("method", solver.method, allowed)
    if solver.method in MULTISTEP and t0 == t1:
        raise UserError("t1", t1, f"the steps of {solver.method} end at another time than t0")
    if solver.method in STOCHASTIC:
        allowed = "it solves an SDE: sampling.stochastic.solve does that; choose another method"
        raise UserError("method", solver.method, allowed)
    if solver.is_for_samples:
        if solver.path is None:
            allowed = (
                f"{solver.method} takes the path of the field: Solver({solver.method!r}, path=...)"
            )
            raise UserError("path", None, allowed)
        if not isinstance(x, Array | np.ndarray):
            raise UserError("method", solver.method, NO_DENSITIES)
    if solver.grid is not None:
        _validate_grid(solver.grid, t0, t1)
    if save_at is not None:
        _validate_save_at(save_at, t0, t1)
        if solver.adjoint == "backsolve":
            raise UserError(
                "save_at", save_at, "backsolve keeps the end alone; take 'checkpointed'"
            )


def _validate_grid(grid: Times, t0: float, t1: float) -> None:
    """Raise UserError unless the grid goes from t0 to t1 in one direction."""
    times = np.asarray(grid, np.float64)
    if times.ndim != 1 or len(times) < 2 or not np.allclose(times[[0, -1]], [t0, t1], 1e-6, 1e-6):
        raise UserError("grid", grid, f"it takes two times or more, from {t0} to {t1}")
    if not (np.diff(times) * np.sign(t1 - t0) > 0).all():
        raise UserError("grid", grid, f"its times must go strictly from {t0} to {t1}")


def _validate_save_at(save_at: Times, t0: float, t1: float) -> None:
    """Raise UserError unless these times are in order from t0 to t1."""
    times = np.asarray(save_at, np.float64)
    direction = np.sign(t1 - t0)
    between = (direction * (times - t0) >= -1e-6) & (direction * (t1 - times) >= -1e-6)
    if times.ndim != 1 or not len(times) or not between.all():
        raise UserError("save_at", save_at, f"it takes one time or more between {t0} and {t1}")
    if (direction * np.diff(times) < 0).any():
        raise UserError("save_at", save_at, f"its times must be in order from {t0} to {t1}")


def step_times(solver: Solver, t0: Any, t1: Any, xp: ModuleType) -> Any:
    """Return the times between which a fixed method steps, by NumPy or jax.numpy (``xp``)."""
    if solver.grid is None:
        times = xp.linspace(t0, t1, solver.steps + 1)
    else:
        times = xp.asarray(solver.grid, getattr(t0, "dtype", np.float64))
    # The ends are exact; linspace or the caller's grid may be rounded.
    return xp.concatenate([xp.stack([t0]), times[1:-1], xp.stack([t1])])


def _by_runge_kutta(
    field: TreeField, x: Any, t0: float, t1: float, solver: Solver, save_at: Any, norm: Norm
) -> Solution:
    dtype = jnp.result_type(*jax.tree.leaves(x))
    t0, t1 = jnp.asarray(t0, dtype), jnp.asarray(t1, dtype)
    if solver.is_adaptive:
        # No step can be accepted from a start that is not finite: take none.
        t1 = jnp.where(all_finite(x), t1, t0)
        how = solver.method, (solver.rtol, solver.atol), norm, solver.adjoint
        steps = runge_kutta.adaptive_steps(field, x, t0, t1, *how)
        steps["max_steps"] = solver.max_steps
    else:
        steps = runge_kutta.fixed_steps(step_times(solver, t0, t1, jnp), solver.adjoint)
    save_at = None if save_at is None else jnp.asarray(save_at, dtype)
    solution = runge_kutta.solve(field, x, t0, t1, solver.method, save_at, **steps)
    end, trajectory = (solution.ys, None) if save_at is None else solution.ys
    x1 = jax.tree.map(lambda y: y[0], end)
    successful = solution.result == diffrax.RESULTS.successful
    return Solution(
        x=x1,
        nfe=count_calls(solver.method, solution.stats["num_steps"]),
        steps=solution.stats["num_steps"],
        rejected=solution.stats["num_rejected_steps"],
        converged=successful & all_finite((x1, t0, t1)),
        trajectory=trajectory,
    )


def _by_multistep(
    field: TreeField, x: Any, t0: float, t1: float, solver: Solver, save_at: Any
) -> Solution:
    method, path = MULTISTEP[solver.method], solver.path
    times = step_times(solver, np.float64(t0), np.float64(t1), np)
    if method.predicts_data:
        velocity = field
        field = lambda t, x: convert(path, t, x, velocity(t, x), "velocity", "data")  # noqa: E731
    save_at = None if save_at is None else np.asarray(save_at, np.float64)
    x1, trajectory = multistep.solve(method, field, x, times, path, save_at)
    return counted(x1, len(times) - 1)._replace(trajectory=trajectory)


def _cast(x: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), x)


def _in_lower_precision(field: TreeField, low: Any, high: Any) -> Any:
    """Wrap a field for states of dtype ``low`` for a solve in dtype ``high``."""
    return lambda t, x: _cast(field(t.astype(low), _cast(x, low)), high)
