"""Flow matching with the OT path on 8 x 8 digits; training takes minutes on two CPU cores."""

from ml_collections import ConfigDict

from flowmatch_jax.config import methods
from flowmatch_jax.config.fields import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "digits"
    config.path.name = "ot"

    config.network.unet.channels = 32
    config.network.unet.multipliers = (1, 2)
    config.network.unet.depth = 1
    config.network.unet.attention_sides = (4,)

    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.optimizer.clip_norm = 1.0
    config.optimizer.ema_decay = 0.995

    config.train.steps = 1200
    config.train.batch_size = 128
    config.train.log_every = 50
    config.train.sample_every = 400
    config.train.checkpoint_every = 200
    config.train.keep_every = 200

    config.solver.rtol = config.solver.atol = 1e-3
    config.evaluate.batch_size = 297
    config.evaluate.extractor = "pixels"
    config.evaluate.generated = 1500
    config.figures.nfe = (4, 8, 12, 20, 40)
    config.figures.seeds = 64
    config.figures.generated = 512
    return config


def class_conditional(config: ConfigDict) -> ConfigDict:
    """Class-conditional flow matching with ten samples per class in sample grids."""
    config.evaluate.samples = 100
    return methods.class_conditional(config)


def cnf(config: ConfigDict) -> ConfigDict:
    """A continuous normalizing flow trained by maximum likelihood through the solve.

    A step costs a hundred times as much as a step of flow matching, so there are fewer steps. On
    CPUs the ratio is larger: XLA is slow at gradients of convolution kernels inside a loop.
    """
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


METHODS = {"class": class_conditional, "cnf": cnf}
