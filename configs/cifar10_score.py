"""Score matching with lambda = sigma^2 on the VP path, on CIFAR-10."""

from ml_collections import ConfigDict

from configs import cifar10_ot, methods


def get_config() -> ConfigDict:
    return methods.score(cifar10_ot.get_config())
