"""Class-conditional flow matching on digits, with guidance to be chosen: minutes on two cores."""

from ml_collections import ConfigDict

from configs import digits_ot


def get_config() -> ConfigDict:
    config = digits_ot.get_config()
    config.condition.labels = True
    config.evaluate.samples = 100  # ten a class in the grid
    return config
