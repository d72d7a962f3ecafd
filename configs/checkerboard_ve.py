"""Flow matching with the VE path on the checkerboard.

The target's size changes 5,000-fold over the path; a network that predicts the data makes the loss
log(sigma_max / sigma_min)^2 ||x_1 - output||^2, the same at all times.
"""

from ml_collections import ConfigDict

from configs import checkerboard_ot


def get_config() -> ConfigDict:
    config = checkerboard_ot.get_config()
    config.path.name = "ve"
    config.objective.predicts = "data"
    return config
