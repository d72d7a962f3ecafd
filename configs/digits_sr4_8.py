"""Super-resolution of digits, 4 x 4 to 8 x 8, by flow matching with OT: minutes on two cores."""

from ml_collections import ConfigDict

from configs import digits_ot


def get_config() -> ConfigDict:
    config = digits_ot.get_config()
    config.condition.low_resolution = 4
    return config
