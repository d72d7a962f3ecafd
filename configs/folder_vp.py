"""Flow matching with the VP path ("FM w/ Diffusion") on a folder of images."""

from ml_collections import ConfigDict

from configs import folder_ot, methods


def get_config() -> ConfigDict:
    return methods.vp(folder_ot.get_config())
