"""DDPM's noise matching on the VP path, on Fashion-MNIST."""

from ml_collections import ConfigDict

from configs import fashion_mnist_ot, methods


def get_config() -> ConfigDict:
    return methods.ddpm(fashion_mnist_ot.get_config())
