"""DDPM's noise matching on the VP path, on the checkerboard."""

from ml_collections import ConfigDict

from configs import checkerboard_ot, methods


def get_config() -> ConfigDict:
    return methods.ddpm(checkerboard_ot.get_config())
