"""DDPM's noise matching on the VP path, on digits."""

from ml_collections import ConfigDict

from configs import digits_ot, methods


def get_config() -> ConfigDict:
    return methods.ddpm(digits_ot.get_config())
