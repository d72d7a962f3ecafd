"""Score matching with lambda = sigma^2 on the VP path, on the checkerboard."""

from ml_collections import ConfigDict

from configs import checkerboard_ot, methods


def get_config() -> ConfigDict:
    return methods.score(checkerboard_ot.get_config())
