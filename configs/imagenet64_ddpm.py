"""DDPM's noise matching on the VP path, on ImageNet-64."""

from ml_collections import ConfigDict

from configs import imagenet64_ot, methods


def get_config() -> ConfigDict:
    return methods.ddpm(imagenet64_ot.get_config())
