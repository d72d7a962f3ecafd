"""Conditioning inputs of networks: labels and low-resolution images.

They are passed as ``inputs``, a dict with one or both of "label" int32 [B] and "condition"
[B, H, W, C]. They are computed from a batch of the stored data, {"x": integers [B, H, W, C],
"label": [B]}; the low-resolution image is computed from the image itself.
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
        labels: condition on the class.
        label_dropout: probability that a training sample has no label. Classifier-free guidance
            uses the field without a label as the unconditional one (Ho & Salimans 2022).
        low_resolution: condition on the image downscaled to this side and enlarged again.
        filter: downscaling filter, a key of `resolution.FILTERS`.
        enlarging: filter that enlarges the low-resolution image, another key.
        max_noise: largest standard deviation, in model space, of Gaussian noise added to the
            low-resolution image in training, which makes the model robust to images downscaled in
            other ways (conditioning augmentation, Ho et al. 2021). The standard deviation is drawn
            from U(0, max_noise) for each image and given to the network as an additional channel
            of the condition; it is 0 in sampling. With max_noise = 0 there is no such channel.
        levels: grey levels of the images.
    """

    labels: bool = False
    label_dropout: float = 0.1
    low_resolution: int | None = None
    filter: str = "bicubic"
    enlarging: str = "bicubic"
    max_noise: float = 0.0
    levels: int | None = None

    def __bool__(self) -> bool:
        return self.labels or self.low_resolution is not None

    def inputs(self, batch: Batch) -> Inputs:
        """Compute the conditioning inputs of a batch; each item's depend on that item only."""
        inputs = {}
        if self.labels:
            inputs["label"] = batch["label"]
        if self.low_resolution is not None:
            inputs["condition"] = self.condition(self.reduce(batch["x"]), batch["x"].shape[1:3])
        return inputs

    def training_inputs(self, batch: Batch, key: Array) -> Inputs:
        """Compute `inputs` for training, with label dropout and noise on the condition."""
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
        """Downscale images [B, H, W, C] and round them to integer levels, int32."""
        side = self.low_resolution
        return resize(image, (side, side), self.filter, self.levels)

    def enlarge(self, image: Array, sides: tuple[int, int], filter: str = "bicubic") -> Array:
        """Enlarge integer images to these sides; returns float32 in model space."""
        return centres(resize(image, sides, filter), self.levels)

    def condition(self, image: Array, sides: tuple[int, int]) -> Array:
        """Compute the condition of low-resolution images: [B, *sides, condition_channels].

        It is the enlarged image, which the network concatenates to x_t as in SR3. If training adds
        noise to the condition, a channel with the noise level follows, which is 0 here.
        """
        enlarged = self.enlarge(image, sides, self.enlarging)
        return jnp.pad(enlarged, ((0, 0), (0, 0), (0, 0), (0, int(self.max_noise > 0))))

    def condition_channels(self, channels: int) -> int:
        """Return the number of condition channels for images with ``channels``; 0 for none."""
        return 0 if self.low_resolution is None else channels + (self.max_noise > 0)

    def validate(self, shape: tuple[int, ...], num_classes: int | None) -> None:
        """Raise UserError unless data of this shape and with these classes can be conditioned."""
        fraction("label_dropout", self.label_dropout)
        one_of("filter", self.filter, FILTERS)
        one_of("enlarging", self.enlarging, FILTERS)
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
