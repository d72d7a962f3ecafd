"""Regression for super-resolution of digits, 4 x 4 to 8 x 8."""

from ml_collections import ConfigDict

from configs import digits_sr4_8, methods


def get_config() -> ConfigDict:
    return methods.regression(digits_sr4_8.get_config())
