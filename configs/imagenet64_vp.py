"""Flow matching with the VP path ("FM w/ Diffusion") on ImageNet-64."""

from ml_collections import ConfigDict

from configs import imagenet64_ot, methods


def get_config() -> ConfigDict:
    return methods.vp(imagenet64_ot.get_config())
