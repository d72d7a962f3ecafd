"""Flow matching with the VP path ("FM w/ Diffusion") on Fashion-MNIST."""

from ml_collections import ConfigDict

from configs import fashion_mnist_ot, methods


def get_config() -> ConfigDict:
    return methods.vp(fashion_mnist_ot.get_config())
