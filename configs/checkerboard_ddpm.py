"""DDPM's noise matching on the VP path, on the checkerboard."""

from ml_collections import ConfigDict

from configs import checkerboard_vp


def get_config() -> ConfigDict:
    config = checkerboard_vp.get_config()
    config.objective.name = "ddpm"
    config.objective.predicts = "noise"
    return config
