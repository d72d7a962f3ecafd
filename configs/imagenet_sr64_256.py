"""Super-resolution of ImageNet from 64 x 64 to 256 x 256 by flow matching with the OT path.

The paper follows SR3's evaluation and does not state network, training or conditioning. Here the
network is ADM's upsampler without classes (311.0M parameters), and the rest follows SR3: a million
steps of 256 images, Adam with learning rate 1e-4 after a warm-up of 10,000 steps, and the condition
concatenated to x_t.
"""

from ml_collections import ConfigDict

from flowmatch_jax.config import methods
from flowmatch_jax.config.fields import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "imagenet256"
    config.data.storage = "records"
    config.data.workers = 8
    config.condition.low_resolution = 64
    config.path.name = "ot"

    config.network.dtype = "bfloat16"
    config.network.unet.channels = 192
    config.network.unet.multipliers = (1, 1, 2, 2, 4, 4)
    config.network.unet.depth = 2
    config.network.unet.attention_sides = (32, 16, 8)
    config.network.unet.heads = 4
    config.network.unet.residual_resampling = True
    config.network.unet.remat = True

    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 10_000

    config.train.steps = 1_000_000
    config.train.batch_size = 256
    config.train.checkpoint_every = 5_000
    config.train.keep_every = 100_000

    config.evaluate.batch_size = 32
    config.evaluate.samples = 16
    config.evaluate.extractor = "efficientnet_lite0"
    config.evaluate.scores = ("inception_score",)
    return config


def regression(config: ConfigDict) -> ConfigDict:
    """Regression with SR3's learning rate for it."""
    config.optimizer.learning_rate = 1e-5
    return methods.regression(config)


METHODS = {"regression": regression}
