"""The U-Net of Dhariwal & Nichol 2021 (ADM), the paper's network for images.

The U-Nets of ADM, torchcfm and facebookresearch/flow_matching are settings of this module with the
same number of parameters (tests/networks/unet_test.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flowmatch_jax.arrays import Array
from flowmatch_jax.networks.layers import (
    CONVENTIONS,
    AttentionBlock,
    Conventions,
    Convolution,
    Downsample,
    GroupNorm,
    ResidualBlock,
    Upsample,
    time_embedding,
)
from flowmatch_jax.runtime.errors import UserError, at_least, fraction, one_of

# (width, name, resample=None) -> a residual block
Block = Callable[..., ResidualBlock]
# (h, name, always=False) -> h after attention if this side has attention, else h
Attention = Callable[..., Array]


class UNet(nn.Module):
    """v(t, x) for images; zero at initialisation.

    Attributes:
        out_channels: output channels; as many as x has for a vector field.
        channels: width of the first level.
        multipliers: width of each level in units of ``channels``; the side halves between levels.
        depth: residual blocks per level of the encoder; the decoder has one more per level.
        attention_sides: feature maps with these sides get attention after each residual block; the
            middle block always has attention.
        heads: number of attention heads.
        head_channels: channels per head; overrides ``heads`` where it is set.
        dropout: dropout rate in training.
        scale_shift_norm: time and label scale and shift a group norm instead of being added.
        residual_resampling: resample inside residual blocks (ADM's resblock_updown) instead of in
            separate layers.
        conv_resampling: the separate resampling layers have a convolution; otherwise they average
            and repeat.
        num_classes: number of classes; None for unconditional networks.
        condition_channels: channels of a conditioning image concatenated to x; 0 for none.
        two_times: the network takes a second time, ``end``, for flow maps (see `flow_maps`).
        time_scale: factor on t before its sinusoids, whose frequencies are at most 1 (not stated in
            the paper; 1000 in ADM, 1 in torchcfm and facebookresearch/flow_matching).
        conventions: details that do not change the parameters: "adm", or "ddpm" (see `layers`).
        dtype: computing dtype, e.g. bfloat16; None: x's. Parameters are float32, the output has x's
            dtype. Time and label are embedded in float32 or wider: bfloat16 distinguishes only 15
            times in [0.999, 1].
        remat: recompute each block in the backward pass instead of storing its activations.
    """

    out_channels: int
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    depth: int = 2
    attention_sides: tuple[int, ...] = (16,)
    heads: int = 4
    head_channels: int | None = None
    dropout: float = 0.0
    scale_shift_norm: bool = True
    residual_resampling: bool = False
    conv_resampling: bool = True
    num_classes: int | None = None
    condition_channels: int = 0
    two_times: bool = False
    time_scale: float = 1000.0
    conventions: str = "adm"
    dtype: Any = None
    remat: bool = False

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
        """Predict at times t for images x.

        Args:
            t: [B] or [].
            x: [B, H, W, C]; H and W divisible by 2^(levels - 1).
            label: int32 [B] in [0, num_classes), or -1 for "no label"; None stands for -1.
            condition: [B, H, W, condition_channels].
            train: turns on dropout, which draws from the "dropout" rng.
            end: [B] or [], with two_times: predict the average velocity from t to this time; None
                stands for t, where it is the velocity.

        Returns:
            [B, H, W, out_channels], x's dtype.

        Raises:
            UserError: the sides cannot be halved at every level, the network has no label,
                condition or second time, or the condition's shape is wrong.
        """
        self.validate(x.shape[1:3])
        self._check_inputs(x, label, condition, end)
        output_dtype = x.dtype
        block, attention = self._block(train), self._attention()
        times = (jnp.broadcast_to(time, x.shape[:1]) for time in (t, t if end is None else end))
        embedding = self._embed(*times, label)
        if condition is not None:
            x = jnp.concatenate([x, condition], axis=-1)
        if self.dtype is not None:
            x = x.astype(self.dtype)

        skips = self._down(x, embedding, block, attention)
        h = block(self._widths[-1], "middle_0")(skips[-1], embedding)
        h = attention(h, "middle_attention", always=True)
        h = block(self._widths[-1], "middle_1")(h, embedding)
        h = self._up(h, skips, embedding, block, attention)

        h = nn.silu(GroupNorm(epsilon=self._details.epsilon, name="norm_out")(h))
        out = Convolution(self.out_channels, 3, zero=True, dtype=self.dtype, name="conv_out")
        return out(h).astype(output_dtype)

    @property
    def _details(self) -> Conventions:
        return CONVENTIONS[self.conventions]

    @property
    def _widths(self) -> list[int]:
        return [self.channels * multiplier for multiplier in self.multipliers]

    def _down(self, x: Array, embedding: Array, block: Block, attention: Attention) -> list[Array]:
        """Run the encoder; returns its feature maps, the smallest last."""
        h = Convolution(self._widths[0], 3, dtype=self.dtype, name="conv_in")(x)
        skips = [h]
        for level, width in enumerate(self._widths):
            for i in range(self.depth):
                h = block(width, f"down_{level}_{i}")(h, embedding)
                h = attention(h, f"down_{level}_{i}_attention")
                skips.append(h)
            if level < len(self._widths) - 1:
                if self.residual_resampling:
                    h = block(width, f"down_{level}_halve", "half")(h, embedding)
                else:
                    halve = Downsample(
                        self.conv_resampling,
                        self.dtype,
                        self._details.halving,
                        name=f"down_{level}_halve",
                    )
                    h = halve(h)
                skips.append(h)
        return skips

    def _up(
        self, h: Array, skips: list[Array], embedding: Array, block: Block, attention: Attention
    ) -> Array:
        """Run the decoder, concatenating the encoder's feature map of the same size each time."""
        for level, width in reversed(list(enumerate(self._widths))):
            for i in range(self.depth + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(width, f"up_{level}_{i}")(h, embedding)
                h = attention(h, f"up_{level}_{i}_attention")
            if level > 0:
                if self.residual_resampling:
                    h = block(width, f"up_{level}_double", "double")(h, embedding)
                else:
                    h = Upsample(self.conv_resampling, self.dtype, name=f"up_{level}_double")(h)
        return h

    def validate(self, sides: tuple[int, int]) -> None:
        """Raise UserError unless the settings are valid for images with these sides."""
        one_of("conventions", self.conventions, CONVENTIONS)
        at_least("channels", self.channels, 1)
        at_least("depth", self.depth, 1)
        whole = all(isinstance(m, int) and m > 0 for m in self.multipliers)
        if not self.multipliers or not whole:
            raise UserError(
                "multipliers", self.multipliers, "they are one positive integer per level"
            )
        if not math.isfinite(self.time_scale) or self.time_scale == 0:
            raise UserError("time_scale", self.time_scale, "it must be finite, and not 0")
        at_least("heads", self.heads, 1)
        if self.head_channels is not None:
            at_least("head_channels", self.head_channels, 1)
        fraction("dropout", self.dropout)
        levels = len(self.multipliers)
        if any(side % 2 ** (levels - 1) for side in sides):
            # side & -side is the largest power of two that divides the side.
            fitting = min((side & -side).bit_length() for side in sides)
            raise UserError(
                "multipliers",
                self.multipliers,
                f"{levels} levels need sides divisible by {2 ** (levels - 1)}, and the images are "
                f"{sides[0]}x{sides[1]}; give at most {fitting} multipliers",
            )
        level_sides = [sides[0] // 2**level for level in range(levels)]
        if not set(self.attention_sides) <= set(level_sides):
            allowed = f"the feature maps have sides {', '.join(map(str, level_sides))}"
            raise UserError("attention_sides", self.attention_sides, allowed)
        for level, multiplier in enumerate(self.multipliers):
            width = self.channels * multiplier
            if level < levels - 1 and level_sides[level] not in self.attention_sides:
                continue
            if self.head_channels is not None and width % self.head_channels:
                raise UserError("head_channels", self.head_channels, f"it must divide {width}")
            if self.head_channels is None and width % self.heads:
                raise UserError("heads", self.heads, f"they must divide {width} channels")

    def _embed(self, t: Array, end: Array, label: Array | None) -> Array:
        """Embed times and label, [B] each, as [B, 4 channels], in float32 or wider."""
        width = 4 * self.channels

        def embed(t: Array, name: str) -> Array:
            t = t.astype(jnp.promote_types(t.dtype, jnp.float32))
            reaches_end = self._details.reaches_end
            h = time_embedding(self.time_scale * t, self.channels, reaches_end=reaches_end)
            h = nn.Dense(width, name=f"{name}_0")(h)
            return nn.Dense(width, name=f"{name}_1")(nn.silu(h))

        h = embed(t, "time")
        if self.two_times:
            h += embed(end - t, "duration")
        if self.num_classes is None:
            return h
        table = nn.Embed(self.num_classes, width, name="label")
        label = jnp.full(t.shape, -1) if label is None else label
        return h + jnp.where(label[:, None] >= 0, table(jnp.maximum(label, 0)), 0)

    def _block(self, train: bool) -> Block:
        kind = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        dropout = self.dropout if train else 0.0

        def block(width: int, name: str, resample: str | None = None) -> ResidualBlock:
            epsilon = self._details.epsilon
            options = (dropout, self.scale_shift_norm, resample, self.dtype, epsilon)
            return kind(width, *options, name=name)

        return block

    def _attention(self) -> Attention:
        kind = nn.remat(AttentionBlock) if self.remat else AttentionBlock

        def attention(h: Array, name: str, always: bool = False) -> Array:
            if not always and h.shape[1] not in self.attention_sides:
                return h
            options = (self.heads, self.head_channels, self.dtype, self._details.epsilon)
            return kind(*options, name=name)(h)

        return attention

    def _check_inputs(
        self, x: Array, label: Array | None, condition: Array | None, end: Array | None
    ) -> None:
        if end is not None and not self.two_times:
            raise UserError("end", end.shape, "this network takes one time; set two_times")
        if label is not None and self.num_classes is None:
            raise UserError("label", label.shape, "this network has no classes; set num_classes")
        expected = (*x.shape[:-1], self.condition_channels) if self.condition_channels else None
        given = None if condition is None else condition.shape
        if given != expected:
            raise UserError("condition", given, f"this network takes one of shape {expected}")
