"""SR3 for super-resolution of 3-D emoji, 64 x 64 to 256 x 256."""

from ml_collections import ConfigDict

from configs import emoji_sr64_256, methods


def get_config() -> ConfigDict:
    return methods.sr3(emoji_sr64_256.get_config())
