"""The Inception-v3 of the Fréchet Inception distance, as TensorFlow published it on 2015-12-05.

Szegedy et al., Rethinking the Inception Architecture for Computer Vision (2016). The published
graph differs from later Inceptions in three ways: average pooling excludes the padding, the last
block uses max pooling instead of average pooling, and there are 1008 classes. Modules have the
names of PyTorch's weight files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flowmatch_jax.arrays import Array, Params
from flowmatch_jax.metrics.features.extractor import Extractor, compiled
from flowmatch_jax.metrics.features.torch_weights import checked_sha256, folded_params

# The hash of pytorch-fid's pt_inception-2015-12-05-6726825d.pth; torch-fidelity's file is the same.
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIDE, DIMS, CLASSES = 299, 2048, 1008


class InceptionV3(nn.Module):
    """Images [B, 299, 299, 3] in [-1, 1] -> features (pool3) [B, 2048], logits [B, 1008]."""

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        x = convolution("Conv2d_1a_3x3", 32, 3, stride=2, padding="VALID")(x)
        x = convolution("Conv2d_2a_3x3", 32, 3, padding="VALID")(x)
        x = halve(convolution("Conv2d_2b_3x3", 64, 3)(x))
        x = convolution("Conv2d_3b_1x1", 80)(x)
        x = halve(convolution("Conv2d_4a_3x3", 192, 3, padding="VALID")(x))
        x = InceptionA(32, name="Mixed_5b")(x)
        x = InceptionA(64, name="Mixed_5c")(x)
        x = InceptionA(64, name="Mixed_5d")(x)
        x = InceptionB(name="Mixed_6a")(x)
        x = InceptionC(128, name="Mixed_6b")(x)
        x = InceptionC(160, name="Mixed_6c")(x)
        x = InceptionC(160, name="Mixed_6d")(x)
        x = InceptionC(192, name="Mixed_6e")(x)
        x = InceptionD(name="Mixed_7a")(x)
        x = InceptionE(average, name="Mixed_7b")(x)
        x = InceptionE(maximum, name="Mixed_7c")(x)
        x = x.mean(axis=(1, 2))
        return x, nn.Dense(CLASSES, name="fc")(x)


class InceptionA(nn.Module):
    """Branches of 1x1, 5x5, two 3x3, and average pooling: [B, 35, 35, 224 + pool_features]."""

    pool_features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        large = convolution("branch5x5_1", 48)(x)
        double = convolution("branch3x3dbl_1", 64)(x)
        double = convolution("branch3x3dbl_2", 96, 3)(double)
        branches = (
            convolution("branch1x1", 64)(x),
            convolution("branch5x5_2", 64, 5)(large),
            convolution("branch3x3dbl_3", 96, 3)(double),
            convolution("branch_pool", self.pool_features)(average(x)),
        )
        return jnp.concatenate(branches, axis=-1)


class InceptionB(nn.Module):
    """Halve the side with strided branches: [B, 17, 17, 480 + C]."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        double = convolution("branch3x3dbl_1", 64)(x)
        double = convolution("branch3x3dbl_2", 96, 3)(double)
        branches = (
            convolution("branch3x3", 384, 3, stride=2, padding="VALID")(x),
            convolution("branch3x3dbl_3", 96, 3, stride=2, padding="VALID")(double),
            halve(x),
        )
        return jnp.concatenate(branches, axis=-1)


class InceptionC(nn.Module):
    """Branches of 1x1, 7x7, two 7x7, and average pooling: [B, 17, 17, 768].

    Each 7x7 convolution is factorised into 1x7 and 7x1.

    Attributes:
        width: channels inside the branches.
    """

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        single = convolution("branch7x7_1", self.width)(x)
        single = convolution("branch7x7_2", self.width, (1, 7))(single)
        double = convolution("branch7x7dbl_1", self.width)(x)
        double = convolution("branch7x7dbl_2", self.width, (7, 1))(double)
        double = convolution("branch7x7dbl_3", self.width, (1, 7))(double)
        double = convolution("branch7x7dbl_4", self.width, (7, 1))(double)
        branches = (
            convolution("branch1x1", 192)(x),
            convolution("branch7x7_3", 192, (7, 1))(single),
            convolution("branch7x7dbl_5", 192, (1, 7))(double),
            convolution("branch_pool", 192)(average(x)),
        )
        return jnp.concatenate(branches, axis=-1)


