"""Flow matching with the VP path ("FM w/ Diffusion") on digits."""

from ml_collections import ConfigDict

from configs import digits_ot


def get_config() -> ConfigDict:
    config = digits_ot.get_config()
    config.path.name = "vp"
    return config
