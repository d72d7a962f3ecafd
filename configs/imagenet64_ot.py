"""Flow matching with the OT path on ImageNet-64: the paper's Table 3, 295.1M parameters.

The paper does not mention EMA; both kinds of weights are evaluated. It states 16-bit training, but
not the dtype.
"""

from ml_collections import ConfigDict

from flowmatch_jax.config.fields import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "imagenet64"
    config.data.version = "antialiased"
    config.path.name = "ot"

    config.network.dtype = "bfloat16"
    config.network.unet.channels = 192
    config.network.unet.multipliers = (1, 2, 3, 4)
    config.network.unet.depth = 3
    config.network.unet.attention_sides = (32, 16, 8)
    config.network.unet.head_channels = 64
    config.network.unet.residual_resampling = True
    # About 12 GiB of activations on each of the paper's 16 devices, 52 without (docs/scaling.md).
    config.network.unet.remat = True

    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "constant"

    config.train.steps = 157_000
    config.train.batch_size = 2048
    config.train.checkpoint_every = 2_500
    config.train.keep_every = 12_500

    config.evaluate.weights = ("ema", "raw")
    config.evaluate.batch_size = 128
    config.evaluate.extractor = "efficientnet_lite0"
    config.evaluate.dequantisations = (1, 5, 10)
    return config
