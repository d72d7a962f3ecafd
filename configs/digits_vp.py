"""Flow matching with the VP path ("FM w/ Diffusion") on digits."""

from ml_collections import ConfigDict

from configs import digits_ot, methods


def get_config() -> ConfigDict:
    return methods.vp(digits_ot.get_config())
