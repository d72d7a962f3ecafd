"""Score matching with lambda = sigma^2 on the VP path, on Fashion-MNIST."""

from ml_collections import ConfigDict

from configs import fashion_mnist_ot, methods


def get_config() -> ConfigDict:
    return methods.score(fashion_mnist_ot.get_config())
