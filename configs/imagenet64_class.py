"""Class-conditional flow matching on ImageNet-64: the paper's network and the thousand classes.

A tenth of the labels are left out, as Ho & Salimans 2022 do; 295.9M parameters.
"""

from ml_collections import ConfigDict

from configs import imagenet64_ot


def get_config() -> ConfigDict:
    config = imagenet64_ot.get_config()
    config.condition.labels = True
    return config
