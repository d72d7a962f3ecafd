"""Layers of the U-Net of Dhariwal & Nichol 2021 (ADM). Feature maps are [B, H, W, C]."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flowmatch_jax.arrays import Array
from flowmatch_jax.networks.attention import attend
from flowmatch_jax.networks.convolutions import Padding, convolve, convolve_doubled, repeat

Dtype = Any


class Conventions(NamedTuple):
    """Details in which implementations of this U-Net differ.

    Attributes:
        epsilon: added to the variance of a group norm.
        halving: padding of the 3 x 3 convolutions with stride 2.
        reaches_end: the last frequency of the time embedding is 1/max_period, instead of the one
            that would follow it.
    """

    epsilon: float
    halving: Padding
    reaches_end: bool


CONVENTIONS = {
    "adm": Conventions(1e-5, ((1, 1), (1, 1)), False),
    # Ho et al.'s code of DDPM, and the models google/ddpm-* of diffusers.
    "ddpm": Conventions(1e-6, ((0, 1), (0, 1)), True),
}


def time_embedding(
    t: Array, dim: int, max_period: float = 10_000.0, reaches_end: bool = False
) -> Array:
    """Embed t [B] in sinusoids of dim/2 frequencies from 1 to 1/max_period: [B, dim], t's dtype.

    Cosines come first, as in ADM; an odd dim is padded with a zero. The frequencies are a geometric
    sequence, of which 1/max_period is a member only if it ``reaches_end``.
    """
    half = dim // 2
    steps = half - 1 if reaches_end else half
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=t.dtype) / steps)
    angles = t[:, None] * frequencies
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


class GroupNorm(nn.Module):
    """Group normalisation with an optional scale and shift for each sample.

    y = (1 + scale) * GN(x) + shift. Channel moments are averaged to group moments, and the
    normalisation is one multiply-add: on CPUs XLA runs this 2-4 times as fast as normalising
    reshaped groups. Moments are computed in float32 or wider; the result has x's dtype.

    Attributes:
        groups: maximum number of groups; gcd(groups, channels) are used.
        epsilon: added to the variance.
    """

    groups: int = 32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, scale: Array | None = None, shift: Array | None = None) -> Array:
        channels = x.shape[-1]
        gain = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        groups = math.gcd(self.groups, channels)

        def group_mean(moment: Array) -> Array:
            per_group = moment.reshape(-1, groups, channels // groups).mean(axis=-1)
            return jnp.repeat(per_group, channels // groups, axis=-1)

        features = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = group_mean(features.mean(axis=(1, 2)))
        variance = group_mean((features**2).mean(axis=(1, 2))) - mean**2
        multiplier = gain * jax.lax.rsqrt(jnp.maximum(variance, 0) + self.epsilon)
        offset = bias - mean * multiplier
        if scale is not None:
            multiplier, offset = multiplier * (1 + scale), offset * (1 + scale) + shift
        return (features * multiplier[:, None, None] + offset[:, None, None]).astype(x.dtype)


class Convolution(nn.Module):
    """A size x size convolution, by default with PyTorch's padding of (size - 1) / 2.

    Attributes:
        features: output channels.
        size: 3 or 1.
        stride: 1 or 2.
        padding: padding of a 3 x 3 convolution that is not ``doubled``.
        doubled: upsample x to twice its side by repetition before convolving.
        zero: initialise the kernel with zeros.
        dtype: computing dtype; None: the promoted dtype of x and the parameters.
    """

    features: int
    size: int
    stride: int = 1
    padding: Padding = ((1, 1), (1, 1))
    doubled: bool = False
    zero: bool = False
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.zeros if self.zero else nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        if self.size == 1:
            return x @ kernel[0, 0] + bias
        if self.doubled:
            return convolve_doubled(x, kernel) + bias
        return convolve(x, kernel, self.stride, self.padding) + bias


def average_pool(x: Array) -> Array:
    """Halve height and width by averaging 2 x 2 squares."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


class ResidualBlock(nn.Module):
    """ADM's residual block: GN, SiLU, (resample), conv, embedding, GN, SiLU, dropout, conv; skip.

    The last convolution is initialised with zeros.

    Attributes:
        features: output channels; where they differ from x's, the skip has a 1 x 1 convolution.
        dropout: dropout rate; 0 outside training.
        scale_shift_norm: the embedding scales and shifts the second GN instead of being added.
        resample: "half" (`average_pool`) or "double" (`repeat`) resamples both branches; None: the
            side is unchanged.
        dtype: computing dtype of the convolutions; None: the input's. The embedding keeps its own.
        epsilon: added to the variance of the group norms.
    """

    features: int
    dropout: float = 0.0
    scale_shift_norm: bool = True
    resample: str | None = None
    dtype: Dtype = None
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, embedding: Array) -> Array:
        norm_out = GroupNorm(epsilon=self.epsilon, name="norm_out")
        h = nn.silu(GroupNorm(epsilon=self.epsilon, name="norm_in")(x))
        if self.resample == "half":
            h, x = average_pool(h), average_pool(x)
        doubled = self.resample == "double"
        h = Convolution(self.features, 3, doubled=doubled, dtype=self.dtype, name="conv_in")(h)
        x = repeat(x) if doubled else x

        width = 2 * self.features if self.scale_shift_norm else self.features
        embedding = nn.Dense(width, name="embedding")(nn.silu(embedding))
        if self.scale_shift_norm:
            scale, shift = jnp.split(embedding, 2, axis=-1)
            h = norm_out(h, scale, shift)
        else:
            h = norm_out(h + embedding[:, None, None].astype(h.dtype))
        h = nn.Dropout(self.dropout, deterministic=self.dropout == 0)(nn.silu(h))
        h = Convolution(self.features, 3, zero=True, dtype=self.dtype, name="conv_out")(h)

        if x.shape[-1] != self.features:
            x = Convolution(self.features, 1, dtype=self.dtype, name="conv_skip")(x)
        return x + h


class AttentionBlock(nn.Module):
    """x + proj(attention(GN(x))) over all positions; proj is initialised with zeros.

    Attributes:
        heads: number of heads.
        head_channels: channels per head; overrides ``heads`` where it is set.
        dtype: computing dtype of the dense layers; None: the input's.
        epsilon: added to the variance of the group norm.
    """

    heads: int = 1
    head_channels: int | None = None
    dtype: Dtype = None
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, height, width, channels = x.shape
        heads = self.heads if self.head_channels is None else channels // self.head_channels
        h = GroupNorm(epsilon=self.epsilon, name="norm")(x).reshape(b, height * width, channels)
        qkv = nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(h)
        q, k, v = jnp.split(qkv.reshape(b, height * width, heads, -1), 3, axis=-1)
        h = attend(q, k, v).reshape(b, height, width, channels)
        h = nn.Dense(channels, dtype=self.dtype, name="proj", kernel_init=nn.initializers.zeros)(h)
        return x + h


class Downsample(nn.Module):
    """Halve height and width by a convolution with stride 2, or by average pooling."""

    with_conv: bool
    dtype: Dtype = None
    padding: Padding = ((1, 1), (1, 1))

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if not self.with_conv:
            return average_pool(x)
        conv = Convolution(x.shape[-1], 3, 2, self.padding, dtype=self.dtype, name="conv")
        return conv(x)


class Upsample(nn.Module):
    """Double height and width by repetition, followed by a convolution if ``with_conv``."""

    with_conv: bool
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.with_conv:
            return Convolution(x.shape[-1], 3, doubled=True, dtype=self.dtype, name="conv")(x)
        return repeat(x)
