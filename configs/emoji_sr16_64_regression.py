"""Regression for super-resolution of Google's emoji, 16 x 16 to 64 x 64."""

from ml_collections import ConfigDict

from configs import emoji_sr16_64, methods


def get_config() -> ConfigDict:
    return methods.regression(emoji_sr16_64.get_config())
