"""Flow matching with the OT path on the 2-D checkerboard, with the paper's 5 x 512 network."""

from ml_collections import ConfigDict

from flowmatch_jax.config.fields import default_config


def get_config() -> ConfigDict:
    config = default_config()
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


def cnf(config: ConfigDict) -> ConfigDict:
    """A continuous normalizing flow trained by maximum likelihood through the solve.

    A step costs a hundred times as much as a step of flow matching, so there are fewer steps.
    """
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


METHODS = {"cnf": cnf}
