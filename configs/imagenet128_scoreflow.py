"""ScoreFlow, score matching with lambda = beta, on the VP path, on ImageNet-128."""

from ml_collections import ConfigDict

from configs import imagenet128_ot, methods


def get_config() -> ConfigDict:
    return methods.scoreflow(imagenet128_ot.get_config())
