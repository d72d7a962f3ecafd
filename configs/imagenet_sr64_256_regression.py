"""Regression for super-resolution of ImageNet, 64 x 64 to 256 x 256, at SR3's rate for it."""

from ml_collections import ConfigDict

from configs import imagenet_sr64_256, methods


def get_config() -> ConfigDict:
    config = methods.regression(imagenet_sr64_256.get_config())
    config.optimizer.learning_rate = 1e-5
    return config
