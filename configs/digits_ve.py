"""Flow matching with the VE path on digits."""

from ml_collections import ConfigDict

from configs import digits_ot, methods


def get_config() -> ConfigDict:
    return methods.ve(digits_ot.get_config())
