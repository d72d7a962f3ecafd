"""Flow matching with the VP path ("FM w/ Diffusion") on Fashion-MNIST, 16 x 16."""

from ml_collections import ConfigDict

from configs import fashion_mnist16_ot, methods


def get_config() -> ConfigDict:
    return methods.vp(fashion_mnist16_ot.get_config())
