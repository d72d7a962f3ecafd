"""DDPM's noise matching on the VP path, on a folder of images."""

from ml_collections import ConfigDict

from configs import folder_ot, methods


def get_config() -> ConfigDict:
    return methods.ddpm(folder_ot.get_config())
