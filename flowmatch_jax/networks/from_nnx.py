"""Flax NNX modules as networks, whose parameters are arguments instead of attributes."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from flowmatch_jax.arrays import Array, Params


class FromNNX:
    """An NNX module, called as (t, x, label=..., condition=...), as a network (see `networks`).

    Its parameters are its variables of type `nnx.Param`. All other variables, such as fixed random
    frequencies, are constants: they are those of the seed 0, and the same in every run.

    Args:
        make: creates the module; (rngs: nnx.Rngs) -> nnx.Module.

    Raises:
        TypeError: `make` returns something else, or a module with batch statistics, which would
            have to be averaged over steps.
    """

    def __init__(self, make: Callable[..., nnx.Module]) -> None:
        self._make = make
        self._graph, self._params, self._keys, rest = jax.eval_shape(lambda: self._split(0))
        if any(isinstance(x, nnx.BatchStat) for _, x in nnx.to_flat_state(rest)):
            raise TypeError("it has batch statistics, which are not trained: only nnx.Param is")
        self._constants = jax.device_get(jax.jit(lambda: self._split(0)[-1])())

    def init(self, key: Array, t: Array, x: Array, **inputs: Array) -> Params:
        """Initialise the parameters: nested dicts by the names of attributes."""
        return nnx.to_pure_dict(self._split(key)[1])

    def apply(
        self, params: Params, t: Array, x: Array, key: Array | None = None, **inputs: Array
    ) -> Array:
        """Call the module, in training mode with a key, from which its random keys are drawn."""
        state = _copy(self._params)
        nnx.replace_by_pure_dict(state, params)
        places, structure = jax.tree.flatten(self._keys)
        drawn = jax.random.split(jax.random.key(0) if key is None else key, len(places) or 1)
        keys = jax.tree.unflatten(structure, list(drawn)[: len(places)])
        module = nnx.merge(self._graph, state, keys, jax.tree.map(jnp.asarray, self._constants))
        module.eval() if key is None else module.train()
        return module(t, x, **inputs)

    def _split(self, key: Array | int) -> tuple[nnx.GraphDef, nnx.State, nnx.State, nnx.State]:
        """Create the module; its structure, parameters, random keys, and all other variables."""
        module = self._make(rngs=nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            got = type(module).__name__
            raise TypeError(f"with an argument rngs it makes an NNX module, and it made {got}")
        return nnx.split(module, nnx.Param, nnx.RngKey, ...)


def _copy(state: nnx.State) -> nnx.State:
    return jax.tree.map(lambda array: array, state)
