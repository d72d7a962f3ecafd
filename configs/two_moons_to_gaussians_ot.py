"""Flow matching from one set of points to another: two moons to eight Gaussians."""

from ml_collections import ConfigDict

from configs import checkerboard_ot


def get_config() -> ConfigDict:
    config = checkerboard_ot.get_config()
    config.source.name = "two_moons"
    config.data.name = "eight_gaussians"
    config.network.mlp.width = 128
    config.train.steps = 5000
    config.train.batch_size = 256
    config.train.sample_every = 2500
    config.train.checkpoint_every = 1000
    config.train.keep_every = 1000
    return config
