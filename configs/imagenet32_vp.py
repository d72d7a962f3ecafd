"""Flow matching with the VP path ("FM w/ Diffusion") on ImageNet-32."""

from ml_collections import ConfigDict

from configs import imagenet32_ot, methods


def get_config() -> ConfigDict:
    return methods.vp(imagenet32_ot.get_config())
