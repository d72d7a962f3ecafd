"""Super-resolution of 3-D emoji from 64 x 64 to 256 x 256 by flow matching with the OT path.

    python main.py --config=configs/emoji_sr64_256.py --config.data.folder.path=package/assets

The folder is from `npm pack @lobehub/fluent-emoji-3d@1.1.0`. The network has a third of the width
of ImageNet's.
"""

from ml_collections import ConfigDict

from flowmatch_jax.config.experiments import experiment_config


def get_config() -> ConfigDict:
    config = experiment_config("configs/emoji_sr16_64.py")
    config.data.size = 256
    config.condition.low_resolution = 64

    config.network.dtype = "bfloat16"
    config.network.unet.multipliers = (1, 1, 2, 2, 4, 4)
    config.network.unet.remat = True

    config.train.batch_size = 32
    config.evaluate.batch_size = 16
    config.evaluate.samples = 16
    return config
