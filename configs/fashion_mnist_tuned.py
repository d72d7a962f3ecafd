"""Flow matching with the OT path by a tuned recipe on Fashion-MNIST."""

from ml_collections import ConfigDict

from configs import fashion_mnist_ot, methods


def get_config() -> ConfigDict:
    return methods.tuned(fashion_mnist_ot.get_config())
