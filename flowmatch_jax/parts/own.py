"""Checks of a user's own parts (module:function) before any work.

Each part is called once as it will be called later. Parts that compute on arrays are only traced.
A `UserError` names the part and what it raised, or what it should have returned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowmatch_jax.arrays import Apply, Array, Batch, Inputs, Params
from flowmatch_jax.couplings import Coupling
from flowmatch_jax.objectives import Objective, Time
from flowmatch_jax.paths import GaussianPath
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.own import blamed
from flowmatch_jax.sampling.stochastic import NoiseLevel


def check_path(field: str, name: str, path: Any) -> None:
    """Check that a path is a `GaussianPath` for t [] or [B] and data of any shape."""
    if not isinstance(path, GaussianPath):
        raise _returns(field, name, path, "return a GaussianPath (flowmatch_jax.paths)")
    x = _float32(2, 3)
    for t in (_float32(), _float32(2)):
        with blamed(field, name):
            mean, std = (jax.eval_shape(f, t, x) for f in (path.mean, path.std))
            broadcast = np.broadcast_shapes(std.shape, x.shape)
        if mean.shape != x.shape or broadcast != x.shape:
            got = (mean, std)
            allowed = f"mean and std of x_1 {_shown(x)} are {_shown(x)}, or a std that broadcasts"
            raise _returns(field, name, got, allowed)
    if not (0 < path.t_end <= 1 and 0 < path.source_std < np.inf):
        got = (path.t_end, path.source_std)
        raise _returns(field, name, got, "t_end is in (0, 1] and source_std is above 0")


def check_coupling(field: str, name: str, coupling: Coupling, x1: Any) -> None:
    """Check that a coupling returns x_0 of the shape and dtype of x_1 [B, ...]."""
    with blamed(field, name):
        x0 = jax.eval_shape(coupling, _key(), x1)
    if _shown(x0) != _shown(x1):
        raise _returns(field, name, x0, f"a coupling of x_1 {_shown(x1)} returns {_shown(x1)}")


def check_time(field: str, name: str, time: Time, n: int, path: GaussianPath) -> None:
    """Check that a distribution of t returns n times in [0, path.t_end]."""
    with blamed(field, name):
        t = time(jax.random.key(0), n, path)
    allowed = f"return {_shown(_float32(n))} from 0 to path.t_end = {path.t_end}"
    if _shown(t) != _shown(_float32(n)):
        raise _returns(field, name, t, allowed)
    if not ((t >= 0) & (t <= path.t_end)).all():
        got = f"it returns times from {t.min()} to {t.max()}"
        raise UserError(field, name, f"{got}; {allowed}")


def check_grid(field: str, name: str, grid: np.ndarray, steps: int, path: GaussianPath) -> None:
    """Check that a grid has steps + 1 increasing times from 0 to path.t_end."""
    ends = grid.shape == (steps + 1,) and np.allclose(grid[[0, -1]], (0, path.t_end))
    if not ends or not (np.diff(grid) > 0).all():
        allowed = f"return {steps + 1} increasing times from 0 to path.t_end = {path.t_end}"
        raise _returns(field, name, grid.tolist(), allowed)


def check_noise(field: str, name: str, noise: NoiseLevel, path: GaussianPath) -> None:
    """Check that a noise level (path, t []) returns g_t []."""
    with blamed(field, name):
        g = jax.eval_shape(lambda t: noise(path, t), _float32())
    if _shown(g) != _shown(_float32()):
        raise _returns(field, name, g, f"return {_shown(_float32())} for t {_shown(_float32())}")


def check_network(
    field: str, name: str, init: Callable[[Array], Params], apply: Apply, x: Any, inputs: Inputs
) -> None:
    """Check that a network has float parameters, and an output like x [B, ...] in both modes.

    Args:
        init: key -> parameters.
        apply: the network as a function, as `networks.pure_apply` returns it.
        x, inputs: shapes of its input, and of its conditioning inputs and second time, if any.
    """
    with blamed(field, name):
        params = jax.eval_shape(init, _key())
    leaves = jax.tree.leaves(params)
    if not leaves or not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        raise _returns(field, name, leaves, "its parameters are arrays of floats, one or more")
    for key in (None, _key()):
        with blamed(field, name):
            call = lambda params, t, x, inputs, key: apply(params, t, x, **inputs, key=key)  # noqa: E731
            output = jax.eval_shape(call, params, _float32(x.shape[0]), x, inputs, key)
        if _shown(output) != _shown(x):
            raise _returns(field, name, output, f"for x {_shown(x)} return {_shown(x)}")


def check_objective(
    field: str, name: str, objective: Objective, apply: Apply, params: Params, batch: Batch
) -> None:
    """Check that an objective returns a loss and metrics, and has a gradient.

    Args:
        objective: the objective.
        apply, params: the network as a function, and the shapes of its parameters.
        batch: shapes of a batch.
    """
    if not callable(objective):
        raise _returns(field, name, objective, "return a function (apply, params, batch, key)")
    call = lambda params, batch, key: objective(apply, params, batch, key)  # noqa: E731
    with blamed(field, name):
        result = jax.eval_shape(call, params, batch, _key())
    is_pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)
    if not is_pair or "loss" not in result[1] or any(a.shape for a in jax.tree.leaves(result)):
        allowed = 'return a scalar loss, and a dict of scalars with "loss"'
        raise _returns(field, name, result, allowed)
    with blamed(field, name):
        jax.eval_shape(jax.grad(call, has_aux=True), params, batch, _key())


def _returns(field: str, name: str, got: Any, expected: str) -> UserError:
    return UserError(field, name, f"it returns {_shown(got)}; {expected}")


def _shown(value: Any) -> str:
    """Describe arrays by their dtypes and shapes, and other objects by their type."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_shown(item)}" for name, item in value.items())
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_shown, value))})"
    return repr(value) if isinstance(value, int | float) else type(value).__name__


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
