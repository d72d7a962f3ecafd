"""The multilayer perceptron for points in a few dimensions: the paper's 2-D experiments."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flowmatch_jax.arrays import Array
from flowmatch_jax.errors import UserError


class MLP(nn.Module):
    """v(t, x) for points [B, D]; zero at initialisation.

    Attributes:
        width: of each hidden layer.
        depth: number of hidden layers; the paper has 5 of 512.
        dtype: computing dtype; None follows x. The output has x's dtype.
    """

    width: int = 512
    depth: int = 5
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        t: Array,
        x: Array,
        label: Array | None = None,
        condition: Array | None = None,
        train: bool = False,
    ) -> Array:
        """Predict at times t ([B] or []) for points x [B, D]; returns [B, D], x's dtype.

        Raises:
            UserError: a label or a condition, for which it has no place.
        """
        if label is not None or condition is not None:
            raise UserError("network", "mlp", "it takes no label and no condition; use unet")
        t = jnp.broadcast_to(t, x.shape[:1]).astype(x.dtype)
        h = jnp.concatenate([x, t[:, None]], axis=-1)
        for i in range(self.depth):
            h = nn.silu(nn.Dense(self.width, dtype=self.dtype, name=f"hidden_{i}")(h))
        out = nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")
        return out(h).astype(x.dtype)
