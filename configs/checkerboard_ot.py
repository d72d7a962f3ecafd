"""Flow matching with the OT path on the 2-D checkerboard, by the paper's 5 x 512 network."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.name = "checkerboard"
    config.path.name = "ot"
    config.network.name = "mlp"

    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.optimizer.ema_decay = 0.999

    config.train.steps = 25_000
    config.train.batch_size = 512
    config.train.sample_every = 5000
    config.train.checkpoint_every = 2500
    config.train.keep_every = 5000

    config.evaluate.divergence = "exact"
    config.evaluate.batch_size = 2000
    config.evaluate.samples = 10_000
    config.figures.seeds = 512
    return config
