"""Flow matching with the VP path ("FM w/ Diffusion") on CIFAR-10."""

from ml_collections import ConfigDict

from configs import cifar10_ot, methods


def get_config() -> ConfigDict:
    return methods.vp(cifar10_ot.get_config())
