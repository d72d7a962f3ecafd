"""DDPM's noise matching on the VP path, on ImageNet-32."""

from ml_collections import ConfigDict

from configs import imagenet32_ot, methods


def get_config() -> ConfigDict:
    return methods.ddpm(imagenet32_ot.get_config())
