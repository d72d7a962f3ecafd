"""The multilayer perceptron for low-dimensional points, as in the paper's 2-D experiments."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flowmatch_jax.arrays import Array
from flowmatch_jax.runtime.errors import UserError


class MLP(nn.Module):
    """v(t, x) for points [B, D]; zero at initialisation.

    The inputs are x, t and sinusoids of both, because a network learns sharp edges of a density
    slowly from coordinates alone (Tancik et al., Fourier Features Let Networks Learn High Frequency
    Functions in Low Dimensional Domains, 2020).

    Attributes:
        width: units in each hidden layer.
        depth: number of hidden layers; the paper uses 5 layers of 512 units.
        frequencies: octaves of sinusoids; the longest period is 8 for x and 2 for t.
        two_times: the network takes a second time, ``end``, for flow maps (see `flow_maps`):
            end - t is a further input, with its sinusoids.
        dtype: computing dtype of all layers but the first, whose inputs bfloat16 would round; None:
            x's dtype. The output has x's dtype.
    """

    width: int = 512
    depth: int = 5
    frequencies: int = 4
    two_times: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        t: Array,
        x: Array,
        label: Array | None = None,
        condition: Array | None = None,
        train: bool = False,
        end: Array | None = None,
    ) -> Array:
        """Predict at times t ([B] or []) for points x [B, D]; returns [B, D], x's dtype.

        With two_times it predicts the average velocity from t to ``end`` ([B] or []); None stands
        for t, where it is the velocity.

        Raises:
            UserError: a label or a condition is given, which the MLP does not support, or ``end``
                without two_times.
        """
        if end is not None and not self.two_times:
            raise UserError("end", end.shape, "this network takes one time; set two_times")
        if label is not None or condition is not None:
            raise UserError("network", "mlp", "it takes no label and no condition; use unet")
        wide = jnp.promote_types(x.dtype, jnp.float32)
        t = jnp.broadcast_to(t, x.shape[:1]).astype(wide)
        times = t[:, None]
        if self.two_times:
            end = t if end is None else jnp.broadcast_to(end, x.shape[:1]).astype(wide)
            times = jnp.stack([t, end - t], axis=-1)
        # Coordinates in units of the longest period.
        z = jnp.concatenate([x / 8, times / 2], axis=-1)
        waves = [2 * jnp.pi * 2**k * z for k in range(self.frequencies)]
        h = jnp.concatenate([x, times, *map(jnp.sin, waves), *map(jnp.cos, waves)], axis=-1)
        for i in range(self.depth):
            dtype = self.dtype if i > 0 else None
            h = nn.gelu(nn.Dense(self.width, dtype=dtype, name=f"hidden_{i}")(h))
        out = nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")
        return out(h).astype(x.dtype)
