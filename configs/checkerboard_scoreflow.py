"""ScoreFlow, score matching with lambda = beta, on the VP path, on the checkerboard."""

from ml_collections import ConfigDict

from configs import checkerboard_ot, methods


def get_config() -> ConfigDict:
    return methods.scoreflow(checkerboard_ot.get_config())
