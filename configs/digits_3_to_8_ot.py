"""Flow matching from one class of images to another: handwritten threes to eights."""

from ml_collections import ConfigDict

from configs import digits_ot


def get_config() -> ConfigDict:
    config = digits_ot.get_config()
    config.source.name = "digits"
    config.source.classes = (3,)
    config.data.classes = (8,)
    config.train.steps = 600
    config.evaluate.generated = None
    return config
