"""What networks are given besides t and x_t: labels, and images of low resolution.

It travels as ``inputs``, {"label": int32 [B], "condition": [B, H, W, C]} with what there is of the
two, and is a function of a batch of the data as it is stored, {"x": integers [B, H, W, C],
"label": [B]}: the low-resolution image is made of the image itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from flowmatch_jax.arrays import NO_LABEL, Array, Batch, Inputs
from flowmatch_jax.data.images.resolution import FILTERS, resize
from flowmatch_jax.pixels import centres
from flowmatch_jax.runtime.errors import UserError, at_least, fraction, one_of


@dataclass(frozen=True)
class Conditioning:
    """What a model is conditioned on; nothing by default.

    Attributes:
        labels: the class.
        label_dropout: probability that a sample is trained without its label, which is what
            guidance takes for the unconditional field (Ho & Salimans 2022).
        low_resolution: the image in this many pixels a side, enlarged.
        filter: it is made by, of `resolution.FILTERS`.
        max_noise: the largest standard deviation, in model space, of noise that is added to it in
            training, so that the model also does for images that are not made like that. Each
            image's is drawn from U(0, max_noise) and told to the network, as a further channel of
            the condition (Ho et al. 2021, conditioning augmentation); samples are given 0. With
            max_noise = 0 there is no such channel.
        levels: grey levels of the images.
    """

    labels: bool = False
    label_dropout: float = 0.1
    low_resolution: int | None = None
    filter: str = "bicubic"
    max_noise: float = 0.0
    levels: int | None = None

    def __bool__(self) -> bool:
        return self.labels or self.low_resolution is not None

    def inputs(self, batch: Batch) -> Inputs:
        """Of the items of a batch, each on its own."""
        inputs = {}
        if self.labels:
            inputs["label"] = batch["label"]
        if self.low_resolution is not None:
            inputs["condition"] = self.condition(self.reduce(batch["x"]), batch["x"].shape[1:3])
        return inputs

    def training_inputs(self, batch: Batch, key: Array) -> Inputs:
        """The same, some of the labels left out and noise on the low resolution."""
        inputs = self.inputs(batch)
        label_key, noise_key = jax.random.split(key)
        if self.labels:
            drop = jax.random.bernoulli(label_key, self.label_dropout, inputs["label"].shape)
            inputs["label"] = jnp.where(drop, NO_LABEL, inputs["label"])
        if self.low_resolution is not None and self.max_noise:
            inputs["condition"] = self._add_noise(inputs["condition"], noise_key)
        return inputs

    def _add_noise(self, condition: Array, key: Array) -> Array:
        level_key, noise_key = jax.random.split(key)
        image = condition[..., :-1]
        shape = (len(image), 1, 1, 1)
        level = jax.random.uniform(level_key, shape, maxval=self.max_noise)
        image = image + level * jax.random.normal(noise_key, image.shape)
        return jnp.concatenate([image, jnp.broadcast_to(level, (*image.shape[:-1], 1))], axis=-1)

    def reduce(self, image: Array) -> Array:
        """Images [B, H, W, C] in low resolution, whole levels as a file would have them, int32."""
        side = self.low_resolution
        return resize(image, (side, side), self.filter, self.levels)

    def enlarge(self, image: Array, sides: tuple[int, int]) -> Array:
        """Images of whole levels to these sides by the bicubic filter, in model space, float32."""
        return centres(resize(image, sides), self.levels)

    def condition(self, image: Array, sides: tuple[int, int]) -> Array:
        """What the network is given of images in low resolution: [B, *sides, condition_channels].

        The enlarged image, which SR3 too concatenates to x_t in full size, and where training adds
        noise to it a channel of the noise's level, 0 here.
        """
        enlarged = self.enlarge(image, sides)
        return jnp.pad(enlarged, ((0, 0), (0, 0), (0, 0), (0, int(self.max_noise > 0))))

    def condition_channels(self, channels: int) -> int:
        """Channels of the condition for images of so many; 0 where there is none."""
        return 0 if self.low_resolution is None else channels + (self.max_noise > 0)

    def validate(self, shape: tuple[int, ...], num_classes: int | None) -> None:
        """Raise UserError unless there is such a condition for data of this shape and classes."""
        fraction("label_dropout", self.label_dropout)
        one_of("filter", self.filter, FILTERS)
        at_least("max_noise", self.max_noise, 0)
        if self.labels and num_classes is None:
            raise UserError("labels", True, "these data have none: leave it off")
        if self.low_resolution is None:
            return
        at_least("low_resolution", self.low_resolution, 1)
        if self.levels is None:
            allowed = "these data are points, not images: leave it unset"
            raise UserError("low_resolution", self.low_resolution, allowed)
        side = shape[0]
        if self.low_resolution >= side or side % self.low_resolution or shape[1] != side:
            allowed = f"it must be below the images' {shape[0]}x{shape[1]} pixels and divide them"
            raise UserError("low_resolution", self.low_resolution, allowed)
