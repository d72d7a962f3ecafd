"""Networks: Flax modules called as (t, x, label=None, condition=None, train=False)."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn

from flowmatch_jax.arrays import Apply, Array, Params


def pure_apply(module: nn.Module, clock: Callable[[Array], Array] = lambda t: t) -> Apply:
    """Return the module as a function apply(params, t, x, label=None, condition=None, key=None).

    Passing a key turns on training mode; the dropout masks are drawn from it.

    Args:
        clock: maps t to the module's time input.
    """

    def apply(
        params: Params,
        t: Array,
        x: Array,
        label: Array | None = None,
        condition: Array | None = None,
        key: Array | None = None,
    ) -> Array:
        rngs = None if key is None else {"dropout": key}
        return module.apply(
            {"params": params}, clock(t), x, label, condition, train=key is not None, rngs=rngs
        )

    return apply
