"""Linear multistep methods: one call of the field per step, and a memory of the last calls.

A step from t_i to t_{i+1} is

    x_{i+1} = keep_i x_i + sum_j weight_ij f_{i-j}

where f_i is the velocity at (t_i, x_i), or the data that it predicts. A method is the function that
computes the numbers keep_i and weight_ij. They depend on the times and the path alone, so that they
are computed before the solve, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowmatch_jax.arrays import Array, module_of
from flowmatch_jax.paths import GaussianPath, log_snr

Evaluate = Callable[[Array, Any], Any]
# (times [N + 1], steps i [M], ends [M], path) -> keep [M], weights [M, K]: M steps from times[i] to
# their ends, of which weights[m, j] is that of f at times[i[m] - j].
Weights = Callable[
    [np.ndarray, np.ndarray, np.ndarray, GaussianPath | None], tuple[np.ndarray, np.ndarray]
]


@dataclass(frozen=True)
class Multistep:
    """A method.

    Attributes:
        weights: function that computes keep and the weights of steps.
        predicts_data: whether f is the predicted data, which takes a path; otherwise the velocity.
    """

    weights: Weights
    predicts_data: bool = False


def integrals(nodes: np.ndarray, begin: float, end: float) -> np.ndarray:
    """Integrate the polynomial through values at K nodes from begin to end.

    Returns:
        w [K] with sum_j w_j p(nodes_j) = int_begin^end p(t) dt for polynomials p of degree K - 1.
    """
    xp, powers = module_of(nodes), range(len(nodes))
    moments = xp.stack([(end - begin) ** (k + 1) / (k + 1) for k in powers])
    return xp.linalg.solve(xp.stack([(nodes - begin) ** k for k in powers]), moments)


def adams(
    order: int,
    corrected: float,
    times: np.ndarray,
    i: np.ndarray,
    end: np.ndarray,
    path: GaussianPath | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Adams-Bashforth: integrate the polynomial through the last ``order`` velocities.

    For order 2, with h = t_{i+1} - t_i and w = h / (t_i - t_{i-1}), the step is

        x_{i+1} = x_i + h ((1 + w/2) v_i - w/2 v_{i-1}).

    The first steps have the order of the velocities that there are: the first is Euler's. The
    velocity at its end, which the next step needs anyway, corrects it to the trapezoidal rule,
    x_1 = x_0 + h/2 (v_0 + v_1), before the next step. Without that, order 3 would not be reached.

    If all steps are corrected in this way, the method is the Adams-Bashforth-Moulton method in the
    mode PEC, whose velocities are those at the states before their correction. (Hairer, Norsett and
    Wanner, Solving Ordinary Differential Equations I, III.1 and III.5. UniPC, Zhao et al. 2023,
    corrects the predicted data of DPM-Solver++ likewise.)

    Args:
        order: number of velocities.
        corrected: number of steps that are corrected, from the first on.
        times, i, end, path: as in `Weights`. If the times are a JAX array, so are the weights,
            which are then differentiable by them.
    """
    length = order + (corrected > 1)
    rows = []
    for at, until in zip(i, end, strict=True):
        row = _extrapolated(order, times, at, until, length)
        if 0 < at <= corrected:
            h = times[at] - times[at - 1]
            trapezoid = h / 2 * (np.arange(length) < 2)
            taken = _extrapolated(order, times, at - 1, times[at], length)
            row = row + trapezoid - module_of(times).roll(taken, 1)
        rows.append(row)
    return np.ones(len(i)), module_of(times).stack(rows)


def _extrapolated(order: int, times: np.ndarray, at: int, until: float, length: int) -> np.ndarray:
    nodes = times[at::-1][:order]
    weights = integrals(nodes, times[at], until)
    return module_of(times).pad(weights, (0, length - len(nodes)))


