"""DDPM's noise matching on the VP path, on digits."""

from ml_collections import ConfigDict

from configs import digits_vp


def get_config() -> ConfigDict:
    config = digits_vp.get_config()
    config.objective.name = "ddpm"
    config.objective.predicts = "noise"
    return config
