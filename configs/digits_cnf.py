"""A continuous normalizing flow by maximum likelihood, through the solve, on digits.

A step costs some hundred times that of flow matching, so their number is another. On CPUs it is
worse: XLA computes the gradient of a convolution's kernel slowly inside a loop.
"""

from ml_collections import ConfigDict

from configs import digits_ot


def get_config() -> ConfigDict:
    config = digits_ot.get_config()
    config.objective.name = "maximum_likelihood"
    config.maximum_likelihood.rtol = config.maximum_likelihood.atol = 1e-3

    config.optimizer.warmup_steps = 10
    config.optimizer.ema_decay = 0.95
    config.train.steps = 60
    config.train.batch_size = 32
    config.train.log_every = 10
    config.train.sample_every = 20
    config.train.checkpoint_every = 20
    return config
