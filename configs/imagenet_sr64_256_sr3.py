"""SR3 for super-resolution of ImageNet, 64 x 64 to 256 x 256."""

from ml_collections import ConfigDict

from configs import imagenet_sr64_256, methods


def get_config() -> ConfigDict:
    return methods.sr3(imagenet_sr64_256.get_config())
