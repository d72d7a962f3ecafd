"""ScoreFlow, score matching with lambda = beta, on the VP path, on the checkerboard."""

from ml_collections import ConfigDict

from configs import checkerboard_vp


def get_config() -> ConfigDict:
    config = checkerboard_vp.get_config()
    config.objective.name = "scoreflow"
    config.objective.predicts = "noise"
    return config
