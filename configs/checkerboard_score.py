"""Score matching with lambda = sigma^2 on the VP path, on the checkerboard.

The network predicts the score itself; with "noise" the loss would be DDPM's.
"""

from ml_collections import ConfigDict

from configs import checkerboard_vp


def get_config() -> ConfigDict:
    config = checkerboard_vp.get_config()
    config.objective.name = "score_matching"
    config.objective.predicts = "score"
    return config
