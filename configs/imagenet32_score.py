"""Score matching with lambda = sigma^2 on the VP path, on ImageNet-32."""

from ml_collections import ConfigDict

from configs import imagenet32_ot, methods


def get_config() -> ConfigDict:
    return methods.score(imagenet32_ot.get_config())
