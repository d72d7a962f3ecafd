"""Networks: modules called as (t, x, label=None, condition=None, train=False).

A network is a Flax Linen module, or an object with two functions:

    init(key, t, x, label=None, condition=None) -> params
    apply(params, t, x, label=None, condition=None, key=None) -> output of x's shape

A network needs the arguments label, condition, and train or key only if it uses them. A network
with two times, for flow maps, has a further argument end=None, the second time; None stands for t.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax.numpy as jnp

from flowmatch_jax.arrays import Apply, Array, Params
from flowmatch_jax.runtime.errors import UserError


class Functions(Protocol):
    """A network as an object with two functions; see the module's docstring."""

    def init(self, key: Array, t: Array, x: Array, **inputs: Array) -> Params: ...

    def apply(self, params: Params, t: Array, x: Array, **inputs: Array) -> Array: ...


Network = nn.Module | Functions
# (t, x) -> further input channels of a network for images, [B, H, W, F]
Features = Callable[[Array, Array], Array]


def is_network(thing: Any) -> bool:
    """Test whether something is a network."""
    return all(callable(getattr(thing, name, None)) for name in ("init", "apply"))


def init_params(network: Network, key: Array, t: Array, x: Array, **inputs: Array) -> Params:
    """Initialise the parameters of a network for inputs of these shapes.

    Raises:
        TypeError: it has other collections of variables than "params", such as batch statistics.
    """
    initial = network.init(key, t, x, **inputs)
    if not isinstance(network, nn.Module):
        return initial
    if others := sorted(set(initial) - {"params"}):
        raise TypeError(f"it has {', '.join(others)}, which are not trained: only params are")
    return initial.get("params", {})


def with_features(features: Features | None, t: Array, x: Array, condition: Array | None) -> Any:
    """Append the features of x to its condition; None if there is neither."""
    if features is None:
        return condition
    channels = features(t, x)
    return channels if condition is None else jnp.concatenate([condition, channels], axis=-1)


def pure_apply(
    network: Network,
    clock: Callable[[Array], Array] = lambda t: t,
    features: Features | None = None,
) -> Apply:
    """Return the network as apply(params, t, x, label=None, condition=None, key=None, end=None).

    Passing a key turns on training mode; the dropout masks are drawn from it. ``end`` is the second
    time of a network with two times.

    Args:
        clock: maps t to the network's time input.
        features: (t, x) -> channels that are appended to the condition.
    """
    is_linen = isinstance(network, nn.Module)
    takes_mode = takes(network.__call__, "train") if is_linen else takes(network.apply, "key")

    def apply(
        params: Params,
        t: Array,
        x: Array,
        label: Array | None = None,
        condition: Array | None = None,
        key: Array | None = None,
        end: Array | None = None,
    ) -> Array:
        condition = with_features(features, t, x, condition)
        given = {"label": label, "condition": condition, "end": end}
        inputs = {name: value for name, value in given.items() if value is not None}
        if is_linen:
            params, rngs = {"params": params}, None if key is None else {"dropout": key}
            mode = {"train": key is not None} if takes_mode else {}
            return network.apply(params, clock(t), x, **inputs, **mode, rngs=rngs)
        mode = {"key": key} if takes_mode else {}
        return network.apply(params, clock(t), x, **inputs, **mode)

    return apply


def computing_in(network: Network, dtype: Any) -> Network:
    """Return the network with computations in a dtype; None: in that of its inputs.

    Raises:
        UserError: it has no attribute `dtype`, which Flax's modules have for this.
    """
    if dtype is None:
        return network
    if not (isinstance(network, nn.Module) and hasattr(network, "dtype")):
        allowed = "this network has no attribute dtype to be set: leave it float32"
        raise UserError("dtype", dtype.__name__, allowed)
    return network.clone(dtype=dtype)


def takes(function: Callable[..., Any], name: str) -> bool:
    """Test whether a function, or the creation of a class, has an argument of this name."""
    call = function.__init__ if isinstance(function, type) else function
    return name in inspect.signature(call).parameters
