"""A pretrained network that maps images to features and class logits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from flowmatch_jax.arrays import Array, Params
from flowmatch_jax.runtime.errors import UserError


@dataclass(frozen=True)
class Extractor:
    """A feature extractor: a network with its weights.

    Attributes:
        name: name of the network.
        side: images are resized to side x side pixels before the network is applied.
        dims: number of features.
        sha256: hash of the weights file.
        apply: maps images uint8 [B, H, W, C] with 1 or 3 channels, 256 levels and any size to
            features [B, dims] and logits [B, K], float32; compiled once per shape.
    """

    name: str
    side: int
    dims: int
    sha256: str
    apply: Callable[[Array], tuple[Array, Array]]


def compiled(
    net: Callable[[Params, Array], tuple[Array, Array]], params: Params
) -> Callable[[Array], tuple[Array, Array]]:
    """Build an extractor's `apply` from a network for float32 images [B, H, W, 3] in [0, 255].

    Matrix products use full float32 precision on every device; TPUs and GPUs would otherwise use
    fewer bits.

    Raises (when applied):
        UserError: the images do not have 1 or 3 channels.
    """

    @jax.jit
    def apply(params: Params, images: Array) -> tuple[Array, Array]:
        if images.shape[-1] not in (1, 3):
            raise UserError("images", images.shape, "they must be grey or RGB: [B, H, W, 1 or 3]")
        images = jnp.broadcast_to(images.astype(jnp.float32), (*images.shape[:-1], 3))
        with jax.default_matmul_precision("highest"):
            return net(params, images)

    return functools.partial(apply, jax.device_put(params))