def dpm_solver_pp_2m(
    times: np.ndarray, i: np.ndarray, end: np.ndarray, path: GaussianPath
) -> tuple[np.ndarray, np.ndarray]:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2): extrapolate the predicted data in lambda.

    With lambda = log(alpha / sigma), h = lambda_{i+1} - lambda_i and r = h_{i-1} / h_i, the step is

        D       = (1 + 1/(2r)) D_i - 1/(2r) D_{i-1}
        x_{i+1} = sigma_{i+1} / sigma_i x_i + (alpha_{i+1} - alpha_i sigma_{i+1} / sigma_i) D

    which is finite at both ends of a path. It has order 1, D = D_i, at the first step, where lambda
    is infinite, and at the step to the end of the path, as in the authors' code: lambda grows too
    far there to extrapolate.
    """
    alpha, sigma, lam = _schedule(path, times)
    alpha_end, sigma_end, lam_end = _schedule(path, end)
    with np.errstate(invalid="ignore"):  # the difference of lambda = -inf and itself
        one_over_2r = (lam_end - lam[i]) / (2 * (lam[i] - lam[i - 1]))
    has_order_2 = (i > 0) & np.isfinite(one_over_2r) & (times[i + 1] < path.t_end - 1e-6)
    extrapolated = np.where(has_order_2, one_over_2r, 0)
    keep = sigma_end / sigma[i]
    gain = alpha_end - alpha[i] * keep
    return keep, np.stack([gain * (1 + extrapolated), -gain * extrapolated], axis=1)


MULTISTEP = {
    "ab2": Multistep(partial(adams, 2, 1)),
    "ab3": Multistep(partial(adams, 3, 1)),
    "abm2": Multistep(partial(adams, 2, math.inf)),
    "dpmpp2m": Multistep(dpm_solver_pp_2m, predicts_data=True),
}


def solve(
    method: Multistep,
    evaluate: Evaluate,
    x: Any,
    times: np.ndarray,
    path: GaussianPath | None = None,
    save_at: np.ndarray | None = None,
) -> tuple[Any, Any]:
    """Take the steps of a method, with one evaluation at the start of each.

    Reverse-mode derivatives evaluate each step once more.

    Args:
        method: the method.
        evaluate: f(t, x) of x's shape, the velocity or the predicted data.
        x: state at times[0], an array or a pytree of arrays of one float dtype.
        times: strictly monotonic, [N + 1].
        path: the path of the field.
        save_at: times at which to save the state: [M], in the range of ``times``. They are the ends
            of shorter steps, without further evaluations.

    Returns:
        The state at times[-1], and the states at ``save_at``, [M, ...], or None.
    """
    steps = np.arange(len(times) - 1)
    keep, weights = method.weights(times, steps, times[1:], path)

    @partial(jax.checkpoint, prevent_cse=False)
    def step(carry: tuple, of_step: tuple) -> tuple[tuple, Any]:
        (x, past), (t, keep, weights) = carry, of_step
        known = (evaluate(t, x), *past)
        end = jax.tree.map(lambda x, *f: _combine(keep, x, weights, f), x, *known)
        return (end, known[:-1]), None if save_at is None else (x, known[0])

    dtype = jnp.result_type(*jax.tree.leaves(x))
    past = (jax.tree.map(jnp.zeros_like, x),) * (weights.shape[1] - 1)
    rows = tuple(jnp.asarray(numbers, dtype) for numbers in (times[:-1], keep, weights))
    (end, _), saved = jax.lax.scan(step, (x, past), rows)
    if save_at is None:
        return end, None
    return end, _states(method, times, path, save_at, *saved)


def _states(
    method: Multistep, times: np.ndarray, path: GaussianPath | None, at: np.ndarray, x: Any, f: Any
) -> Any:
    """Return the states at some times, given x and f at the start of each step."""
    direction = np.sign(times[-1] - times[0])
    i = np.searchsorted(direction * times[1:-1], direction * at, side="right")
    keep, weights = method.weights(times, i, at, path)

    def of_leaf(x: Array, f: Array) -> Array:
        column = lambda w: jnp.asarray(w, x.dtype).reshape(-1, *[1] * (x.ndim - 1))  # noqa: E731
        past = [f[np.maximum(i - j, 0)] for j in range(weights.shape[1])]
        return _combine(column(keep), x[i], [column(w) for w in weights.T], past)

    return jax.tree.map(of_leaf, x, f)


def _combine(keep: Array, x: Array, weights: Any, values: Any) -> Array:
    return keep * x + sum(w * f for w, f in zip(weights, values, strict=True))


def _schedule(path: GaussianPath, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return alpha, sigma and lambda at concrete times, float64 with the path's precision."""
    with jax.ensure_compile_time_eval():
        t = jnp.asarray(t)
        one = jnp.ones_like(t)
        values = (path.mean(t, one), path.std(t, one), log_snr(path, t))
        return tuple(np.asarray(value, np.float64) for value in values)
