"""Flow matching with the VP path ("FM w/ Diffusion") on ImageNet-128."""

from ml_collections import ConfigDict

from configs import imagenet128_ot, methods


def get_config() -> ConfigDict:
    return methods.vp(imagenet128_ot.get_config())
