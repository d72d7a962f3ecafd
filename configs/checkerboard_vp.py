"""Flow matching with the VP path ("FM w/ Diffusion") on the checkerboard."""

from ml_collections import ConfigDict

from configs import checkerboard_ot


def get_config() -> ConfigDict:
    config = checkerboard_ot.get_config()
    config.path.name = "vp"
    return config
