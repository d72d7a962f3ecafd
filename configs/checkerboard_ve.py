"""Flow matching with the VE path on the checkerboard."""

from ml_collections import ConfigDict

from configs import checkerboard_ot, methods


def get_config() -> ConfigDict:
    return methods.ve(checkerboard_ot.get_config())