class InceptionD(nn.Module):
    """Halve the side with strided branches: [B, 8, 8, 512 + C]."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        small = convolution("branch3x3_1", 192)(x)
        large = convolution("branch7x7x3_1", 192)(x)
        large = convolution("branch7x7x3_2", 192, (1, 7))(large)
        large = convolution("branch7x7x3_3", 192, (7, 1))(large)
        branches = (
            convolution("branch3x3_2", 320, 3, stride=2, padding="VALID")(small),
            convolution("branch7x7x3_4", 192, 3, stride=2, padding="VALID")(large),
            halve(x),
        )
        return jnp.concatenate(branches, axis=-1)


class InceptionE(nn.Module):
    """Branches of 1x1, 3x3, two 3x3, and pooling: [B, 8, 8, 2048].

    The last 3x3 of each branch is a 1x3 and a 3x1 convolution in parallel.

    Attributes:
        pool: `average` or `maximum`.
    """

    pool: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        single = convolution("branch3x3_1", 384)(x)
        double = convolution("branch3x3dbl_1", 448)(x)
        double = convolution("branch3x3dbl_2", 384, 3)(double)
        branches = (
            convolution("branch1x1", 320)(x),
            convolution("branch3x3_2a", 384, (1, 3))(single),
            convolution("branch3x3_2b", 384, (3, 1))(single),
            convolution("branch3x3dbl_3a", 384, (1, 3))(double),
            convolution("branch3x3dbl_3b", 384, (3, 1))(double),
            convolution("branch_pool", 192)(self.pool(x)),
        )
        return jnp.concatenate(branches, axis=-1)


def convolution(
    name: str,
    features: int,
    size: int | tuple[int, int] = 1,
    stride: int = 1,
    padding: str = "SAME",
) -> Callable[[Array], Array]:
    """Create a convolution with its batch norm folded in, followed by ReLU."""
    size = (size, size) if isinstance(size, int) else size
    layer = nn.Conv(features, size, stride, padding, name=name)
    return lambda x: nn.relu(layer(x))


def average(x: Array) -> Array:
    """Average the 3 x 3 square around each position, excluding the padding."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def maximum(x: Array) -> Array:
    """Take the maximum of the 3 x 3 square around each position."""
    return nn.max_pool(x, (3, 3), padding="SAME")


def halve(x: Array) -> Array:
    """Take the maximum of 3 x 3 squares with stride 2: side s -> (s - 1) // 2."""
    return nn.max_pool(x, (3, 3), strides=(2, 2))


def resize_as_tf1(images: Array, side: int) -> Array:
    """Resize images bilinearly as the published graph does: [B, H, W, C] -> [B, side, side, C].

    This is TensorFlow 1's resize_bilinear with align_corners=False: new pixel i is sampled at
    i * H / side, so the upper left corners are aligned instead of the pixel centres, and
    downscaling is not antialiased. PyTorch's interpolate, which pytorch-fid uses, aligns the
    centres and gives other features.
    """
    return _interpolate(_interpolate(images, 2, side), 1, side)


def _interpolate(x: Array, axis: int, side: int) -> Array:
    size = x.shape[axis]
    place = np.arange(side, dtype=np.float32) * (np.float32(size) / np.float32(side))
    low = place.astype(int)
    weight = np.expand_dims(place - low.astype(np.float32), [i for i in range(4) if i != axis])
    start, end = (jnp.take(x, i, axis) for i in (low, np.minimum(low + 1, size - 1)))
    return start + (end - start) * weight


def load_inception(path: Path, sha256: str | None = SHA256) -> Extractor:
    """Load the network with the published weights from a file that the user provides.

    Images are resized to 299 x 299 by `resize_as_tf1` and normalised to (x - 128) / 128. The
    logits omit the bias of the last layer, as the Inception score has done since Salimans et al.,
    Improved Techniques for Training GANs (2016).

    Args:
        path: pytorch-fid's pt_inception-2015-12-05-6726825d.pth (torch-fidelity's is the same).
        sha256: expected hash of the file; None accepts any weights. Only the published weights
            give an FID.

    Raises:
        UserError: the file is damaged, or has another hash or another network's weights.
    """
    found = checked_sha256(path, sha256)
    net = InceptionV3()
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))["params"]
    params = folded_params(path, shapes, torch_names)
    params["fc"]["bias"] = np.zeros_like(params["fc"]["bias"])

    def features_and_logits(params: Params, images: Array) -> tuple[Array, Array]:
        return net.apply({"params": params}, (resize_as_tf1(images, SIDE) - 128) / 128)

    return Extractor("inception", SIDE, DIMS, found, compiled(features_and_logits, params))


def torch_names(layer: str) -> tuple[str, str | None]:
    """Map "Mixed_5b.branch1x1" to the names of its convolution and batch norm in PyTorch's file."""
    return (layer, None) if layer == "fc" else (f"{layer}.conv", f"{layer}.bn")
