"""Networks: Flax modules, apply(variables, t, x, label=None, condition=None, train=False)."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn

from flowmatch_jax.arrays import Apply, Array, Params


def pure_apply(module: nn.Module, clock: Callable[[Array], Array] = lambda t: t) -> Apply:
    """The module as a pure function apply(params, t, x, label=None, condition=None, key=None).

    A key turns training mode on and draws the dropout masks.

    Args:
        clock: what the module is told in the place of t, a function of it.
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
