"""The multilayer perceptron for points in a few dimensions: the paper's 2-D experiments."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flowmatch_jax.arrays import Array
from flowmatch_jax.runtime.errors import UserError


class MLP(nn.Module):
    """v(t, x) for points [B, D]; zero at initialisation.

    It is fed x, t and sinusoids of both, since sharp edges of a density are slow to learn from
    coordinates alone (Tancik et al., Fourier Features Let Networks Learn High Frequency Functions
    in Low Dimensional Domains, 2020).

    Attributes:
        width: of each hidden layer.
        depth: number of hidden layers; the paper has 5 of 512.
        frequencies: octaves of sinusoids, from period 8 down for x and from 2 down for t.
        dtype: computing dtype of all layers but the first, whose inputs bfloat16 would round; None
            follows x. The output has x's dtype.
    """

    width: int = 512
    depth: int = 5
    frequencies: int = 4
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
        t = jnp.broadcast_to(t, x.shape[:1]).astype(jnp.promote_types(x.dtype, jnp.float32))
        # In units of its period: x of 8, t of 2.
        z = jnp.concatenate([x / 8, t[:, None] / 2], axis=-1)
        waves = [2 * jnp.pi * 2**k * z for k in range(self.frequencies)]
        h = jnp.concatenate([x, t[:, None], *map(jnp.sin, waves), *map(jnp.cos, waves)], axis=-1)
        for i in range(self.depth):
            dtype = self.dtype if i > 0 else None
            h = nn.gelu(nn.Dense(self.width, dtype=dtype, name=f"hidden_{i}")(h))
        out = nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")
        return out(h).astype(x.dtype)
