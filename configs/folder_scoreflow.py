"""ScoreFlow, score matching with lambda = beta, on the VP path, on a folder of images."""

from ml_collections import ConfigDict

from configs import folder_ot, methods


def get_config() -> ConfigDict:
    return methods.scoreflow(folder_ot.get_config())
