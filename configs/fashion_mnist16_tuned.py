"""Flow matching with the OT path by a tuned recipe on Fashion-MNIST, 16 x 16."""

from ml_collections import ConfigDict

from configs import fashion_mnist16_ot, methods


def get_config() -> ConfigDict:
    return methods.tuned(fashion_mnist16_ot.get_config())
