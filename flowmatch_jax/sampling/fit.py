"""Fit the coefficients of a solver to a model (Shaul et al. 2024, arXiv 2403.01329).

The error of a solver with n calls is the mean squared difference per dimension between its end and
the accurate solution from the same noise. `run` minimises the mean logarithm of the error by Adam,
over the times of the calls and all coefficients, while the model is constant. Solvers are chosen by
the same logarithm: a few noises, near the border between two modes of the model, have errors a
hundred times as large as the others, and the mean of a hundred errors is that of these few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flowmatch_jax.arrays import Array, Field, Params, filled, sum_dims
from flowmatch_jax.paths import GaussianPath
from flowmatch_jax.runtime.overlap import mean_in_threads, overlapped
from flowmatch_jax.sampling.linear import Coefficients, calls_per_step, of_method, solve


class Pairs(NamedTuple):
    """Noises and the accurate solutions from them.

    Attributes:
        x0: noises, [N, ...].
        x1: states at the end of the path, [N, ...].
        inputs: conditioning inputs of the solutions, with leading axis N.
    """

    x0: np.ndarray
    x1: np.ndarray
    inputs: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.x0)

    def at(self, rows: Any) -> Pairs:
        """Select rows."""
        return Pairs(self.x0[rows], self.x1[rows], {k: v[rows] for k, v in self.inputs.items()})


class Variables(NamedTuple):
    """What is optimised; all zeros is the solver that the fit begins with.

    Attributes:
        gaps: change of the logarithms of the distances between times, [n], or between the steps of
            a method whose coefficients are kept.
        a: change of a, [n].
        b: change of b, in units of the mean step, [n, n].
    """

    gaps: Array
    a: Array
    b: Array


class State(NamedTuple):
    """State of a fit: the step, the variables, Adam's state, and the best variables so far."""

    step: Array
    variables: Variables
    adam: optax.OptState
    best: Variables
    least: Array  # typical error of the best variables on the pairs that choose them


@dataclass(frozen=True)
class Fit:
    """A fit of a solver to a model.

    Attributes:
        field: (params, inputs) -> vector field of the model.
        method: the method that the fit begins with, on equal steps.
        calls: number of calls of the field, n.
        t_end: end of the path.
        pairs: pairs that the solver is fitted to.
        chosen_by: pairs whose typical error chooses among the steps of the fit.
        steps: number of Adam's steps; the learning rate decays to 0 by a cosine.
        batch_size: pairs per step.
        learning_rate: learning rate of the first step.
        times_only: fit the grid of the method alone, and keep its coefficients.
        check_every: steps between the typical errors on ``chosen_by``.
    """

    field: Callable[[Params, dict[str, Array]], Field]
    method: str
    calls: int
    t_end: float
    pairs: Pairs
    chosen_by: Pairs
    steps: int = 160
    batch_size: int = 16
    learning_rate: float = 1e-2
    times_only: bool = False
    check_every: int = 25

    @property
    def grid(self) -> np.ndarray:
        """The equal steps of the method that the fit begins with."""
        return np.linspace(0, self.t_end, self.calls // calls_per_step(self.method) + 1)

    @property
    def start(self) -> Coefficients:
        """The solver that the fit begins with."""
        return of_method(self.method, self.grid)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(self.learning_rate, self.steps))

    def init(self, least: float) -> State:
        """Return the state before the first step; a step must beat the typical error ``least``."""
        n = self.calls
        gaps = jnp.zeros(len(self.grid) - 1 if self.times_only else n)
        zeros = Variables(gaps, jnp.zeros(n), jnp.zeros((n, n)))
        return State(jnp.int32(0), zeros, self.optimizer.init(zeros), zeros, jnp.float32(least))

    def coefficients(self, variables: Variables) -> Coefficients:
        """Return the solver of these variables."""
        if self.times_only:
            return of_method(self.method, _moved(self.grid, variables.gaps))
        start, change = self.start, self.t_end / self.calls * jnp.tril(variables.b)
        times = _moved(np.append(start.t, self.t_end), variables.gaps)[:-1]
        return Coefficients(times, start.a + variables.a, start.b + change)


def _moved(times: np.ndarray, gaps: Array) -> Array:
    """Change the logarithms of the distances between times; the first and the last one stay."""
    shares = jax.nn.softmax(jnp.log(np.diff(times)) + gaps)
    between = times[-1] * jnp.cumsum(shares)[:-1]
    return jnp.concatenate([jnp.zeros(1), between, jnp.full(1, times[-1])])


def squared_error(x: Array, x1: Array) -> Array:
    """Compute the mean squared difference per dimension, [B]."""
    return sum_dims((x - x1) ** 2) / x[0].size


def make_errors(fit: Fit) -> Callable[[Params, Coefficients, Pairs], np.ndarray]:
    """Create the errors [N] of a solver over N pairs, which are solved in batches."""
    size = fit.batch_size

    @jax.jit
    def of_batch(params: Params, coefficients: Coefficients, pairs: Pairs) -> Array:
        x = solve(fit.field(params, pairs.inputs), pairs.x0, coefficients).x
        return squared_error(x, pairs.x1)

    def of_pairs(params: Params, coefficients: Coefficients, pairs: Pairs) -> np.ndarray:
        parts = []
        for begin in range(0, len(pairs), size):
            part = pairs.at(slice(begin, begin + size))
            whole = jax.tree.map(lambda x: filled(x, size), part)
            parts.append(np.asarray(of_batch(params, coefficients, whole))[: len(part)])
        return np.concatenate(parts)

    return of_pairs


