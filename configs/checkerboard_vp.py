"""Flow matching with the VP path ("FM w/ Diffusion") on the checkerboard."""

from ml_collections import ConfigDict

from configs import checkerboard_ot, methods


def get_config() -> ConfigDict:
    return methods.vp(checkerboard_ot.get_config())
