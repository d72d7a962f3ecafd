"""A continuous normalizing flow by maximum likelihood, through the solve, on the checkerboard.

A step costs some hundred times that of flow matching, so the number of steps is another.
"""

from ml_collections import ConfigDict

from configs import checkerboard_ot


def get_config() -> ConfigDict:
    config = checkerboard_ot.get_config()
    config.objective.name = "maximum_likelihood"
    config.maximum_likelihood.rtol = config.maximum_likelihood.atol = 1e-3
    config.maximum_likelihood.divergence = "exact"

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 20
    config.optimizer.ema_decay = 0.98
    config.train.steps = 300
    config.train.batch_size = 128
    config.train.log_every = 10
    config.train.sample_every = 200
    config.train.checkpoint_every = 100
    config.train.keep_every = 100
    return config
