"""ScoreFlow, score matching with lambda = beta, on the VP path, on CIFAR-10."""

from ml_collections import ConfigDict

from configs import cifar10_ot, methods


def get_config() -> ConfigDict:
    return methods.scoreflow(cifar10_ot.get_config())
