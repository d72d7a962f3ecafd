"""Flow matching with the OT path on Fashion-MNIST (28 x 28, grey): 1,191,233 parameters."""

from ml_collections import ConfigDict

from flowmatch_jax.config.fields import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "fashion_mnist"
    config.path.name = "ot"

    config.network.unet.channels = 32
    config.network.unet.multipliers = (1, 2, 2)
    config.network.unet.depth = 1
    config.network.unet.attention_sides = (7,)

    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 500
    config.optimizer.clip_norm = 1.0
    config.optimizer.ema_decay = 0.999

    config.train.steps = 20_000
    config.train.batch_size = 128
    config.train.sample_every = 2_000
    config.train.checkpoint_every = 1_000
    config.train.keep_every = 2_000

    config.evaluate.extractor = "efficientnet_lite0"
    config.evaluate.generated = 10_000
    return config