def typical(errors: np.ndarray) -> float:
    """Return the geometric mean of errors."""
    return float(np.exp(np.log(errors + np.finfo(errors.dtype).tiny).mean()))


def best_known(
    error: Callable[[Coefficients], float],
    n: int,
    grids: dict[str, Callable[[int], np.ndarray]],
    methods: Mapping[str, GaussianPath | None],
) -> tuple[str, Coefficients, float]:
    """Find the best of some methods with n calls on each grid.

    Args:
        error: typical error of a solver.
        n: number of calls; methods with more calls per step are left out unless these divide n.
        grids: name -> function from a number of steps to times.
        methods: name of each method -> path of the field, for methods that take it.

    Returns:
        The method's and the grid's name, the solver and its error.
    """
    found = {
        f"{method}, {name}": of_method(method, grid(n // calls_per_step(method)), path)
        for name, grid in grids.items()
        for method, path in methods.items()
        if n % calls_per_step(method) == 0
    }
    by_error = dict(zip(found, overlapped(error, found.values()), strict=True))
    best = min(by_error, key=by_error.__getitem__)
    return best, found[best], by_error[best]


def loss(x: Array, x1: Array) -> Array:
    """Compute the mean logarithm of the squared errors per dimension."""
    error = squared_error(x, x1)
    return jnp.log(error + jnp.finfo(error.dtype).tiny).mean()


_loss_by_x = jax.jit(jax.grad(loss))


def gradient(
    forward: Callable[[Array, Array], Array],
    backward: Callable[[Array, Array, Array], tuple[Array, Array]],
    solver: Coefficients,
    x0: np.ndarray,
    x1: np.ndarray,
) -> Coefficients:
    """Compute the derivative of the mean logarithm of a solver's errors by its coefficients.

    This is the adjoint of `linear.solve`. Only a call of the field is compiled: all n calls would
    take n times as long to compile, and XLA on CPU computes the derivative of a loop slowly.

    Args:
        forward: the field, v(t, x).
        backward: (t, x, g) -> the derivatives of sum(g v(t, x)) by t and by x.
        solver: the solver.
        x0: noises, [B, ...].
        x1: accurate solutions from them, [B, ...].
    """
    t, a, b = (np.asarray(c, x0.dtype) for c in solver)
    b, calls = np.tril(b), range(len(t))
    x, states, v = x0, [], np.zeros((len(t), *x0.shape), x0.dtype)
    for i in calls:
        states.append(x)
        v[i] = forward(t[i], x)
        x = a[i] * x0 + np.tensordot(b[i], v, axes=1)
    by_x = np.asarray(_loss_by_x(x, x1))
    by_t, by_states = np.zeros_like(t), np.zeros_like(v)  # by_states[i] is that by x_{i+1}
    for i in reversed(calls):
        by_states[i] = by_x
        by_v = np.tensordot(b[:, i], by_states, axes=1)
        by_t[i], by_x = jax.device_get(backward(t[i], states[i], by_v))
    flat = by_states.reshape(len(t), -1)
    return Coefficients(by_t, flat @ x0.ravel(), np.tril(flat @ v.reshape(len(t), -1).T))


def run(
    fit: Fit,
    params: Params,
    state: State,
    errors_of: Callable[[Params, Coefficients, Pairs], np.ndarray],
    seed: int = 0,
) -> Iterator[State]:
    """Take the steps from a state on; yields the state after each check.

    The batches are a function of the seed and the step, so that a fit that goes on from a saved
    state ends with the same solver.

    Args:
        fit: the fit.
        params: parameters of the model.
        state: result of `Fit.init`, or a state that was yielded.
        errors_of: result of `make_errors`.
        seed: seed of the batches.
    """
    solver_of = jax.jit(fit.coefficients)
    forward = jax.jit(lambda params, inputs, t, x: fit.field(params, inputs)(t, x))
    backward = jax.jit(
        lambda params, inputs, t, x, g: jax.vjp(fit.field(params, inputs), t, x)[1](g)
    )

    @jax.jit
    def update(state: State, by_solver: Coefficients) -> State:
        (by_variables,) = jax.vjp(fit.coefficients, state.variables)[1](by_solver)
        updates, adam = fit.optimizer.update(by_variables, state.adam)
        variables = optax.apply_updates(state.variables, updates)
        return state._replace(step=state.step + 1, variables=variables, adam=adam)

    def slope(solver: Coefficients, rows: np.ndarray) -> Coefficients:
        x0, x1, inputs = fit.pairs.at(rows)
        field = (partial(f, params, inputs) for f in (forward, backward))
        return gradient(*field, solver, x0, x1)

    while (now := int(state.step)) < fit.steps:
        chosen = np.random.RandomState([seed, now]).permutation(len(fit.pairs))[: fit.batch_size]
        by_solver = mean_in_threads(partial(slope, solver_of(state.variables)), chosen)
        state = update(state, by_solver)
        if (now + 1) % fit.check_every == 0 or now + 1 == fit.steps:
            error = typical(errors_of(params, solver_of(state.variables), fit.chosen_by))
            if error < state.least:
                state = state._replace(best=state.variables, least=jnp.float32(error))
            yield state
