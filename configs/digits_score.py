"""Score matching with lambda = sigma^2 on the VP path, on digits."""

from ml_collections import ConfigDict

from configs import digits_ot, methods


def get_config() -> ConfigDict:
    return methods.score(digits_ot.get_config())
