"""Flow matching with the OT path on ImageNet-32: the paper's Table 3, 228.1M parameters.

The paper does not mention EMA; both kinds of weights are evaluated.
"""

from ml_collections import ConfigDict

from flowmatch_jax.config.fields import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "imagenet32"
    config.data.version = "antialiased"
    config.path.name = "ot"

    config.network.unet.channels = 256
    config.network.unet.multipliers = (1, 2, 2, 2)
    config.network.unet.depth = 3
    config.network.unet.attention_sides = (16, 8)
    config.network.unet.head_channels = 64
    config.network.unet.residual_resampling = True
    # Without it, up to 71 GiB of activations on each of the paper's 4 devices.
    config.network.unet.remat = True

    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 20_000

    config.train.steps = 250_000
    config.train.batch_size = 1024
    config.train.sample_every = 10_000
    config.train.keep_every = 20_000

    config.evaluate.weights = ("ema", "raw")
    config.evaluate.extractor = "efficientnet_lite0"
    config.evaluate.dequantisations = (1, 5, 15)
    return config
