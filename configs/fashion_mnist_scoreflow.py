"""ScoreFlow, score matching with lambda = beta, on the VP path, on Fashion-MNIST."""

from ml_collections import ConfigDict

from configs import fashion_mnist_ot, methods


def get_config() -> ConfigDict:
    return methods.scoreflow(fashion_mnist_ot.get_config())
