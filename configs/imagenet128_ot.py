"""Flow matching with the OT path on ImageNet-128: the paper's Table 3, 542.8M parameters.

The paper does not mention EMA; both kinds of weights are evaluated. It states 16-bit training, but
not the dtype. Its 500k iterations with batch size 1536 are 600 epochs, but the table states 571.
"""

from ml_collections import ConfigDict

from flowmatch_jax.config.fields import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "imagenet128"
    config.data.storage = "records"
    config.path.name = "ot"

    config.network.dtype = "bfloat16"
    config.network.unet.channels = 256
    config.network.unet.multipliers = (1, 1, 2, 3, 4)
    config.network.unet.depth = 3
    config.network.unet.attention_sides = (32, 16, 8)
    config.network.unet.head_channels = 64
    config.network.unet.residual_resampling = True
    # About 11 GiB of activations on each of the paper's 32 devices, 36 without (docs/scaling.md).
    config.network.unet.remat = True

    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 20_000

    config.train.steps = 500_000
    config.train.batch_size = 1536
    config.train.sample_every = 10_000
    config.train.keep_every = 40_000

    config.evaluate.weights = ("ema", "raw")
    config.evaluate.batch_size = 64
    config.evaluate.extractor = "efficientnet_lite0"
    return config
